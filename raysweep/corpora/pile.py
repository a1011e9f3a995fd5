"""The Pile, by the one whole mirror in its original layout that is still published."""

from raysweep.corpora.published import Preset

PRESET = Preset(
    repository="monology/pile-uncopyrighted",
    revision="3be90335b66f24456a5d6659d9c8d208c0357119",
    splits={
        "train": ("train/*.jsonl.zst",),
        # In the root, beside a folder `train`: `datasets` by itself finds the training split only.
        "validation": ("val.jsonl.zst",),
        "test": ("test.jsonl.zst",),
    },
    fields="text; meta.pile_set_name is the domain",
    licence="other (of each part its own)",
    gated=False,
    size="30 training files of 11.2 GB each (335 GB compressed), validation and test 338 MB each",
    documented="https://huggingface.co/datasets/monology/pile-uncopyrighted",
    note="without Books3, BookCorpus2, OpenSubtitles, YoutubeSubtitles and OpenWebText2: about a quarter of what the paper "
    "trained on, the raw Pile, is missing; no complete raw copy was found",
    domain="meta.pile_set_name",
)
