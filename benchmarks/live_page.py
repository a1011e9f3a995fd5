"""What `raysweep watch` takes at 10,000 cells, in a real browser, beside the same at 100: time, bytes, and an update.

Stores are filled with made-up rows of cells of three widths and ten weight decays. The page is opened as often as `--repeat`
says; medians are printed. It needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine
from raysweep.space import read as spaces
from raysweep.space.cell import Cell
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store.schemas import CELLS, TRAJECTORIES
from raysweep.store.store import LIVE, PLANNED
from raysweep.sweep.runner import write_plan

REPORTS = 26


def space_file(folder: Path, cells: int) -> Path:
    document = {
        "name": f"page{cells}",
        "base": {
            "size": "4M", "corpus": {"name": "installed", "tokenizer": "bpe", "vocabulary": 4096}, "tokens": 10_000_000,
            "batch_size": 8, "sequence_length": 128,
        },
        "cross": {"seed": list(range(cells // 20)), "weight_decay": [k / 10 for k in range(10)], "size": ["4M", "8M"]},
    }  # fmt: skip
    file = folder / f"page{cells}.yaml"
    file.write_text(json.dumps(document))
    return file


def rows_of(cell: Cell, place: int) -> list[dict[str, Any]]:
    """Rows over training, made up: a loss that falls, and geometry around it."""
    random = np.random.default_rng(place)
    steps = np.linspace(0, cell.steps, REPORTS).astype(int)
    ends = 3 + random.normal(0, 0.1) + cell.weight_decay
    return [
        {
            "cell": cell.id, "step": int(step), "tokens": int(step) * cell.tokens_per_step,
            "validation_loss": float(ends + 5 * np.exp(-4 * step / cell.steps)), "train_loss": float(ends),
            "learning_rate": 0.01, "gradient_norm": 1.0,
        } | {name: float(random.uniform()) for name in TRAJECTORIES.names if name.endswith("_W")}
        for step in steps
    ]  # fmt: skip


def fill(store: Store, space: Space) -> None:
    """All cells are finished but the last, which is in training."""
    write_plan(space, store)

    def one(numbered: tuple[int, Cell]) -> None:
        place, cell = numbered
        rows = rows_of(cell, place)
        store.write_table(store.trajectory_file(cell.id), rows, TRAJECTORIES)
        last = {key: value for key, value in rows[-1].items() if key in CELLS.names and key != "tokens"}
        row = cell.describe() | last | {"status": "done", "steps_trained": cell.steps}
        store.write_table(store.cell_file(cell.id), [row], CELLS)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, enumerate(space.cells[:-1])))


# The longest that the page did not answer, and how often it did not for more than 50 ms.
_LONG_TASKS = """() => { window.long = []; new PerformanceObserver(list => {
    for (const entry of list.getEntries()) window.long.push(entry.duration); }).observe({ entryTypes: ["longtask"] }); }"""


def look(browser: Any, url: str, store: Store, space: Space) -> dict[str, float]:
    """Open the page once, filter it, and let one cell report."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    loaded: dict[str, int] = {}
    cells = len(space.cells)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    urls: dict[str, str] = {}
    network.on("Network.responseReceived", lambda event: urls.update({event["requestId"]: event["response"]["url"]}))
    network.on(
        "Network.loadingFinished",
        lambda event: loaded.update({event["requestId"]: int(event["encodedDataLength"])}),
    )
    began = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_selector("#cells tbody tr")
    rows = time.monotonic() - began
    page.wait_for_function(
        f"document.getElementById('counts').textContent.includes('{cells - 1:,} done')", timeout=600_000
    )
    known = time.monotonic() - began
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_selector("#curves .main-svg")
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_selector("#scatter .main-svg")
    page.wait_for_timeout(1000)
    at_first = sum(loaded.values())
    drawn = sum(size for request, size in loaded.items() if "plotly" not in urls.get(request, ""))
    page.evaluate(_LONG_TASKS)
    page.click("#add_filter")
    page.select_option("#filters li:last-child select >> nth=0", "weight_decay")
    began = time.monotonic()
    page.fill("#filters li:last-child input", "0.3")
    page.wait_for_function(f"document.getElementById('shown').textContent.startsWith('{cells // 10:,} of')")
    filtered = time.monotonic() - began
    version = page.evaluate("sweep.version")
    before, reported = sum(loaded.values()), rows_of(space.cells[-1], 1)
    store.write_table(LIVE, reported[: np.random.default_rng().integers(3, 20)], TRAJECTORIES)
    page.wait_for_function(f"sweep.rows.changed[{cells - 1}] > {version}", timeout=120_000)
    page.wait_for_timeout(3000)
    update = sum(loaded.values()) - before
    longest = max(page.evaluate("window.long"), default=0.0)
    store.delete(LIVE)
    page.close()
    return {
        "rows of the table, s": rows, "all numbers, s": known, "bytes, plotly.js and all": at_first,
        "bytes without plotly.js": drawn, "a filter, s": filtered, "bytes of an update with one report": update,
        "longest that it did not answer, s": longest / 1000,
    }  # fmt: skip


def measure(browser: Any, folder: Path, cells: int, repeat: int) -> dict[str, float]:
    space = spaces.load(space_file(folder, cells))
    store = Store(str(folder / f"store{cells}"))
    if store.read(PLANNED) is None:
        fill(store, space)
    command = [
        sys.executable,
        "-m",
        "raysweep.cli",
        "watch",
        str(folder / f"page{cells}.yaml"),
        "--store",
        store.location,
    ]
    found = []
    for _ in range(repeat):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = re.search(r"http://\S+", process.stdout.readline())
                assert address is not None
                found.append(look(browser, address[0], store, space))
            finally:
                process.terminate()
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--cells", type=int, default=10_000, help="cells of the sweep (default 10,000)")
    parser.add_argument("--repeat", type=int, default=3, help="how often each page is opened (default 3)")
    parser.add_argument(
        "--folder", type=Path, help="where the stores are made, or were (default: a folder that is deleted)"
    )
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on this machine: `apt install chromium`")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        few, many = (measure(browser, folder, cells, options.repeat) for cells in (100, options.cells))
        browser.close()
    answer = {name: {"100 cells": few[name], f"{options.cells:,} cells": many[name]} for name in few}
    if options.json:
        print(json.dumps({"machine": machine(), "figures": answer}, indent=1))
        return
    print(f"{machine()}; medians of {options.repeat}")
    print(f"{'':40}{'100 cells':>14}{f'{options.cells:,} cells':>16}{'ratio':>8}")
    for name in few:
        ratio = many[name] / few[name] if few[name] else float("nan")
        print(f"{name:40}{few[name]:14,.6g}{many[name]:16,.6g}{ratio:8.2f}")


if __name__ == "__main__":
    main()
