"""The store of one sweep: files that appear whole or not at all, tables, the lock, sessions."""

from raysweep.store.store import Store

__all__ = ["Store"]
