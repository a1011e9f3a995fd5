"""What a sweep costs before it starts: its FLOPs, and the hours that they take on a device.

A model this small waits for memory more than for arithmetic. A step's time is taken to be

    a  +  b x bytes  +  c x FLOP

Bytes are counted from the operations of a step under bfloat16 autocast (`tests/sweep/test_cost.py` counts them again): 12
for each logit, 420 for each number of the width in the loss, 820 for each number of the width in each block, as if each
operation read and wrote memory; in float32 twice as many. FLOP are 6 N (Kaplan et al. 2020) and 6 x length x width for the
causal attention of each block.

- **A GPU**: b is 1 / (bandwidth x 0.85) and c is 1 / (peak x 0.6). 0.85 and 0.6 are guesses at what is reached of the data
  sheets' figures: no GPU was measured. `python -m benchmarks.gpu --output FILE` measures one, and `raysweep plan
  --calibrate FILE` takes that. a is 0: what a step takes to launch is left out, and may be most of a step of a small batch.
- **A CPU core**: a, b and c are fitted to the cells of results/ that one core of two of an AMD EPYC trained (`python -m
  benchmarks.cpu_core`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import UserError, allowed, reason
from raysweep.sweep.measure_cost import measured

if TYPE_CHECKING:
    from raysweep.space.cell import Cell
    from raysweep.space.space import Space

BYTES_PER_LOGIT, BYTES_OF_THE_LOSS, BYTES_OF_A_BLOCK = 12, 420, 820
_OF_BANDWIDTH, _OF_PEAK = 0.85, 0.6

CPU_CORE = "CPU core"


@dataclass(frozen=True)
class Device:
    """A kind of device: seconds for each step, for each byte that it moves, and for each FLOP."""

    peak: float
    """FLOP/s, dense, of bfloat16 (of the CPU core float32)."""
    seconds_per_byte: float
    seconds_per_flop: float
    """In its usual precision."""
    source: str
    seconds_per_float32_flop: float | None = None
    """Of a GPU, for cells whose `precision` is float32; None where nobody knows."""
    seconds_per_step: float = 0.0
    gpu: bool = True
    """Its usual precision is bfloat16 on a GPU, float32 on a CPU."""

    @classmethod
    def by_data_sheet(cls, peak: float, bandwidth: float, float32: float) -> Device:
        """From its peaks in bfloat16 and float32 (without TF32), and the bandwidth of its memory, bytes/s."""
        return cls(
            peak, 1 / (bandwidth * _OF_BANDWIDTH), 1 / (peak * _OF_PEAK), "estimated from data sheets",
            seconds_per_float32_flop=1 / (float32 * _OF_PEAK),
        )  # fmt: skip

    def seconds(self, cell: Cell) -> float:
        """Seconds that training a cell takes one of them. Raises `UserError` where its precision was not measured."""
        per_flop: float | None = self.seconds_per_flop
        if self.gpu and cell.precision == "float32":
            per_flop = self.seconds_per_float32_flop
        if per_flop is None:
            raise UserError(f"{cell.id} trains in float32, and --calibrate measured bfloat16 alone: leave it out")
        steps, moved, flop = work(cell, float32=cell.precision == "float32" or not self.gpu)
        return steps * self.seconds_per_step + moved * self.seconds_per_byte + flop * per_flop


# Peaks and bandwidths are of NVIDIA's data sheets. The CPU core's peak is the rate of its matmuls
# (`python -m benchmarks.training_step`).
DEVICES = {
    "A100 40 GB": Device.by_data_sheet(312e12, 1.555e12, 19.5e12),
    "A100 80 GB": Device.by_data_sheet(312e12, 2.039e12, 19.5e12),
    "H100": Device.by_data_sheet(989e12, 3.35e12, 67e12),
    "H200": Device.by_data_sheet(989e12, 4.8e12, 67e12),
    "L40S": Device.by_data_sheet(362e12, 0.864e12, 91.6e12),
    "L4": Device.by_data_sheet(121e12, 0.3e12, 30.3e12),
    CPU_CORE: Device(95e9, 4.9e-11, 1.4e-11, "measured", seconds_per_step=5.9e-3, gpu=False),
}


def relative_seconds(cell: Cell, gpu: bool) -> float:
    """A cell's training on an H100 or a CPU core, to compare cells with one another."""
    return DEVICES["H100" if gpu else CPU_CORE].seconds(cell)


def wall_clock(space: Space, cores: int) -> float | None:
    """Seconds that training takes on so many CPU cores.

    Those of all cells over how many train at a time, or those of the longest cell where that is more. None where cells
    need GPUs, or more cores than there are.
    """
    train = space.resources.train
    of_a_cell = train.cpus * train.workers
    at_a_time = int(cores // of_a_cell) if of_a_cell else cores
    if train.gpus or not at_a_time:
        return None
    seconds = [DEVICES[CPU_CORE].seconds(cell) / max(of_a_cell, 1) for cell in space.cells]
    return max(sum(seconds) / at_a_time, *seconds)


def work(cell: Cell, float32: bool) -> tuple[float, float, float]:
    """The steps of a cell's training, the bytes that they move and their FLOP."""
    moved, flop, of_attention = per_token(cell)
    tokens = cell.steps * cell.tokens_per_step
    return cell.steps, tokens * moved * (2 if float32 else 1), tokens * (flop + of_attention)


def per_token(cell: Cell) -> tuple[float, float, float]:
    """Bytes that a step moves for each token of a cell, 6 N FLOP, and those of the causal attention."""
    shape = cell.shape
    moved = BYTES_PER_LOGIT * shape.vocabulary + (BYTES_OF_THE_LOSS + BYTES_OF_A_BLOCK * shape.depth) * shape.width
    return moved, 6 * shape.parameters, 6 * cell.sequence_length * shape.width * shape.depth


def calibrated(file: Path) -> dict[str, Device]:
    """The device that `python -m benchmarks.gpu --output FILE` measured. Raises `UserError` where it is not that."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        measured = content["device"]
        peak, per_byte, per_flop = (float(measured[name]) for name in ("peak", "seconds_per_byte", "seconds_per_flop"))
        if not (
            0 < peak < math.inf and 0 <= per_byte < math.inf and 0 <= per_flop < math.inf and per_byte + per_flop > 0
        ):
            raise ValueError("its numbers are not those of a device")
        return {f"{measured['name']}, measured": Device(peak, per_byte, per_flop, "measured")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not what `python -m benchmarks.gpu --output FILE` writes: {reason(error)}"
        ) from None


def plan(space: Space, calibrate: Path | None = None, prices: dict[str, float] | None = None) -> dict[str, Any]:
    """The cells of a search space, and what training them costs.

    Parameters
    ----------
    space
        A search space.
    calibrate
        A file of `python -m benchmarks.gpu --output FILE`: its device comes first.
    prices
        Dollars for an hour of a device, by its name.

    Returns
    -------
    dict
        `cells`: the settings of each cell and what follows from them. `totals`: `cells`, `tokens`, and `flops` in FLOP
        (6 N D, Kaplan et al. 2020). `devices`: for each device its `peak` in FLOP/s, the `hours` of one such device, the
        share of its peak that `flops` are then done at (`utilisation`, and for each size `utilisation_of_sizes`), where that
        is from (`source`), and `dollars` where there is a price. `measure`: what the search space measures of its deepest
        cell, and its share of the FLOP (`raysweep.sweep.measure_cost`). `design`: how the cells were
        chosen where it was not by a grid alone, in words. `most_expensive`: the `id` and the `share` of all hours of the
        five longest cells, on the first device. A device of --calibrate comes first, then the CPU core where cells train
        without a GPU.

    Raises
    ------
    UserError
        Where the file cannot be read, or a price is of no device.

    Examples
    --------
    >>> plan(raysweep.load("search_spaces/paper.yaml"))["totals"]["cells"]
    108
    """
    usual = DEVICES if space.resources.train.gpus else {CPU_CORE: DEVICES[CPU_CORE]} | DEVICES
    devices = (calibrated(calibrate) if calibrate is not None else {}) | usual
    for name in prices or {}:
        if name not in devices:
            raise UserError(f"--price {name}: no such device; {allowed(name, devices)}")
    flops = sum(cell.flops for cell in space.cells)
    first = devices[next(iter(devices))]
    longest = sorted(((first.seconds(cell), cell.id) for cell in space.cells), reverse=True)
    whole = sum(seconds for seconds, _ in longest)
    return {
        "cells": [cell.describe() for cell in space.cells],
        "totals": {
            "cells": len(space.cells),
            "tokens": sum(cell.steps * cell.tokens_per_step for cell in space.cells),
            "flops": flops,
        },
        "devices": {name: _on(device, space, flops, (prices or {}).get(name)) for name, device in devices.items()},
        "design": space.design.said,
        "measure": measured(space),
        "most_expensive": [{"id": cell, "share": seconds / whole} for seconds, cell in longest[:5]],
    }


def _on(device: Device, space: Space, flops: float, price: float | None) -> dict[str, Any]:
    seconds = {cell.id: device.seconds(cell) for cell in space.cells}
    sizes: dict[str, list[float]] = {}
    for cell in space.cells:
        of_size = sizes.setdefault(cell.size.label, [0.0, 0.0])
        of_size[0] += cell.flops
        of_size[1] += seconds[cell.id]
    hours = sum(seconds.values()) / 3600
    return {
        "peak": device.peak,
        "hours": hours,
        "utilisation": flops / sum(seconds.values()) / device.peak,
        "utilisation_of_sizes": {size: done / took / device.peak for size, (done, took) in sizes.items()},
        "source": device.source,
    } | ({"dollars": hours * price} if price is not None else {})
