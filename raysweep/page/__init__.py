"""The page that shows a sweep: the same live, from a server, and frozen into a report."""
