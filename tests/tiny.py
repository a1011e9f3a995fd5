"""A cell that trains in a second, on two percent of the installed text."""

from typing import Any

from raysweep.space.cell import Cell

# Under the id and the fingerprint that it has always had.
TINY = {"name": "installed", "tokenizer": "bpe", "vocabulary": 512, "fraction": 0.02, "decontaminate": None}


def make_cell(**changes: Any) -> Cell:
    """A cell of 32 steps of 4 sequences of 32 tokens."""
    settings = {
        "size": {"width": 8},
        "corpus": TINY,
        "tokens": 4096,
        "batch_size": 4,
        "sequence_length": 32,
        "validation_sequences": 4,
        # The rule's rate at this width is 0.1, at which rounding soon shows.
        "learning_rate": 0.01,
    }
    return Cell.model_validate(settings | changes)
