"""What is measured of the unembedding W at every report, by name, with its unit; `raysweep.model.geometry` computes it."""

METRICS = {
    "effective_rank": "fraction of the width",
    "cosine": "",
    "isotropy": "",
    "isotropy_symmetric": "",
    "spectral_norm": "",
}
