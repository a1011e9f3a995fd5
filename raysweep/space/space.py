"""A validated search space: its cells, and what is done with them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny

from raysweep.errors import UserError
from raysweep.space.cell import Cell
from raysweep.space.design import Design
from raysweep.space.evaluations import Evaluation, evaluation
from raysweep.space.fields import Strict, unique
from raysweep.space.hypotheses import Hypotheses
from raysweep.space.measure import Measurement
from raysweep.space.resources import Resources

Tracker = Literal["tensorboard", "mlflow", "wandb"]


class Space(Strict):
    """A validated search space.

    `evaluations` names the tasks run on each trained cell, `measure` what is measured while it trains, `resources` what a
    cell's training and one evaluation ask of the cluster, `loggers` the experiment trackers that are told of it, and
    `hypotheses` what is claimed of its results.

    Examples
    --------
    >>> space = Space(name="one", cells=(Cell(size="4M", corpus="installed", tokens=10**6, batch_size=4),))
    >>> space.cells[0].id
    '4M-1M-b4-wd0.1-lr1-f0.1-s6198-2a064935'
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    cells: tuple[Cell, ...]
    evaluations: tuple[SerializeAsAny[Annotated[Evaluation, BeforeValidator(evaluation)]], ...] = ()
    resources: Resources = Resources()
    loggers: Annotated[tuple[Tracker, ...], AfterValidator(unique)] = ()
    measure: tuple[Measurement, ...] = ()
    """What is measured while a cell trains, beside the geometry of its unembedding."""
    code: tuple[str, ...] = ()
    """Folders of packages of the user's own, absolute, which every worker can import."""
    design: Design = Design()
    """How the cells were chosen where it was not by a grid alone."""
    hypotheses: Hypotheses | None = None
    """What is claimed of the results; None for the claims of the paper."""

    def evaluations_of(self, cell: Cell) -> list[Evaluation]:
        """The evaluations that fit a cell's corpus."""
        return [evaluation for evaluation in self.evaluations if evaluation.fits(cell)]

    def cells_of(self, evaluation: Evaluation) -> list[Cell]:
        """The cells whose corpus an evaluation fits."""
        return [cell for cell in self.cells if evaluation.fits(cell)]


def find_cell(space: Space, part: str) -> Cell:
    """The cell with this id, or with this part in its id. Raises `UserError` where no cell or several have it."""
    matches = [cell for cell in space.cells if cell.id == part] or [cell for cell in space.cells if part in cell.id]
    if len(matches) == 1:
        return matches[0]
    number = "no cell" if not matches else f"{len(matches)} cells"
    raise UserError(f"{space.name} has {number} with {part!r} in the id: `raysweep plan` lists them")
