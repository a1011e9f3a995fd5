"""The page in a real browser: it keeps what was chosen, and beside a sweep that really runs (slow) it grows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cell_rows import write_trained, write_value
from serving import ROOT, watching
from tiny import make_cell

from raysweep import load
from raysweep.store import Store
from raysweep.store.schemas import FAILURES
from raysweep.sweep.runner import write_plan

TASK = '''
import time

from raysweep.evaluation.task import Metric


def slowly(subject):
    """Fails for one cell, and takes a while for the others."""
    if subject.cell.seed == 2:
        raise RuntimeError("no such <thing> & nothing else")
    time.sleep(1)
    return [Metric("half", 0.5, "")]
'''


def opened(browser: Any, url: str, **more: Any) -> Any:
    page = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | more))
    page.said = []
    page.on("pageerror", lambda error: page.said.append(str(error)))
    # Software in place of a GPU is slow, and Chromium says so.
    page.on(
        "console", lambda told: page.said.extend([told.text] * (told.type == "error" and "GPU stall" not in told.text))
    )
    page.goto(url)
    return page


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").write_text(TASK)
    space = {
        "name": "watched",
        "base": make_cell(tokens=131072, reports=60).model_dump(exclude={"batch_size", "seed"}) | {"batch_size": 4},
        "cross": {"seed": [1, 2], "weight_decay": [0.1, 0.3]},
        "code": ["own"],
        "evaluations": [{"task": "own:slowly"}],
    }
    (folder / "watched.yaml").write_text(yaml.safe_dump(space))
    return folder


def count(page: Any, expression: str) -> int:
    return int(page.evaluate(expression))


@pytest.mark.slow
@pytest.mark.usefixtures("corpus")
def test_a_running_sweep_shows_itself(browser: Any, study: Path) -> None:
    sweep = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "run", "watched.yaml", "--store", "running", "--watch"], cwd=study,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": ROOT},
    )  # fmt: skip
    try:
        assert sweep.stdout is not None
        said = sweep.stdout.readline()
        assert said.startswith("the sweep on a page: http://127.0.0.1:"), said
        url = said.split()[-1]
        page = opened(browser, url)
        page.wait_for_selector("#cells tbody tr")
        assert page.locator("#cells tbody tr").count() == 4

        # A filter, before anything has been trained.
        page.click("#add_filter")
        page.select_option("#filters li select >> nth=0", "weight_decay")
        page.fill("#filters li input", "0.3")
        page.wait_for_function("document.getElementById('shown').textContent == '2 of 4 cells'")
        page.wait_for_selector("#cells .state.training", timeout=120_000)
        page.locator("#curves").scroll_into_view_if_needed()

        # A curve grows while the page is left alone.
        points = "document.getElementById('curves').data?.reduce((sum, line) => sum + line.x.length, 0) ?? 0"
        page.wait_for_function(f"({points}) > 5", timeout=120_000)
        before, where = count(page, points), page.evaluate("scrollY")
        page.wait_for_function(f"({points}) > {before + 5}", timeout=120_000)
        assert page.evaluate("scrollY") == where

        # The filter held while rows changed, and its box kept what was typed.
        page.wait_for_function("/[1-9]\\d* done/.test(document.getElementById('counts').textContent)", timeout=240_000)
        assert page.locator("#shown").text_content() == "2 of 4 cells"
        assert page.input_value("#filters li input") == "0.3"
        page.reload()
        page.wait_for_function("document.getElementById('shown').textContent == '2 of 4 cells'")

        # A cell that failed says why, and what tries it again; what it says is text and nothing else.
        page.wait_for_selector("#failures tbody tr", timeout=240_000)
        assert "no such <thing> & nothing else" in page.locator("#failures").text_content()
        assert page.locator("#retry").text_content() == f"raysweep run watched.yaml --store {study / 'running'}"

        printed, _ = sweep.communicate(timeout=300)
        assert sweep.returncode == 1
        assert "4 of 4 cells done, 2 of 4 evaluations done" in printed
        # The page went with the sweep, and says so.
        page.wait_for_function(
            "document.getElementById('read').textContent.includes('does not answer')", timeout=30_000
        )
        assert [text for text in page.said if "ERR_CONNECTION_REFUSED" not in text] == []
        page.close()
    finally:
        sweep.kill()
        sweep.wait()


@pytest.fixture(scope="module")
def address(study: Path) -> Iterator[str]:
    """The page of what such a sweep leaves behind, with the tables written here."""
    space, store = load(study / "watched.yaml"), Store(str(study / "store"))
    write_plan(space, store)
    (task,) = space.evaluations
    for cell in space.cells:
        losses = {step: 6 - step / cell.steps + cell.seed / 10 for step in range(0, cell.steps + 1, 16)}
        write_trained(store, cell, losses, losses[cell.steps])
        if cell.seed == 2:
            failed = {"cell": cell.id, "stage": task.label, "error": "no such <thing> & nothing else"}
            store.write_table(store.failure_file(cell.id, task.label), [failed], FAILURES)
        else:
            write_value(store, cell, task, "slowly_half", 0.5, "")
    with watching("watched.yaml", "--store", "store", cwd=study) as url:
        yield url


def test_the_page_has_all_of_a_sweep(browser: Any, study: Path, address: str) -> None:
    page = opened(browser, address)
    page.wait_for_function(
        "document.getElementById('counts').textContent == '2 done, 2 failed of 4 cells; 2 of 4 evaluations'"
    )
    assert "nothing runs on this store now" in page.locator("#pace").text_content()
    assert "no such <thing> & nothing else" in page.locator("#failures").text_content()
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('#curves .legendtext').length == 2")
    page.check("#bands")
    page.wait_for_function("document.getElementById('curves').data.some(trace => trace.fill === 'toself')")
    assert "from the lowest seed to the highest" in page.locator("#curves_said").text_content()
    page.locator("#scatter").scroll_into_view_if_needed()
    page.select_option("#x", "slowly_half")
    page.wait_for_function("document.querySelectorAll('#scatter .point').length == 2")
    assert page.locator("#scatter_said").text_content() == "2 cells have no such numbers yet. "
    assert page.said == []
    page.close()


def test_a_store_that_goes_away_is_said_and_its_return_seen(browser: Any, study: Path, address: str) -> None:
    page = opened(browser, address)
    page.wait_for_selector("#cells .state.done")
    os.rename(study / "store", study / "elsewhere")
    page.wait_for_selector("#problem:not([hidden])", timeout=30_000)
    assert "is not there" in page.locator("#problem").text_content()
    assert page.locator("#cells .state.done").count() == 2
    os.rename(study / "elsewhere", study / "store")
    page.wait_for_selector("#problem", state="hidden", timeout=30_000)
    assert page.said == []
    page.close()


def test_it_can_be_used_by_keyboard(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.wait_for_selector("#cells tbody tr")
    page.focus("#cells thead th:nth-child(2) button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#cells thead th:nth-child(2)[aria-sort=ascending]")
    # The focus stays where it was, though the table was drawn anew.
    assert page.evaluate("document.activeElement.dataset.key") == "sort state"
    page.focus("#cells tbody tr:first-child button")
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('cell').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('cell').open")
    # Every control has a name.
    nameless = """[...document.querySelectorAll('button, select, input')].filter(element =>
        !(element.textContent.trim() && element.tagName == 'BUTTON') && !element.ariaLabel && !element.labels?.length)"""
    assert page.evaluate(f"{nameless}.map(element => element.outerHTML)") == []
    assert page.said == []
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_wide_and_narrow_light_and_dark(browser: Any, address: str, width: int, scheme: Any) -> None:
    page = opened(browser, address, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.wait_for_selector("#cells tbody tr")
    # Nothing but tables scrolls sideways.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrast = """selector => {
        const part = document.querySelector(selector), ink = getComputedStyle(part).color;
        const paper = getComputedStyle(document.body).backgroundColor;
        const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => { v = Number(v) / 255;
            return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const [high, low] = [light(ink), light(paper)].sort((a, b) => b - a);
        return (high + 0.05) / (low + 0.05); }"""
    # What WCAG 2.2 asks of text (1.4.3).
    for selector in ("h1", "#read", "#cells td", "a", "button.link"):
        assert page.evaluate(contrast, selector) >= 4.5, selector
    page.close()


def test_the_page_of_a_run_ends_with_it_however_it_ends(study: Path) -> None:
    sweep = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "run", "watched.yaml", "--store", "killed", "--watch"], cwd=study,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"PYTHONPATH": ROOT},
    )  # fmt: skip
    assert sweep.stdout is not None
    sweep.stdout.readline()
    pages = [p for p in psutil.Process(sweep.pid).children() if "watch" in p.cmdline()]
    assert len(pages) == 1
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    deadline = time.monotonic() + 20
    while pages[0].is_running() and pages[0].status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
