"""What is left of a sweep, and how it is done on a Ray cluster."""
