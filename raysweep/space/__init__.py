"""What is asked for: search spaces, cells, corpora, the settings of evaluations."""
