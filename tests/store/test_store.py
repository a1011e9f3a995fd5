"""Atomic writes, tables that come back as they were, and what is damaged set aside."""

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import make_cell

from raysweep.cli.messages import show_hours
from raysweep.errors import StoreError, UserError
from raysweep.evaluation.in_distribution import Settings
from raysweep.space.space import Space
from raysweep.store import Store, corpora_record
from raysweep.store.filesystem import open_filesystem
from raysweep.store.results import results
from raysweep.store.schemas import CELLS, EVALUATIONS, TRAJECTORIES
from raysweep.store.tables import checksum
from raysweep.sweep.cell_tables import write_timing

ROW: dict[str, Any] = {"cell": "a", "step": 1, "tokens": 128, "train_loss": 5.0, "validation_loss": math.nan}


def finish(store: Store, cell: Any, **values: Any) -> None:
    """The rows of a finished cell, as a trial writes them."""
    store.write_table(store.trajectory_file(cell.id), [ROW | {"cell": cell.id}], TRAJECTORIES)
    store.write_table(store.cell_file(cell.id), [cell.describe() | {"status": "done"} | values], CELLS)


def test_tables_come_back_and_carry_units(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    path = store.trajectory_file("a")
    store.write_table(path, [ROW], TRAJECTORIES)
    read = store.read_rows(path, TRAJECTORIES)
    assert read is not None
    assert read[0]["train_loss"] == 5.0
    assert math.isnan(read[0]["validation_loss"])
    assert read[0]["gradient_norm"] is None
    field = pq.read_schema(tmp_path / "store" / path).field("validation_loss")
    assert field.metadata == {b"unit": b"nats per token"}
    assert store.read_rows(store.trajectory_file("b"), TRAJECTORIES) is None


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("x", "y"):
        Store(str(tmp_path / name)).write_table("t.parquet", [ROW], TRAJECTORIES)
    assert (tmp_path / "x/t.parquet").read_bytes() == (tmp_path / "y/t.parquet").read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "other"])
def test_a_damaged_table_counts_as_missing_and_is_set_aside(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path))
    path = tmp_path / store.trajectory_file("a")
    store.write_table(store.trajectory_file("a"), [ROW] * 50, TRAJECTORIES)
    content = path.read_bytes()
    damaged = {
        "truncate": content[: len(content) // 2],
        "empty": b"",
        "flip": content[:40] + bytes([content[40] ^ 0xFF]) + content[41:],
        "other": b"not a table",
    }[damage]
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert store.read_table(store.trajectory_file("a"), TRAJECTORIES) is None
    assert "trajectories/a.parquet is damaged" in caplog.text
    aside = list(path.parent.glob("a.parquet.damaged-*"))
    assert [file.read_bytes() for file in aside] == [damaged]
    assert not path.exists()


def test_a_cell_without_its_trajectory_is_not_finished(tmp_path: Path) -> None:
    store, cell = Store(str(tmp_path)), make_cell()
    finish(store, cell)
    assert store.cell_row(cell.id) is not None
    (tmp_path / store.trajectory_file(cell.id)).unlink()
    assert store.cell_row(cell.id) is None


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write("a/b", b"old")

    def fail(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(
        UserError, match="cannot be written: No space left on device; nothing that was finished is lost"
    ):
        store.write("a/b", b"new")
    assert (tmp_path / "a/b").read_bytes() == b"old"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b"]


def test_a_full_disk(tmp_path: Path) -> None:
    """On a real file system of one megabyte, where root may mount one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a file system here")
    try:
        store = Store(str(tmp_path))
        store.write_table("t.parquet", [ROW], TRAJECTORIES)
        with pytest.raises(UserError, match="No space left on device"):
            store.probe()
        assert store.read_rows("t.parquet", TRAJECTORIES) is not None
        assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        Store(str(tmp_path / "file" / "store")).probe()


def test_a_store_that_its_user_may_not_write(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can become somebody else")
    code = "import os, sys; from raysweep.store import Store; os.setuid(65534); Store(sys.argv[1]).probe()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True)
    assert "StoreError" in done.stderr
    assert f"the store {tmp_path} cannot be written: Permission denied; nothing" in done.stderr


def test_a_store_in_use_that_goes_away_is_waited_for_and_never_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be seen meanwhile is not missing, and nothing is written where the store was."""
    store, place, away = Store(str(tmp_path / "store"), running=True), tmp_path / "store", tmp_path / "away"
    monkeypatch.setattr("raysweep.store.retry.PATIENCE", 2.0)
    place.mkdir()
    (place / "plan.parquet").touch()
    store.write("cells/a", b"x")
    for use in (lambda: store.read("cells/a"), lambda: store.files("cells"), lambda: store.write("cells/a", b"x")):
        place.rename(away)
        threading.Timer(0.5, away.rename, (place,)).start()
        result = use()
        assert result in (b"x", [], None)
        assert (place / "cells/a").read_bytes() == b"x"
    monkeypatch.setattr("raysweep.store.retry.PATIENCE", 0.5)
    place.rename(away)
    for use in (lambda: store.read("cells/a"), lambda: store.files("cells"), lambda: store.write("cells/b", b"x")):
        with pytest.raises(StoreError, match=r"cannot be (read|written): it is not there \(moved, or not mounted\?\)"):
            use()
    assert not place.exists()


def test_credentials_do_not_belong_in_the_address() -> None:
    """It is in the log, on the screen and in every process's arguments."""
    with pytest.raises(UserError, match="holds credentials") as refused:
        Store("s3://user:hunter2@bucket/x")
    assert "hunter2" not in str(refused.value)


def test_an_unknown_kind_of_store() -> None:
    with pytest.raises(UserError, match="the store ftp://host/x is of a kind that raysweep does not know"):
        Store("ftp://host/x")


def test_a_uri(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    store.write("a", b"x")
    assert (tmp_path / "store/a").read_bytes() == b"x"


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    older = TRAJECTORIES.with_metadata({"raysweep_schema": "0"})
    store.write_table("t.parquet", [ROW], older)
    with pytest.raises(UserError, match=r"t.parquet was written under schema 0, this raysweep reads 1"):
        store.read_table("t.parquet", TRAJECTORIES)


def test_a_cell_written_under_schema_2_has_the_settings_that_came_later(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    later = ("block", "effective_rank_target", "effective_rank_penalty", "spectral_norm_cap", "reports")
    later += ("schedule", "decay_fraction", "weight_tying", "qk_norm", "mlp_ratio")
    later += ("head_bottleneck", "optimizer", "weight_decay_on", "z_loss", "precision")
    older = pa.schema([f for f in CELLS if f.name not in later], metadata={"raysweep_schema": "2"})
    cell = make_cell()
    store.write_table(store.cell_file("a"), [cell.describe() | {"status": "done"}], older)
    rows = store.read_rows(store.cell_file("a"), CELLS)
    assert rows is not None
    assert list(rows[0]) == CELLS.names
    assert {name: rows[0][name] for name in later} == {name: cell.describe()[name] for name in later}
    # Damage to the older columns is still found out.
    content = bytearray((tmp_path / store.cell_file("a")).read_bytes())
    content[len(content) // 3] ^= 1
    (tmp_path / store.cell_file("a")).write_bytes(content)
    assert store.read_rows(store.cell_file("a"), CELLS) is None


def test_a_corpus_that_changed_is_refused_naming_both(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    corpora_record.record(store, {"installed": "aaaa"})
    corpora_record.record(store, {"installed": "aaaa", "other": "cccc"})
    with pytest.raises(UserError, match=r"installed was aaaa .* is bbbb now"):
        corpora_record.record(store, {"installed": "bbbb"})


def test_corpora_on_record_under_every_schema(tmp_path: Path) -> None:
    """As schema 1 wrote them, as the first of schema 2 did, as they are written now, and as a later one may."""
    known = {"installed": "aaaa"}
    store = Store(str(tmp_path))
    for body in (known, {"corpora": known, "sha256": checksum(known)}, None, {"schema": "9", "corpora": known}):
        if body is not None and "schema" in body:
            body |= {"sha256": checksum(body)}
        if body is not None:
            store.write("corpora.json", json.dumps(body).encode())
        if body is None or "schema" not in body:
            corpora_record.record(store, known)
            with pytest.raises(UserError, match="installed was aaaa"):
                corpora_record.record(store, {"installed": "bbbb"})
            store.delete("corpora.json")
            corpora_record.record(store, known)
    with pytest.raises(UserError, match=r"corpora.json was written under schema 9"):
        corpora_record.record(store, known)


def test_results_have_a_row_per_finished_cell_and_a_column_per_metric(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    cells = [make_cell(seed=seed) for seed in range(3)]
    settings = Settings(sequences=8)
    for cell in cells[:2]:
        finish(store, cell, validation_loss=4.0)
    row = {"cell": cells[0].id, "task": "in_distribution", "settings": "", "metric": "in_distribution_loss"}
    path = store.evaluation_file(cells[0].id, "in_distribution", settings.model_dump())
    store.write_table(path, [row | {"value": 4.5, "unit": "nats per token"}], EVALUATIONS)

    table = results(Space(name="x", cells=tuple(cells), evaluations=(settings,)), store)
    assert table["id"].to_pylist() == [cells[0].id, cells[1].id]
    assert table["in_distribution_loss"].to_pylist() == [4.5, None]
    assert table["seed"].to_pylist() == [0, 1]
    assert table.schema.field("in_distribution_loss").metadata == {b"unit": b"nats per token"}
    # Other settings are another result.
    assert (
        "in_distribution_loss"
        not in results(Space(name="x", cells=tuple(cells), evaluations=(Settings(sequences=9),)), store).column_names
    )


def test_gpu_hours_are_what_training_held_of_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of four GPUs for an hour and a half; the second cell was trained by an older raysweep, which did not say."""
    store = Store(str(tmp_path))
    cells = [make_cell(seed=seed) for seed in range(2)]
    for cell in cells:
        finish(store, cell, validation_loss=4.0)
    space = Space(name="x", cells=tuple(cells), evaluations=())
    write_timing(store, cells[0].id, "train", 5400.0, 10, 1, [], 0)
    assert "train_gpu_hours" not in results(space, store).column_names
    write_timing(store, cells[0].id, "train", 5400.0, 10, 1, [], 2)
    table = results(space, store)
    assert table["train_gpu_hours"].to_pylist() == [3.0, None]
    show_hours(table, [{"job": job} for job in ("slurm:12", None, "slurm:15", "slurm:12")])
    said = capsys.readouterr().out
    assert "training 1 cells took 3.0 GPU-hours; for the others it was not recorded" in said
    assert "sacct -D -j 12,15 --format=" in said


def test_an_address_with_a_slash_too_few_is_no_folder() -> None:
    with pytest.raises(UserError, match=r"store s3:/bucket/x is not an address: write s3://"):
        Store("s3:/bucket/x")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("file:///somewhere/a#1", "write %23"),
        ("s3://bucket/sweep?region=us-east-1#1", "write %23"),
        ("file:///somewhere/a?b", "write %3F"),
        ("s3://bucket/sweep?region=us-east-1&region=us-west-2", "the option region is there twice"),
        ("s3://bucket/sweep?regoin=us-east-1", "regoin"),
    ],
)
def test_what_an_address_would_lose_is_refused(address: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        Store(address)
    assert address in str(refused.value)


def test_an_escaped_character_is_part_of_the_name(tmp_path: Path) -> None:
    assert Store(f"file://{tmp_path}/a%231").root == f"{tmp_path}/a#1"
    assert Store(f"{tmp_path}/a#1").root == f"{tmp_path}/a#1"


def test_google_s_client_leaves_waiting_to_the_store() -> None:
    fs, root = open_filesystem("gs://bucket/x")
    assert root == "bucket/x"
    assert "10" in str(fs.__reduce__()[1])
    assert fs.__reduce__() != open_filesystem("gs://bucket/x?retry_limit_seconds=5")[0].__reduce__()


def test_how_long_ago_a_file_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.age("file") is None
    store.write("file", b"x")
    os.utime(tmp_path / "file", (time.time() - 100,) * 2)
    assert store.age("file") == pytest.approx(100, abs=2)


def test_no_time_zones_of_the_system_are_needed(tmp_path: Path) -> None:
    """A bare container has none; the timings' times are in UTC all the same."""
    code = (
        "import sys, datetime; from raysweep.store.schemas import TIMINGS; from raysweep.store import Store; "
        "row = dict.fromkeys(TIMINGS.names) | {'finished': datetime.datetime.now(datetime.UTC)}; "
        "store = Store(sys.argv[1]); store.write_table('t.parquet', [row], TIMINGS); "
        "print(len(store.read_rows('t.parquet', TIMINGS)))"
    )
    environment = os.environ | {"PYTHONTZPATH": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
