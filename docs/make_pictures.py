"""Takes the pictures of the documentation anew, of a real run of the demo: `make pictures`, ten minutes.

live-page.png while the demo runs, demo-results.png when it is done, report-claims.png and report-explore.png of a report.
Chromium must be there. With --running SPACE STORE the first is of a sweep that runs already.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RAYSWEEP = [sys.executable, "-m", "raysweep.cli"]

# When the page of a running sweep shows the most.
DONE, TRAINING = 4, 2


def main() -> None:
    from playwright.sync_api import sync_playwright

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--running", nargs=2, metavar=("SPACE", "STORE"), help="a sweep that runs already")
    given = options.parse_args()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        path = next(
            p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome") if Path(p).exists()
        )
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.getuid() == 0 else [])
        if given.running:
            space, store = given.running
            live(browser, space, store)
        else:
            space, store = str(ROOT / "search_spaces" / "demo.yaml"), f"{folder}/demo"
            sweep = subprocess.Popen([*RAYSWEEP, "run", space, "--store", store], stdout=subprocess.DEVNULL)
            live(browser, space, store)
            if sweep.wait():
                sys.exit("the demo failed: no pictures of its results")
            results(browser, space, store)
        report(browser, Path(folder))
        browser.close()


@contextmanager
def watching(space: str, store: str) -> Iterator[str]:
    """The address of the live page."""
    page = subprocess.Popen([*RAYSWEEP, "watch", space, "--store", store], stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout is not None
        yield page.stdout.readline().split()[-1]
    finally:
        page.terminate()


def live(browser: Any, space: str, store: str) -> None:
    """The page when some cells are done and some train."""
    while not (Path(store) / "plan.parquet").exists():
        time.sleep(1)
    with watching(space, store) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 1330})
        page.goto(address)
        page.wait_for_function(
            f"""() => {{
                const text = document.getElementById('counts').textContent;
                const count = word => Number((text.match(`(\\\\d+) ${{word}}`) ?? [0, 0])[1]);
                return count('done') >= {DONE} && count('training') >= {TRAINING};
            }}""",
            timeout=1_200_000,
        )
        # Where this machine has it is nobody's business.
        page.evaluate("store => { document.querySelector('p.quiet').textContent = store; }", f"runs/{Path(store).name}")
        page.locator("#curves").scroll_into_view_if_needed()
        # A machine that trains draws slowly.
        page.wait_for_function("(document.getElementById('curves').data?.length ?? 0) > 0", timeout=180_000)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(1500)
        page.screenshot(path=str(DOCS / "live-page.png"))
        page.close()


def results(browser: Any, space: str, store: str) -> None:
    """What `raysweep results` prints, as a terminal shows it."""
    from rich.console import Console
    from rich.text import Text

    printed = subprocess.run(
        [*RAYSWEEP, "results", space, "--store", store], capture_output=True, text=True, check=True,
        env=os.environ | {"FORCE_COLOR": "1"},
    ).stdout  # fmt: skip
    lines = [line for line in printed.splitlines() if "--output" not in line]
    console = Console(record=True, width=200, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(Text.from_ansi("\n".join(lines).strip()), soft_wrap=True)
    body = re.sub(r"^.*<body>|</body>.*$", "", console.export_html(inline_styles=True), flags=re.DOTALL)
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    page.set_content(f"<style>pre {{ font: 13px monospace; padding: 12px; display: inline-block }}</style>{body}")
    page.locator("pre").screenshot(path=str(DOCS / "demo-results.png"))
    page.close()


def report(browser: Any, folder: Path) -> None:
    """The scorecard and the scatter plot of a report of simulated cells."""
    made = folder / "example"
    subprocess.run(
        [sys.executable, "-m", "raysweep.analysis.example", str(made)], check=True, stdout=subprocess.DEVNULL
    )
    command = [
        "analyze",
        str(made / "simulated.yaml"),
        "--store",
        str(made / "store"),
        "--output",
        str(made / "report"),
    ]
    subprocess.run([*RAYSWEEP, *command], check=True, stdout=subprocess.DEVNULL)
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto((made / "report" / "report.html").as_uri())
    page.wait_for_selector("#scorecard tr.claim")
    box = page.locator("#scorecard").bounding_box()
    clip = {name: box[name] for name in ("x", "y", "width")} | {"height": min(box["height"], 832)}
    page.screenshot(path=str(DOCS / "report-claims.png"), full_page=True, clip=clip)
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_selector("#scatter .point, #scatter canvas")
    page.wait_for_timeout(1000)
    page.locator("#scatter").screenshot(path=str(DOCS / "report-explore.png"))
    page.close()


if __name__ == "__main__":
    main()
