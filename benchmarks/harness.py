"""What every benchmark shares: taking turns, ratios with their spread, the machine, and the answer as a table or JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """One comparison: the median over rounds of peer's cost / subject's cost, and its extremes."""

    case: str
    subject: str
    peer: str
    ratio: float
    low: float
    high: float
    unit: str


def in_turn(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; every round runs all of them, in an order that rotates.

    One that returns a float has timed itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            own = contestants[name]()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - begun)
    return seconds


def ratios(case: str, subject: str, costs: dict[str, list[float]], unit: str) -> list[Result]:
    """The subject against every other contestant, round by round."""
    results = []
    for peer, theirs in costs.items():
        if peer != subject:
            each = sorted(t / o for t, o in zip(theirs, costs[subject], strict=True))
            results.append(Result(case, subject, peer, statistics.median(each), each[0], each[-1], unit))
    return results


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = ("torch", "ray", "ai2-olmo", "transformers", "numpy", "scipy")
    return {
        "processor": model, "cores": os.cpu_count(), "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }  # fmt: skip


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each contestant (default {rounds})")
    return parser


def show(results: list[Result], as_json: bool, **more: Any) -> None:
    """Print the answer; `more` stands beside the results."""
    if as_json:
        print(json.dumps({"results": [asdict(r) for r in results], "machine": machine(), **more}, indent=1))
        return
    for r in results:
        print(f"{r.case:28} {r.subject} / {r.peer}: {r.ratio:.2f} ({r.low:.2f} to {r.high:.2f}) {r.unit}")
    for name, value in more.items():
        print(f"{name}: {json.dumps(value)}")
