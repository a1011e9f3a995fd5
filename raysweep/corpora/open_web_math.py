"""OpenWebMath, the paper's mathematics for fine-tuning."""

from raysweep.corpora.published import Preset

PRESET = Preset(
    repository="open-web-math/open-web-math",
    revision="fde8ef8de2300f5e778f56261843dab89f230815",
    splits={
        # Four of 114 files: some 500 million tokens, where the study's fine-tuning takes 105 million.
        "train": ("data/train-0000[0-3]-of-00114-*.parquet",),
        "all": ("data/*.parquet",),
    },
    fields="text; url, date, metadata",
    licence="ODC-By 1.0, and Common Crawl's terms of use",
    gated=False,
    size="6,315,233 documents, 56.7 GB of text in 114 files; `train` is the first four of them, `all` all",
    documented="https://huggingface.co/datasets/open-web-math/open-web-math",
    note="an address may come several times",
)
