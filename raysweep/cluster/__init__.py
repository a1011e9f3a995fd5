"""The Ray cluster: connecting, capacity, autoscaling, jobs."""
