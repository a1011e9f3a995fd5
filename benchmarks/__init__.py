"""Every speed claim of the README as a command: `python -m benchmarks.NAME [--json]`.

Each compares raysweep with what people use today, in one process or one run, both sides with the same threads, one after
the other in turn, several times. A ratio above 1 means that raysweep is better.
"""
