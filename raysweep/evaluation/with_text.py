"""Tasks that a search space gives a name and documents of their own: what loss and finetune share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, field_validator

from raysweep.space.corpus import Source, Sources
from raysweep.space.evaluations import Evaluation
from raysweep.space.text import without_place

MUCH = 0.05
"""Share of a text that may be known from training without a word."""

# By such words columns are told apart.
_WORDS = ("loss", "accuracy", "bits_per_byte", "overlap")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


def _without_weights(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """The sources; refuses weights, which are for training."""
    if any(source.weight is not None for source in sources):
        raise ValueError("weights are for what is trained on: remove them")
    return sources


Unweighted = Annotated[Sources, Field(min_length=1), AfterValidator(_without_weights)]
"""Sources of what is evaluated."""


class Named(Evaluation):
    """A task that a search space may have several times, each under a name."""

    reserved: ClassVar[tuple[str, ...]] = ()
    """Names whose columns are there already."""

    name: Name
    """What its columns and tables are called."""

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in cls.reserved:
            raise ValueError(f"raysweep has columns of the name {name}: choose another")
        if word := next((word for word in _WORDS if word in name), None):
            raise ValueError(f"columns are told apart by the word {word}: choose a name without it")
        return name

    @property
    def label(self) -> str:
        return f"{self.task}_{self.name}"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)


class WithText(Named):
    """A task on documents of its own. Which documents they are is on record in the store: others are refused."""

    on: Annotated[Sources, Field(min_length=1)]
    """Sources, as a corpus has them."""

    @property
    def identity(self) -> dict[str, Any]:
        return super().identity | {"on": [without_place(source) for source in self.on]}

    def _on(self) -> str:
        """The sources, for people."""
        return ", ".join(source.name for source in self.on)


def known(label: str, shares: dict[str, float]) -> list[str]:
    """What to say where training text has much of a text: `shares` of the tokens of its parts."""
    much = {name: share for name, share in shares.items() if share > MUCH}
    if not much:
        return []
    listed = ", ".join(f"{name} {share:.0%}" for name, share in sorted(much.items(), key=lambda item: -item[1])[:5])
    return [
        f"{label}: training text has much of its tokens, in runs of 13 ({listed}{', ...' if len(much) > 5 else ''})"
    ]
