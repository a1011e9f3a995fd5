"""What the page is told of a store: where each cell stands, its numbers, and only what has changed."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cell_rows import write_trained, write_value
from tiny import TINY, make_cell

from raysweep.page.content import arrow
from raysweep.space.space import Space
from raysweep.store import Store, lock
from raysweep.store.schemas import CELLS, FAILURES, MEASURES, TRAJECTORIES
from raysweep.store.store import LIVE
from raysweep.sweep.runner import write_plan
from raysweep.watch import snapshot, watcher
from raysweep.watch.snapshot import Reader, Snapshot
from raysweep.watch.watcher import Verdicts, Watcher

SPACE = Space.model_validate(
    {
        "name": "watched",
        "cells": [make_cell(seed=seed, batch_size=batch) for batch in (4, 8) for seed in (1, 2, 3)],
        "evaluations": [{"task": "in_distribution"}],
        "measure": [{"of": "blocks.*.mlp.up", "metrics": ["stable_rank"]}],
    }
)
IDS = [cell.id for cell in SPACE.cells]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    write_plan(SPACE, store)
    return store


def finish(store: Store, place: int, loss: float, evaluated: bool = True) -> None:
    """The tables of a finished cell."""
    cell = SPACE.cells[place]
    write_trained(store, cell, {step: loss + 32 - step for step in (0, 16, 32)}, loss)
    if evaluated:
        write_value(store, cell, SPACE.evaluations[0], "in_distribution_loss", loss + 1, "nats")


def live(store: Store, place: int, steps: range) -> None:
    rows = [{"cell": IDS[place], "step": s, "tokens": 128 * s, "validation_loss": 9.0 - s} for s in steps]
    store.write_table(LIVE, rows, TRAJECTORIES)


def states(shown: Snapshot) -> list[str]:
    return list(shown.content.cells["state"])


def test_a_store_in_a_bucket_is_read_as_a_folder_is(bucket: tuple[Any, str]) -> None:
    store = Store(bucket[1])
    write_plan(SPACE, store)
    finish(store, 1, 3.0)
    reader = Reader(SPACE, store)
    assert states(reader.read()) == ["waiting", "done", *["waiting"] * 4]
    finish(store, 2, 4.0)
    shown = reader.read()
    assert states(shown) == ["waiting", "done", "done", *["waiting"] * 3]
    assert list(shown.content.cells["validation_loss"])[1:3] == [3.0, 4.0]


def test_every_cell_stands_where_it_stands(store: Store) -> None:
    finish(store, 0, 3.0)
    finish(store, 1, 3.5, evaluated=False)
    live(store, 2, range(3))
    failed = {"cell": IDS[3], "stage": "train", "error": "no room"}
    store.write_table(store.failure_file(IDS[3], "train"), [failed], FAILURES)
    running = {IDS[2]: {"step": 4, "steps": 32}, IDS[4]: {"starting": True}}
    told = {"running": running, "tokens_per_second": 1e4, "seconds_left": 90, "share": 0.996, "dashboard": "d"}
    with lock.Lock(store, lambda: told):
        time.sleep(lock.BEAT + 0.5)
        shown = Reader(SPACE, store).read()
    assert states(shown) == ["done", "stopped", "training", "failed", "starting", "waiting"]
    assert list(shown.content.cells["share"]) == [1, 1, 4 / 32, 0, 0, 0]
    assert shown.counts == {"done": 1, "training": 1, "starting": 1, "failed": 1, "stopped": 1, "waiting": 1}
    assert (shown.evaluations, shown.finished, shown.dashboard) == ({"planned": 6, "done": 1}, 1, "d")
    assert shown.failures == [(IDS[3], "train", "no room")]
    assert shown.pace.endswith(", 10k tokens/s, 99% of the tokens trained, about 1m30s left")
    # Of a cell in training the last report; of one that has not begun nothing.
    np.testing.assert_array_equal(
        shown.content.cells["validation_loss"].to_numpy(float), [3.0, 3.5, 7.0, np.nan, np.nan, np.nan]
    )
    assert shown.content.cells["in_distribution_loss"].dropna().to_dict() == {0: 4.0}
    # Seeds of one configuration share it.
    assert list(shown.content.cells["configuration"]) == [0, 0, 0, 1, 1, 1]
    settings = [column.name for column in shown.content.columns if column.kind == "setting"]
    assert settings == ["batch_size", "seed"]


def test_a_cell_in_training_keeps_the_peak_of_its_learning_rate_and_a_diverged_one_ends_where_it_did(
    store: Store,
) -> None:
    rows = [{"cell": IDS[2], "step": 30, "tokens": 30 * 128, "learning_rate": 1e-5, "validation_loss": np.inf}]
    store.write_table(LIVE, rows, TRAJECTORIES)
    cell = SPACE.cells[0]
    store.write_table(store.trajectory_file(cell.id), [{"cell": cell.id, "step": 3}], TRAJECTORIES)
    row = cell.describe() | {"status": "diverged", "steps_trained": 3}
    store.write_table(store.cell_file(cell.id), [row], CELLS)
    shown = Reader(SPACE, store).read()
    assert states(shown)[0] == "diverged"
    assert list(shown.content.cells["step"][[0, 2]]) == [3, 30]
    assert list(shown.content.cells["share"][[0, 2]]) == [3 / 32, 30 / 32]
    assert "learning_rate" not in {column.name for column in shown.content.columns}
    # What overflowed was not measured.
    sent = pa.ipc.open_stream(arrow(shown.content.cells, shown.content.measured)).read_all().to_pandas()
    assert sent["validation_loss"].isna().all()


def test_seeds_share_a_configuration_only_where_all_else_is_equal() -> None:
    """Of two rates, two fractions of one corpus, two numbers of reports: eight configurations of two seeds."""
    space = Space.model_validate(
        {
            "name": "several",
            "cells": [
                make_cell(seed=seed, learning_rate=rate, reports=reports, corpus=TINY | {"fraction": fraction})
                for rate in (0.01, 0.02) for fraction in (0.02, 0.03) for reports in (4, 8) for seed in (1, 2)
            ],
        }
    )  # fmt: skip
    shown = Reader(space, Store("nowhere")).planned()
    assert list(shown.content.cells["configuration"]) == [k // 2 for k in range(16)]
    kinds = {column.name: (column.kind, column.number) for column in shown.content.columns}
    assert kinds["learning_rate"] == ("setting", True)


def test_switches_are_words_and_what_the_rule_makes_of_the_size_is_no_setting() -> None:
    cells = [make_cell(size={"width": w}, learning_rate=None, weight_tying=t) for w in (8, 16) for t in (True, False)]
    shown = Reader(Space.model_validate({"name": "tied", "cells": cells}), Store("nowhere")).planned()
    kinds = {column.name: (column.kind, column.number) for column in shown.content.columns}
    assert kinds["weight_tying"] == ("setting", False)
    assert list(shown.content.cells["weight_tying"]) == ["yes", "no", "yes", "no"]
    assert kinds["learning_rate"] == ("derived", True)


def test_a_driver_that_says_nothing_is_not_believed(store: Store) -> None:
    running = {IDS[0]: {"step": 4, "steps": 32}}
    with lock.Lock(store, lambda: {"running": running}):
        time.sleep(lock.BEAT + 0.5)
        record = json.loads(store.read(lock.FILE) or b"")
    store.write(lock.FILE, json.dumps(record | {"machine": "another", "host": "node7"}).encode())
    path = Path(store.root) / lock.FILE
    assert states(Reader(SPACE, store).read())[0] == "training"
    os.utime(path, (time.time() - 600, time.time() - 600))
    shown = Reader(SPACE, store).read()
    assert states(shown)[0] == "waiting"
    assert shown.pace == "the sweep on node7 has said nothing for 10m00s: it may be gone, or its machine away"


def test_only_rows_that_changed_have_a_new_version(store: Store) -> None:
    reader = Reader(SPACE, store)
    first = reader.read()
    assert reader.read().version == first.version
    live(store, 2, range(3))
    second = reader.read()
    # The first losses are new columns, which every row has.
    assert second.version > first.version
    assert set(second.content.cells["changed"]) == {second.version}
    live(store, 2, range(5))
    third = reader.read()
    assert list(np.flatnonzero(third.content.cells["changed"] == third.version)) == [2]
    assert list(third.content.cells["changed"][[0, 1, 3, 4, 5]]) == [second.version] * 5


def test_curves_are_of_the_store_or_of_the_cells_in_training(store: Store) -> None:
    finish(store, 0, 3.0)
    live(store, 2, range(4))
    measured = [
        {
            "cell": IDS[0],
            "step": s,
            "matrix": "blocks.0.mlp.up",
            "metric": "stable_rank",
            "value": float(s),
            "unit": "",
            "settings": "",
        }
        for s in (0, 32)
    ]
    # Of something that is not asked for, whose name sorts last.
    measured += [row | {"settings": "zzz", "value": -1.0} for row in measured]
    store.write_table(store.measures_file(IDS[0]), measured, MEASURES)
    reader = Reader(SPACE, store)
    reader.read()
    found = reader.curves("validation_loss", [0, 1, 2])
    assert found[found["cell"] == 0]["value"].tolist() == [35.0, 19.0, 3.0]
    assert found[found["cell"] == 2]["value"].tolist() == [9.0, 8.0, 7.0, 6.0]
    assert found[found["cell"] == 2]["tokens"].tolist() == [0, 128, 256, 384]
    assert set(found["cell"]) == {0, 2}
    assert "stable_rank_blocks_0_mlp_up" in reader.curve_columns
    of_block = reader.curves("stable_rank_blocks_0_mlp_up", [0])
    assert of_block["value"].dropna().tolist() == [0.0, 32.0]
    assert len(reader.curves("validation_loss", [1])) == 0


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "READ_EVERY", 0.05)
    monkeypatch.setattr(watcher, "_SHARE_OF_READING", 1.0)


def wait(condition: "threading.Condition | object", seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("fast")
def test_a_store_that_goes_away_and_comes_back(store: Store, tmp_path: Path) -> None:
    finish(store, 0, 3.0)
    with Watcher(Reader(SPACE, store), False, "here", ["nothing"], "again") as watched:
        wait(lambda: watched.snapshot.counts.get("done") == 1)
        os.rename(store.root, tmp_path / "elsewhere")
        wait(lambda: watched.problem)
        assert "is not there" in watched.problem
        assert "What was read before is shown" in watched.problem
        assert watched.state("")["counts"]["done"] == 1
        os.rename(tmp_path / "elsewhere", store.root)
        finish(store, 1, 3.2)
        wait(lambda: watched.snapshot.counts.get("done") == 2)
        assert watched.problem == ""


def test_a_store_that_goes_away_while_it_is_read_is_not_taken_for_an_empty_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(store, 0, 3.0)
    reader = Reader(SPACE, store)
    assert states(reader.read())[0] == "done"
    read = snapshot.survey

    def away(*arguments: Any) -> Any:
        os.rename(store.root, tmp_path / "elsewhere")
        return read(*arguments)

    monkeypatch.setattr(snapshot, "survey", away)
    with pytest.raises(FileNotFoundError, match="is not there"):
        reader.read()


@pytest.mark.usefixtures("fast")
def test_a_store_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "later"))
    with Watcher(Reader(SPACE, store), False, "here", ["nothing"], "again") as watched:
        wait(lambda: watched.read_at is not None)
        assert watched.snapshot.counts == {"waiting": 6}
        assert watched.snapshot.pace == "no sweep has begun in this store"
        assert not (tmp_path / "later").exists()
        write_plan(SPACE, store)
        finish(store, 4, 2.0)
        wait(lambda: watched.snapshot.counts.get("done") == 1)


def test_a_damaged_live_file_is_left_out(store: Store) -> None:
    live(store, 2, range(3))
    (Path(store.root) / LIVE).write_bytes(b"PAR1 and no more")
    assert states(Reader(SPACE, store).read()) == ["waiting"] * 6


@pytest.fixture(scope="module")
def computed(example_folder: Path) -> Iterator[Verdicts]:
    """Of few of the example's cells, so that it is quick."""
    folder = example_folder / "few"
    shutil.copytree(example_folder / "store", folder)
    for file in sorted((folder / "cells").glob("*.parquet"))[12:]:
        file.unlink()
    verdicts = Verdicts([str(example_folder / "simulated.yaml"), str(folder)])
    verdicts.consider(12, 108)
    assert verdicts.said == "Computed now from 12 finished cells, which takes a minute or more."
    wait(lambda: verdicts.stamp == 1, 240)
    yield verdicts
    verdicts.end()


def test_verdicts_say_of_how_many_cells_they_are(computed: Verdicts) -> None:
    assert computed.said.startswith("From 12 of 108 cells so far: they may change")
    assert computed.html.count('<tr class="claim">') == 21
    assert '<h2 id="effects1">' in computed.html


def test_verdicts_are_computed_again_when_enough_more_is_finished(computed: Verdicts) -> None:
    computed._not_before = 0.0
    for finished in (12, 13):
        computed.consider(finished, 108)
        assert computed._process is None, finished
    computed.consider(14, 108)
    assert computed._process is not None
    assert "Shown: from 12 of 108 cells" in computed.said
    computed.end()


def test_too_little_for_verdicts_is_said(tmp_path: Path) -> None:
    verdicts = Verdicts([str(tmp_path / "none.yaml"), str(tmp_path)])
    verdicts.consider(1, 6)
    wait(lambda: verdicts.stamp == 1, 60)
    assert verdicts.html == ""
    assert verdicts.said.startswith("From 1 finished cell nothing can be said yet: ")
    assert "none.yaml" in verdicts.said
