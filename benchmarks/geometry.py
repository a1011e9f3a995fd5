"""All geometry of an unembedding against the textbook way, and its share of a training run.

The textbook way, in float64 as well: an SVD of the whole matrix for the effective rank and the spectral norm, the cosine of
every pair of rows by blocks, and the partition function of one eigenvector after the other. Both answers must agree to 1e-9.
`training` is the time that the reports of a cell of the demo spend on geometry, over the time of its training.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import arguments, in_turn, ratios, show
from raysweep.corpora.build import open_corpus
from raysweep.model import geometry
from raysweep.space import read as space
from raysweep.training.run import Run

# name -> rows, columns.
CASES = {"50304 x 768": (50304, 768), "50304 x 64": (50304, 64)}
OURS, TEXTBOOK = "raysweep", "textbook"
BLOCK = 2048


def weights(rows: int, columns: int) -> torch.Tensor:
    """A matrix with a spectrum that falls and rows that share a direction, as trained unembeddings have them."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, -2, columns)
    around = 0.1 * torch.randn(rows, columns, generator=generator) * spectrum
    return around + 0.02 * torch.randn(columns, generator=generator)


def textbook(matrix: torch.Tensor) -> dict[str, float]:
    w = matrix.double()
    singular_values = torch.linalg.svdvals(w)
    share = singular_values / singular_values.sum()
    unit = w / w.norm(dim=1, keepdim=True)
    total = sum(float((rows @ unit.T).sum()) for rows in unit.split(BLOCK))
    n = len(w)
    _, vectors = torch.linalg.eigh(w.T @ w)
    positive, negative = [], []
    for a in vectors.T:
        a = a * a[a.abs().argmax()].sign()
        product = w @ a
        positive.append(float(torch.exp(product).sum()))
        negative.append(float(torch.exp(-product).sum()))
    return {
        "effective_rank": math.exp(-float((share * share.log()).sum())) / w.shape[1],
        "cosine": (total - n) / (n * (n - 1)),
        "isotropy": min(positive) / max(positive),
        "isotropy_symmetric": min(positive + negative) / max(positive + negative),
        "spectral_norm": float(singular_values[0]),
    }


def compare(matrix: torch.Tensor, rounds: int) -> tuple[dict[str, list[float]], dict[str, float], dict[str, float]]:
    """Seconds of both ways in each round, and their answers."""
    answers: dict[str, dict[str, float]] = {}
    seconds = in_turn(
        {
            OURS: lambda: answers.update(ours=geometry.measure(matrix)),
            TEXTBOOK: lambda: answers.update(theirs=textbook(matrix)),
        },
        rounds,
    )
    return seconds, answers["ours"], answers["theirs"]


def share_of_training() -> dict[str, Any]:
    """The widest cell of the demo, trained here with every call of `geometry.measure` timed."""
    demo = space.load(str(Path(__file__).parent.parent / "search_spaces" / "demo.yaml"))
    cell = max(demo.cells, key=lambda cell: cell.size.width)
    spent = 0.0
    measure = geometry.measure

    def timed(matrix: torch.Tensor) -> dict[str, float]:
        nonlocal spent
        begun = time.perf_counter()
        try:
            return measure(matrix)
        finally:
            spent += time.perf_counter() - begun

    run = Run(cell, open_corpus(cell.corpus))
    geometry.measure = timed
    try:
        begun = time.perf_counter()
        reports = sum(1 for row in run.rows() if row)
        whole = time.perf_counter() - begun
    finally:
        geometry.measure = measure
    return {"cell": cell.id, "reports": reports, "seconds": round(whole, 2), "share": round(spent / whole, 5)}


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--case", action="append", choices=[*CASES, "training"], help="only this case; may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of both (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results, details = [], {}
    for case in options.case or [*CASES, "training"]:
        if case == "training":
            details[case] = share_of_training()
            continue
        seconds, ours, theirs = compare(weights(*CASES[case]), options.rounds)
        apart = max(abs(ours[name] - theirs[name]) / max(1e-300, abs(theirs[name])) for name in theirs)
        if apart > 1e-9:
            raise SystemExit(f"{case}: the two ways are {apart:.1e} apart: {ours}, {theirs}")
        results += ratios(case, OURS, seconds, "x time")
        details[case] = {
            "seconds": {name: round(sorted(s)[len(s) // 2], 3) for name, s in seconds.items()},
            "largest relative difference": apart,
        }
    show(results, options.json, threads=options.threads, details=details)


if __name__ == "__main__":
    main()
