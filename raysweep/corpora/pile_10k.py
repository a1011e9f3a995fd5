"""The first 10,000 documents of the Pile, the paper's in-distribution evaluation."""

from raysweep.corpora.published import Preset

PRESET = Preset(
    repository="NeelNanda/pile-10k",
    revision="127bfedcd5047750df5ccf3a12979a47bfa0bafa",
    splits={"train": ("data/*.parquet",)},
    fields="text; meta.pile_set_name is the domain",
    licence="bigscience-bloom-rail-1.0",
    gated=False,
    size="10,000 documents, 33 MB of Parquet",
    documented="https://huggingface.co/datasets/NeelNanda/pile-10k",
    note="of the full Pile, so with parts that the mirror of the training text has not; these documents stand in the Pile's "
    "training files too: `decontaminate: 13` leaves them out there",
    domain="meta.pile_set_name",
)
