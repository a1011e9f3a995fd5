"""What can be measured of a matrix, by name, with its unit; `raysweep.model.metrics` computes it."""

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
