"""The command line: what is typed, what is printed, Ctrl-C, and the exit statuses. Nothing imports it."""
