"""The Ray cluster: connecting, capacity, autoscaling, jobs."""

from raysweep.cluster.connection import Connection, address, connected

__all__ = ["Connection", "address", "connected"]
