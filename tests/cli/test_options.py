"""Every option counts or is refused: none is dropped, merged or read as something else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raysweep.analysis import example
from raysweep.errors import UserError
from raysweep.files import local_path
from raysweep.space.read import load
from raysweep.store.results import results

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "search_spaces" / "demo.yaml")
CELL = load(DEMO).cells[0].id


def command(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments], cwd=folder, env=os.environ | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["status", DEMO, "--store", "a", "--store", "b"], {}, "argument --store: given twice"),
        (["status", DEMO, "--store", ""], {}, "--store is empty"),
        (["status", DEMO], {"RAYSWEEP_STORE": ""}, "RAYSWEEP_STORE is empty"),
        (
            ["status", DEMO],
            {"RAYSWEEP_STOER": "x"},
            "STOER is none of raysweep's: .*did you mean 'RAYSWEEP_STORE'",
        ),
        (["status", DEMO], {"RAYSWEEP_STOP_WAIT": "2 min"}, "RAYSWEEP_STOP_WAIT=2 min: a number of seconds is needed"),
        (["slurm", DEMO, "--elastic", "--print"], {}, "--elastic: add --cpus-per-node"),
        (["slurm", DEMO, "--notice", "5", "--print"], {}, "--notice 5: at least 60 s are needed"),
        (["status", DEMO, "--store", "mock://a/b"], {}, "is of a kind that raysweep does not know"),
        (["status", DEMO, "--store", "~nobody-of-this-name/a"], {}, "needs a home folder"),
        (["run", DEMO, "--rehearse", "--store", "a"], {}, "--rehearse runs on this machine and keeps nothing"),
        (["corpus", "show", DEMO, "--json", "--shard", "x"], {}, "--shard chooses the text that is printed"),
        (
            ["corpus", "build", DEMO],
            {"RAYSWEEP_CACHE": "s3://bucket/cache"},
            "RAYSWEEP_CACHE s3://bucket/cache is an address",
        ),
        (["corpus", "build", DEMO], {"RAYSWEEP_CACHE": "$HOME/cache"}, "is a variable that nothing has replaced"),
        (["results", DEMO, "--output", "a.xlsx"], {}, "give a name that ends in .parquet, .feather, .csv, .json"),
        (["publish", DEMO, "--output", ""], {}, "--output is empty"),
        (["publish", DEMO, "--output", "s3://bucket/a"], {}, "--output s3://bucket/a is an address"),
        (["analyze", DEMO, "--output", "s3://bucket/a"], {}, "--output s3://bucket/a is an address"),
        (["analyze", DEMO, "--output", "a", "--where", "x", "--where", "y"], {}, "argument --where: given twice"),
        (["export", DEMO, CELL, "--output", "gs://bucket/a"], {}, "--output gs://bucket/a is an address"),
    ],
)
def test_what_would_not_count_is_refused(
    arguments: list[str], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    done = command(tmp_path, *arguments, **environment)
    assert done.returncode in (1, 2)
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    # No folder called `s3:`.
    assert not list(tmp_path.iterdir())


def test_a_table_is_written_as_its_name_says(example_folder: Path, tmp_path: Path) -> None:
    sweep = [str(example_folder / "simulated.yaml"), "--store", str(example_folder / "store")]
    for kind in ("parquet", "feather", "csv", "json"):
        assert command(tmp_path, "results", *sweep, "--output", f"table.{kind}").returncode == 0
    whole = pd.read_parquet(tmp_path / "table.parquet")
    assert len(whole) == 108
    pd.testing.assert_frame_equal(pd.read_feather(tmp_path / "table.feather"), whole)
    for other in (
        pd.read_csv(tmp_path / "table.csv", float_precision="round_trip"),
        pd.DataFrame(json.loads((tmp_path / "table.json").read_text())),
    ):
        assert list(other) == list(whole)
        for column in ("id", "batch_size", "in_distribution_loss", "effective_rank_W"):
            assert other[column].to_list() == whole[column].to_list()


def test_columns_and_their_order_are_chosen(example_folder: Path, tmp_path: Path) -> None:
    sweep = [str(example_folder / "simulated.yaml"), "--store", str(example_folder / "store")]
    chosen = ("--columns", "id, in_distribution_loss", "--sort", "batch_size", "--descending")
    shown = command(tmp_path, "results", *sweep, *chosen)
    table = results(load(sweep[0]), sweep[2]).to_pandas()
    # Equal ones stay in the order of the search space.
    expected = table.sort_values("batch_size", ascending=False, kind="stable")
    rows = [line.split() for line in shown.stdout.splitlines() if "-b" in line]
    assert rows == [[row["id"], f"{row['in_distribution_loss']:.5g}"] for _, row in expected.iterrows()]
    for option, name in (("--columns", "id,los"), ("--sort", "batch_sizes")):
        refused = command(tmp_path, "results", *sweep, option, name)
        assert refused.returncode == 1
        assert f"{option} {name.split(',')[-1]}: no such column; " in refused.stderr


def test_a_table_is_replaced_by_a_whole_one_or_not_at_all(example_folder: Path, tmp_path: Path) -> None:
    space, store = str(example_folder / "simulated.yaml"), str(example_folder / "store")
    output = str(tmp_path / "kept.parquet")
    assert command(tmp_path, "results", space, "--store", store, "--output", output).returncode == 0
    assert pq.read_table(output).num_rows == len(example.space().cells)
    before = Path(output).read_bytes()
    typo = command(tmp_path, "results", space, "--store", f"{store}e", "--output", output)
    assert typo.returncode == 1
    assert f"no sweep has begun in {store}e: name another --store" in typo.stderr
    full = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 16; exec "$0" "$@"', sys.executable, "-m", "raysweep.cli", "results", space,
         "--store", store, "--output", output],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert full.returncode != 0
    assert Path(output).read_bytes() == before


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a", "--output") == tmp_path / "a"
    with pytest.raises(UserError, match="--output file:/a is an address"):
        local_path("file:/a", "--output")
