"""Paloma: 16 collections of held-out text, the paper's out-of-distribution evaluation."""

from raysweep.corpora.published import Preset

# The collection whose domains count one by one; each is a programming language.
LANGUAGES = "dolma_100_programing_languages"


def domain_of(file: str, subdomain: str) -> str:
    """The collection, which is the file's folder; of the programming languages the language too, as `02_c`."""
    collection, *_, name = file.split("/")
    if collection != LANGUAGES:
        return collection
    # Every line names its language; the file's own name stands in where one does not.
    return f"{collection}.{subdomain or name.partition('.')[0]}"


PRESET = Preset(
    repository="allenai/paloma",
    revision="65cd6fc59dba021b21db414fa5e8d7765ffbe5e6",
    splits={"train": ("*/val/*.jsonl.gz",), "test": ("*/test/*.jsonl.gz",)},
    fields="text; subdomain in some collections; id, source, added, metadata",
    licence="AI2 ImpACT licence for low-risk artifacts (LR), and of each collection its own",
    gated=True,
    size="571 validation files in 16 collections",
    documented="https://huggingface.co/datasets/allenai/paloma",
    note="the split that is evaluated is val, as Paloma's own suite has it; the paper does not say which it took",
    domain="subdomain",
    domain_of=domain_of,
)
