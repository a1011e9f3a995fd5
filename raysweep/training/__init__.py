"""The training of one cell, and its checkpoints."""
