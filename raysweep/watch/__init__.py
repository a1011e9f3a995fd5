"""A page that shows a sweep while it runs, and after: `raysweep watch`."""
