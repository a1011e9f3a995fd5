"""The exit statuses of the commands beside 0 and 1."""

INTERRUPTED = 130
"""Stopped by Ctrl-C or `kill`, as shells have it: 128 and the signal's number."""
