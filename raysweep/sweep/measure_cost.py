"""What a search space's `measure` means and costs, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysweep.space.measure import GRADIENTS, HIDDEN, rows, wanted

if TYPE_CHECKING:
    from raysweep.space.cell import Cell
    from raysweep.space.measure import Wanted
    from raysweep.space.space import Space


def measured(space: Space) -> dict[str, Any]:
    """What is measured of the deepest cell, and its share of the FLOP of training of all cells.

    `items`: for each item of `measure` the `matrices` that it means, its `metrics` and how many `reports` it is measured
    at. `flops_share`: 4 n d² for the singular values of n rows of d numbers, 2 N for each token that hidden states are of,
    6 N for each that a gradient is of, over 6 N D of training. Most of the first is in float64, which takes longer.
    """
    if not space.measure:
        return {"items": [], "flops_share": 0.0}
    deepest = max(space.cells, key=lambda cell: (cell.size.depth, cell.size.heads))
    items = [
        {
            "matrices": one.names(deepest.size, deepest.mlp_ratio),
            "metrics": list(one.metrics),
            "reports": len(one.steps(deepest)),
            "settings": one.model_dump(exclude={"of", "metrics", "when"}, exclude_unset=True),
        }
        for one in space.measure
    ]
    flops = sum(_flops(cell, space) for cell in space.cells)
    return {"items": items, "flops_share": flops / sum(cell.flops for cell in space.cells)}


def _flops(cell: Cell, space: Space) -> float:
    everything = wanted(space.measure, cell)
    total = sum(4.0 * _rows(one, cell) * cell.size.width**2 * len(one.spectrum) for one in everything)
    # Layers share a forward pass, and gradients a backward one.
    hidden = [one for one in everything if one.matrix.startswith(HIDDEN)]
    passes = {(one.sequences, one.positions, step) for one in hidden for step in one.spectrum}
    total += sum(2.0 * cell.shape.parameters * sequences * cell.sequence_length for sequences, _, _ in passes)
    steps = {step for one in everything if one.matrix.startswith(GRADIENTS) for step in one.spectrum}
    return total + 6.0 * cell.shape.parameters * cell.tokens_per_step * len(steps)


def _rows(one: Wanted, cell: Cell) -> int:
    if one.matrix.startswith(HIDDEN):
        return one.sequences * (cell.sequence_length if one.positions == "all" else 1)
    number = rows(one.matrix, cell.size, cell.mlp_ratio)
    return number if isinstance(number, int) else cell.shape.vocabulary
