"""What an evaluation reads beside its cells' corpus: documents, or questions. A cell's id knows nothing of it."""

from __future__ import annotations

import json
from typing import Literal

from raysweep.space.corpus import Corpus, Source, Sources, folder_name
from raysweep.space.fields import Strict


class Text(Strict):
    """A text under the tokenizer of a corpus."""

    name: str
    """What messages and folders call it: the evaluation's label."""
    role: Literal["evaluation", "finetune", "questions"]
    """`evaluation`: all of it is evaluated, by domain; `finetune`: a tenth is held out; `questions`: with answers."""
    on: Sources = ()
    """The documents; of `questions` none."""
    questions: tuple[str, ...] = ()
    """Benchmarks of `raysweep.space.benchmarks`, or a file of one's own."""

    def key(self, corpus: Corpus) -> str:
        """What a store knows its fingerprint by, where it is of the tokens of that corpus; without where folders are."""
        sources = [without_place(source) for source in self.on]
        asked = {
            "text": self.name,
            "role": self.role,
            "on": sources,
            "questions": [folder_name(q) for q in self.questions],
        }
        return f"{json.dumps(asked, separators=(',', ':'))} with the corpus {corpus.key}"


def without_place(source: Source) -> dict[str, object]:
    """A source as results are found by: what is set of it, and of a folder only its name."""
    given = source.model_dump(mode="json", exclude_defaults=True)
    return given | ({"folder": folder_name(given["folder"])} if "folder" in given else {})
