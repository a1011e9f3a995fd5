"""What can be measured of a matrix, by name, with its unit; `raysweep.model.metrics` computes it; and names of losses."""

import re

# Of the unembedding W, at every report of every sweep: columns of the tables.
METRICS = {
    "effective_rank": "fraction of the width",
    "cosine": "",
    "isotropy": "",
    "isotropy_symmetric": "",
    "spectral_norm": "",
}

# What a search space may ask for under `measure`, of any matrix.
OF_ONE = METRICS | {
    "cosine_centred": "",
    "rankme": "directions",
    "stable_rank": "directions",
    "participation_ratio": "directions",
    "condition_number": "",
    "nuclear_norm": "",
    "frobenius_norm": "",
    "alpha_req": "",
    "isoscore": "",
    "hoyer": "",
    "gini": "",
}

# Of a matrix and another of as many rows.
OF_TWO = {"cka": "", "pwcca": ""}

# Names of domains have more than letters.
_LOSS = re.compile(r"_loss((?:_[\w.+#-]+)?)$")


def per_byte(column: str) -> str | None:
    """The column that has a loss for each byte of text, of the one that has it for each token; None for other columns.

    Examples
    --------
    >>> per_byte("finetune_sql_loss_before")
    'finetune_sql_bits_per_byte_before'
    """
    name, losses = _LOSS.subn(r"_bits_per_byte\1", column)
    return name if losses else None
