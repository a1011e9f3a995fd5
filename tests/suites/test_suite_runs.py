"""A suite from its hub to its report: killed and resumed, within its budget, with a hub that is in a bad mood."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import suite_files
import transformers
from hub_on_localhost import Hub
from published_layouts import Published

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.model.geometry import effective_rank
from raysweep.store.store import Store
from raysweep.suites.read import load_suite
from raysweep.suites.results import results

REVISIONS = (0, 100)

pytestmark = pytest.mark.suites


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Published]]:
    """The folder of a hub, and the eight models in it."""
    folder = tmp_path_factory.mktemp("hub")
    return folder, suite_files.published(folder, 8, REVISIONS)


@pytest.fixture(scope="module")
def hub(models: tuple[Path, list[Published]]) -> Iterator[Hub]:
    with Hub(models[0]) as running:
        yield running


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(
    models: tuple[Path, list[Published]], hub: Hub, cache: Path, tmp_path_factory: pytest.TempPathFactory,
    corpus: TokenizedCorpus,
) -> tuple[Path, Path]:  # fmt: skip
    """The suite file and its store, after a run that was killed once, on a hub with faults."""
    folder = tmp_path_factory.mktemp("suite")
    file, store = suite_files.write(folder, models[1]), folder / "store"
    env = suite_files.environment(hub.address, cache)
    hub.limit(1, 1)
    hub.cut(1, 1_200_000)
    used = suite_files.Disk(cache / "models")
    process = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", str(store)],
        env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(list(store.glob("revisions/*.parquet"))) < 5 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in store.glob("revisions/*.parquet")}
    begun = {name.partition("@")[0] for name in kept}
    last = next(one for one in reversed(models[1]) if one.id not in begun)
    # Twice, should one of them be of a download that was killed before it was compared.
    hub.corrupt(last.repository, "config.json", times=2)
    status, printed = suite_files.command("run", str(file), "--store", str(store), env=env)
    most = used.most()
    assert status == 0, printed
    assert suite_files.done_of(printed) == (16, 16)
    assert "came damaged: downloading it again" in printed
    # What was there stays, and nothing is left of the downloads.
    assert {name: (store / "revisions" / name).stat().st_mtime_ns for name in kept} == kept
    assert suite_files.disk(cache / "models") < 1000
    assert 20e6 < most <= 0.12e9
    return file, store


def test_killed_and_resumed_the_numbers_are_those_of_a_mirror(
    finished: tuple[Path, Path], models: tuple[Path, list[Published]], cache: Path, tmp_path: Path
) -> None:
    file, store = finished
    own = suite_files.write(tmp_path, models[1], mirror=str(models[0]))
    env = suite_files.environment("http://127.0.0.1:9", cache)  # Nobody is there, and nobody is asked.
    status, printed = suite_files.command("run", str(own), "--store", str(tmp_path / "store"), env=env)
    assert status == 0, printed
    at = {"commit", "repository"}
    one, other = (
        [{k: v for k, v in row.items() if k not in at} for row in suite_files.numbers(f, s)]
        for f, s in ((file, store), (own, tmp_path / "store"))
    )
    assert one == other
    assert len(one) > 8 + 16 + 16


def test_results_are_of_the_last_checkpoint_and_are_transformers_own(
    finished: tuple[Path, Path], models: tuple[Path, list[Published]]
) -> None:
    file, store = finished
    table = results(load_suite(file), store).to_pylist()
    assert [row["id"] for row in table] == [one.id for one in models[1]]
    for row, one in zip(table, models[1], strict=True):
        import hf_olmo  # noqa: F401  (so that transformers knows the format)

        theirs = transformers.AutoModelForCausalLM.from_pretrained(models[0] / one.repository / "step100").float()
        weight = theirs.get_output_embeddings().weight.detach()
        assert row["effective_rank_W"] == pytest.approx(effective_rank(weight), rel=1e-9)
        assert row["effective_rank_entries"] == pytest.approx(effective_rank(weight[: row["entries"]]), rel=1e-9)
        # Entropy of the squared singular values' shares would be another: here by hand, from NumPy.
        spectrum = np.linalg.svd(weight.double().numpy(), compute_uv=False)
        shares = spectrum / spectrum.sum()
        assert row["effective_rank_W"] == pytest.approx(
            np.exp(-(shares * np.log(shares)).sum()) / weight.shape[1], rel=1e-6
        )
        embedding = theirs.get_input_embeddings().weight
        others = sum(p.numel() for p in theirs.parameters() if p is not embedding)
        assert row["parameters"] == others + (embedding.numel() if row["tied"] else 0)
        assert (row["steps_trained"], row["tokens_trained"], row["checkpoints"]) == (100, 100 * 8 * 128, 2)
        assert row["unknown"] == "weight_decay"
        assert row["status"] == "done"
        assert row["quantized_4bit_in_distribution_loss"] > 0
        assert row["in_distribution_bits_per_byte"] > 0
        assert 0 < row["effective_rank_blocks_0_mlp_up"] <= 1


def test_the_report_names_what_is_not_known_and_why_losses_are_in_bits(
    finished: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    file, store = finished
    env = suite_files.environment("http://127.0.0.1:9", cache)
    status, printed = suite_files.command(
        "analyze", str(file), "--store", str(store), "--output", str(tmp_path / "report"), env=env
    )
    assert status == 0, printed
    page = (tmp_path / "report" / "report.html").read_text()
    assert "The models, and what is not known of them" in page
    assert "weight_decay" in page
    assert "in bits per byte, since the models have 4 tokenizers" in page
    assert "left out, being known for each token only: quantized_4bit_out_of_distribution_loss" in page
    # Against a published sweep, claim by claim.
    status, printed = suite_files.command(
        "analyze", str(file), "results/mini", "--store", str(store), "--output", str(tmp_path / "both"), env=env
    )
    assert status == 0, printed
    both = pd.read_csv(tmp_path / "both" / "comparison.csv")
    alone = pd.read_csv("results/mini/report/claim_tests.csv")
    assert (tmp_path / "both" / "comparison.html").read_text().count("<tr>") == alone["claim"].nunique() + 1
    # Of the published sweep the same numbers as in its own report.
    mine = both[both["value_b"].notna()].set_index(["claim", "effect"])["value_b"]
    theirs = alone[alone["value"].notna()].set_index(["claim", "effect"])["value"]
    assert len(mine) == len(theirs)
    pd.testing.assert_series_equal(mine.sort_index(), theirs.sort_index(), check_names=False, rtol=1e-9)


def test_plan_and_status_say_how_much_there_is(finished: tuple[Path, Path], hub: Hub, cache: Path) -> None:
    file, store = finished
    env = suite_files.environment(hub.address, cache, RAYSWEEP_STORE=str(store))
    status, printed = suite_files.command("plan", str(file), "--json", env=env)
    assert status == 0, printed
    plan, _ = json.JSONDecoder().raw_decode(printed)
    assert (plan["totals"]["models"], plan["totals"]["checkpoints"]) == (8, 16)
    largest = max(sum(f.stat().st_size for f in folder.iterdir()) for folder in hub.folder.glob("*/*/step100"))
    # But for what is not downloaded, such as a model card.
    assert plan["totals"]["largest_bytes"] == pytest.approx(largest, rel=0.01)
    # Of which most is for the fine-tuning.
    assert plan["totals"]["memory_bytes"] == 18.5 * plan["totals"]["largest_bytes"]
    # All are measured; into another store all would be downloaded.
    assert (plan["totals"]["measured"], plan["totals"]["download_bytes"]) == (16, 0)
    status, printed = suite_files.command("plan", str(file), "--json", env=env | {"RAYSWEEP_STORE": f"{store}-other"})
    anew, _ = json.JSONDecoder().raw_decode(printed)
    assert anew["totals"]["measured"] == 0
    assert anew["totals"]["download_bytes"] == sum(one["bytes"] for one in anew["models"]) > 16 * largest / 8
    assert plan["models"][0]["unknown"] == ["weight_decay"]
    hub.down = True
    try:
        status, printed = suite_files.command("status", str(file), "--json", env=env)
    finally:
        hub.down = False
    assert json.loads(printed) == {
        "models": 8, "checkpoints": 16, "done": 16, "failed": 0, "left": 0, "running": False
    }  # fmt: skip


def test_what_cannot_be_had_is_said_and_the_rest_is_done(
    models: tuple[Path, list[Published]], hub: Hub, cache: Path, tmp_path: Path
) -> None:
    olmo, neox, llama, _ = models[1][:4]
    folder = tmp_path / "hub"
    for one in (neox, llama):
        shutil.copytree(models[0] / one.repository, folder / one.repository)
    (folder / llama.repository / "step100" / "model.safetensors.index.json").write_text("{}")
    wrong = neox._replace(id="wrong", width=17)
    with Hub(folder) as running:
        file = suite_files.write(
            tmp_path, [neox, wrong, llama, olmo], revisions={"last": 1}, evaluations=["in_distribution"], measure=[]
        )
        env = suite_files.environment(running.address, cache)
        status, printed = suite_files.command("run", str(file), "--store", str(tmp_path / "store"), env=env)
    assert status == 1
    assert suite_files.done_of(printed) == (1, 3)
    assert f"{olmo.id} is left out: {olmo.repository} is not on the hub" in printed
    assert (
        "failed wrong@step100: the table says of wrong width 17, and pythia/d16-l1-seed1 at step100 has 16" in printed
    )
    assert f"failed {llama.id}@step100: " in printed
    assert "run the same command again to do what is left" in printed
    table = results(load_suite(file), tmp_path / "store")
    assert table["id"].to_pylist() == [neox.id]


def test_a_process_that_is_killed_is_started_again(
    models: tuple[Path, list[Published]], hub: Hub, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    own = {"task": "loss", "name": "fox", "on": {"folder": str(tmp_path / "docs")}}
    asked = ["in_distribution", own, {"task": "benchmarks", "of": ["sciq"], "questions": 5}]
    file = suite_files.write(
        tmp_path, models[1][:1], revisions={"last": 1}, measure=[], evaluations=asked, sequence_length=127
    )
    env = suite_files.environment(hub.address, cache)
    process = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", str(tmp_path / "store")],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    killed = False
    while not killed and process.poll() is None and time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if child.name().startswith("ray::complete"):
                    child.kill()
                    killed = True
        time.sleep(0.05)
    printed, _ = process.communicate(timeout=120)
    assert killed
    assert process.returncode == 0, printed
    assert f"{models[1][0].id}@step100: its process was lost, or its node: trying again" in printed
    assert suite_files.done_of(printed) == (1, 1)
    # Fewer sequences than a task asks for are said.
    assert re.search(r"under the tokenizer of hf_olmo-0 and its like, .* and not 512: there are no more of", printed)
    (row,) = results(load_suite(file), tmp_path / "store").to_pylist()
    assert row["fox_bits_per_byte"] > 0
    assert 0 <= row["sciq_accuracy"] <= 1
    assert not any("overlap" in name for name in row)


def test_a_checkpoint_that_moved_keeps_the_commit_that_it_was_found_at(
    models: tuple[Path, list[Published]], cache: Path, tmp_path: Path
) -> None:
    one = models[1][1]
    folder = tmp_path / "hub"
    shutil.copytree(models[0] / one.repository, folder / one.repository)
    file = suite_files.write(tmp_path, [one], revisions={"last": 1}, evaluations=[], measure=[])
    with Hub(folder) as running:
        env = suite_files.environment(running.address, cache)
        status, printed = suite_files.command("run", str(file), "--store", str(tmp_path / "store"), env=env)
        assert status == 0, printed
        commit = running.commit(one.repository, "step100")
    (row,) = Store(str(tmp_path / "store")).read_rows("models.parquet", _models_schema()) or []
    assert row["commit"] == commit
    config = folder / one.repository / "step100" / "config.json"
    config.write_text(config.read_text() + "\n")
    with Hub(folder) as running:
        assert running.commit(one.repository, "step100") != commit
        env = suite_files.environment(running.address, cache)
        suite_files.command("run", str(file), "--store", str(tmp_path / "store"), env=env)
    (again,) = Store(str(tmp_path / "store")).read_rows("models.parquet", _models_schema()) or []
    assert again["commit"] == commit


def _models_schema() -> Any:
    from raysweep.store.schemas import MODELS

    return MODELS


def test_published_results_stand_beside_those_measured_here(
    finished: tuple[Path, Path], models: tuple[Path, list[Published]], tmp_path: Path
) -> None:
    _, store = finished
    rows = [
        {"params": f"d{one.width}", "number": float(one.seed), "task": task, "acc": 0.01 * one.seed + place}
        for one in models[1]
        for place, task in enumerate(("arc", "boolq"))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "theirs.csv", index=False)
    joined = {"file": "theirs.csv", "on": {"size": "params", "seed": "number"}, "task": "task",
              "columns": {"{task}_accuracy": "acc"}}  # fmt: skip
    file = suite_files.write(tmp_path, models[1], published=[joined])
    table = results(load_suite(file), store).to_pylist()
    assert [row["boolq_accuracy"] for row in table] == [0.01 * one.seed + 1 for one in models[1]]
    # One that could be of several is refused, and so is a column that is not there.
    pd.DataFrame([*rows, rows[0]]).to_csv(tmp_path / "theirs.csv", index=False)
    with pytest.raises(UserError, match=r"have several rows of arc_accuracy for \{'seed': '0', 'size': 'd16'\}"):
        results(load_suite(file), store)
    pd.DataFrame(rows).drop(columns="acc").to_csv(tmp_path / "theirs.csv", index=False)
    with pytest.raises(UserError, match="have no column acc"):
        results(load_suite(file), store)


def test_twenty_four_models_killed_twice(tmp_path: Path, cache: Path) -> None:
    """24 models with 3 checkpoints each: killed twice, finished, analysed, within the budget of the disk."""
    models = suite_files.published(tmp_path / "hub", 24, (0, 100, 200))
    file, store = suite_files.write(tmp_path, models, revisions={"evenly": 3}), tmp_path / "store"
    used = suite_files.Disk(cache / "models")
    with Hub(tmp_path / "hub") as hub:
        env = suite_files.environment(hub.address, cache)
        for until in (10, 40):
            process = subprocess.Popen(
                [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", str(store)],
                env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while len(list(store.glob("revisions/*.parquet"))) < until:
                assert process.poll() is None
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        status, printed = suite_files.command("run", str(file), "--store", str(store), env=env)
    most = used.most()
    assert status == 0, printed
    assert suite_files.done_of(printed) == (72, 72)
    assert 0 < most <= 0.12e9
    status, printed = suite_files.command(
        "analyze", str(file), "--store", str(store), "--output", str(tmp_path / "report"), env=env
    )
    assert status == 0, printed
    assert "24 of 24 models analysed" in printed
    figures = pd.read_csv(tmp_path / "report" / "figures" / "figures.csv")
    assert figures["file"].notna().sum() > 5
