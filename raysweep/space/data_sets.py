"""The published data sets that a search space can name, as one table: what is known of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def as_it_is(file: str, domain: str) -> str:
    """The value of the domain field, in whatever file."""
    return domain


@dataclass(frozen=True)
class DataSet:
    """A published data set; its size is in its publishers' words."""

    repository: str
    revision: str
    splits: dict[str, tuple[str, ...]]
    """Split -> patterns of its files."""
    fields: str
    """What a row holds."""
    licence: str
    gated: bool
    size: str
    documented: str
    """The page that says so."""
    note: str
    text: str = "text"
    domain: str | None = None
    domain_of: Callable[[str, str], str] = as_it_is
    """(file, value of the domain field) -> the document's domain."""


# The collection of Paloma whose domains count one by one; each is a programming language.
_LANGUAGES = "dolma_100_programing_languages"


def paloma_domain(file: str, subdomain: str) -> str:
    """The collection, which is the file's folder; for the programming languages the language too, as `02_c`."""
    collection, *_, name = file.split("/")
    if collection != _LANGUAGES:
        return collection
    # Every line names its language; the file's own name stands in where one does not.
    return f"{collection}.{subdomain or name.partition('.')[0]}"


DATA_SETS = {
    # The Pile, in the one complete mirror of its original layout that is still published.
    "pile": DataSet(
        repository="monology/pile-uncopyrighted",
        revision="3be90335b66f24456a5d6659d9c8d208c0357119",
        splits={
            "train": ("train/*.jsonl.zst",),
            # In the root, beside a folder `train`: `datasets` by itself finds the training split only.
            "validation": ("val.jsonl.zst",),
            "test": ("test.jsonl.zst",),
        },
        fields="text; meta.pile_set_name is the domain",
        licence="other (each part has its own)",
        gated=False,
        size="30 training files of 11.2 GB each (335 GB compressed), validation and test 338 MB each",
        documented="https://huggingface.co/datasets/monology/pile-uncopyrighted",
        note="without Books3, BookCorpus2, OpenSubtitles, YoutubeSubtitles and OpenWebText2: about a quarter of what the "
        "paper trained on, the raw Pile, is missing; no complete raw copy was found",
        domain="meta.pile_set_name",
    ),
    # The first 10,000 documents of the Pile: the paper's in-distribution evaluation.
    "pile-10k": DataSet(
        repository="NeelNanda/pile-10k",
        revision="127bfedcd5047750df5ccf3a12979a47bfa0bafa",
        splits={"train": ("data/*.parquet",)},
        fields="text; meta.pile_set_name is the domain",
        licence="bigscience-bloom-rail-1.0",
        gated=False,
        size="10,000 documents, 33 MB of Parquet",
        documented="https://huggingface.co/datasets/NeelNanda/pile-10k",
        note="of the full Pile, so with parts that the mirror of the training text does not have; these documents stand in "
        "the Pile's training files too: `decontaminate: 13` leaves them out there",
        domain="meta.pile_set_name",
    ),
    # 16 collections of held-out text: the paper's out-of-distribution evaluation.
    "paloma": DataSet(
        repository="allenai/paloma",
        revision="65cd6fc59dba021b21db414fa5e8d7765ffbe5e6",
        splits={"train": ("*/val/*.jsonl.gz",), "test": ("*/test/*.jsonl.gz",)},
        fields="text; subdomain in some collections; id, source, added, metadata",
        licence="AI2 ImpACT licence for low-risk artifacts (LR), and the licence of each collection",
        gated=True,
        size="571 validation files in 16 collections",
        documented="https://huggingface.co/datasets/allenai/paloma",
        note="evaluated on val, as in Paloma's own suite; the paper does not say which split it used",
        domain="subdomain",
        domain_of=paloma_domain,
    ),
    # The Python files of StarCoderData: the paper's code for fine-tuning.
    "starcoder-python": DataSet(
        repository="bigcode/starcoderdata",
        revision="9fc30b578cedaec69e47302df72cf00feed7c8c4",
        splits={
            # Two of 59 files: some 600 million tokens, where the study's fine-tuning takes 105 million.
            "train": ("python/train-0000[01]-of-00059.parquet",),
            "all": ("python/*.parquet",),
        },
        fields="content is the text; max_stars_repo_name, max_stars_repo_path, max_stars_count, id",
        licence="other: each file has its repository's licence, under the terms of The Stack",
        gated=True,
        size="12,866,649 documents, 60.5 GB of text in 59 files; `train` is the first two files, `all` is every file",
        documented="https://huggingface.co/datasets/bigcode/starcoderdata",
        note="about half of the files begin with a line of <reponame>, <filename> or <gh_stars>, which is kept",
        text="content",
    ),
    # The paper's mathematics for fine-tuning.
    "open-web-math": DataSet(
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
        size="6,315,233 documents, 56.7 GB of text in 114 files; `train` is the first four files, `all` is every file",
        documented="https://huggingface.co/datasets/open-web-math/open-web-math",
        note="an address may come several times",
    ),
}
