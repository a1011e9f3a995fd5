"""The Python files of StarCoderData, the paper's code for fine-tuning."""

from raysweep.corpora.published import Preset

PRESET = Preset(
    repository="bigcode/starcoderdata",
    revision="9fc30b578cedaec69e47302df72cf00feed7c8c4",
    splits={
        # Two of 59 files: some 600 million tokens, where the study's fine-tuning takes 105 million.
        "train": ("python/train-0000[01]-of-00059.parquet",),
        "all": ("python/*.parquet",),
    },
    fields="content is the text; max_stars_repo_name, max_stars_repo_path, max_stars_count, id",
    licence="other: each file that of its repository, under the terms of The Stack",
    gated=True,
    size="12,866,649 documents, 60.5 GB of text in 59 files; `train` is the first two of them, `all` all",
    documented="https://huggingface.co/datasets/bigcode/starcoderdata",
    note="about half of the files begin with a line of <reponame>, <filename> or <gh_stars>, which is kept",
    text="content",
)
