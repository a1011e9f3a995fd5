"""Models that others have trained: a suite of them, measured and evaluated as a sweep's cells are."""
