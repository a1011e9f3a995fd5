"""What is published is what the store has, and a cell made again is held against it number by number."""

import datetime
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raysweep.analysis import example
from raysweep.analysis import sweep_data as sweep
from raysweep.cli.sweep_commands import retry_evaluation
from raysweep.errors import UserError
from raysweep.exchange import reproduce
from raysweep.exchange.account import Account, account
from raysweep.exchange.publish import publish
from raysweep.exchange.published import PublishedResults, read_published
from raysweep.exchange.restore import restore
from raysweep.space import read as space
from raysweep.space.space import Space
from raysweep.store import Store, corpora_record, measures
from raysweep.store.schemas import CELLS, SESSIONS, TIMINGS, TRAJECTORIES
from raysweep.sweep import trial
from raysweep.sweep.runner import evaluate
from raysweep.sweep.same_code import code
from raysweep.sweep.survey import cells_missing_weights, survey


@pytest.fixture(scope="module")
def folder(example_folder: Path) -> Path:
    """A simulated sweep, and its publication beside it."""
    store = Store(str(example_folder / "store"))
    published = publish(example_folder / "simulated.yaml", store, example_folder / "results")
    assert len(published.results) == 108
    return example_folder


def test_the_analysis_sees_the_same_sweep(folder: Path) -> None:
    published = sweep.published(read_published(folder / "results"))
    stored = sweep.load(Store(str(folder / "store")), example.space())
    pd.testing.assert_frame_equal(published.cells, stored.cells, check_exact=True)
    pd.testing.assert_frame_equal(published.trajectories, stored.trajectories, check_exact=True)
    assert (published.name, published.planned, published.units) == (stored.name, stored.planned, stored.units)


def test_publishing_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    publish(folder / "simulated.yaml", Store(str(folder / "store")), tmp_path)
    for path in (folder / "results").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    # From the copy of the search space that was published, in place.
    publish(tmp_path / "space.yaml", Store(str(folder / "store")), tmp_path)


def test_what_is_not_there_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sweep has begun in .*empty: name another --store"):
        publish(folder / "simulated.yaml", Store(str(tmp_path / "empty")), tmp_path / "results")
    shutil.copytree(folder / "results", tmp_path / "results")
    (tmp_path / "results/timings.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"timings.parquet cannot be read .*: .* is not what `raysweep publish` writes"):
        read_published(tmp_path / "results")
    later = pa.table({"cell": ["a"]}).replace_schema_metadata({"raysweep_schema": "9"})
    pq.write_table(later, tmp_path / "results/timings.parquet")
    with pytest.raises(
        UserError,
        match=r"timings.parquet was written under schema 9, this raysweep reads 1 to \d+: publish it",
    ):
        read_published(tmp_path / "results")
    (tmp_path / "results/results.parquet").unlink()
    with pytest.raises(UserError, match=r"results.parquet is missing: "):
        read_published(tmp_path / "results")


def test_a_restored_store_is_published_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    read = read_published(folder / "results")
    assert restore(read, store) == (108, 108)
    assert restore(read, store) == (108, 0)
    publish(folder / "simulated.yaml", store, tmp_path / "again")
    for path in (folder / "results").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert all(state.complete for state in survey(store, read.space).states)


def three(folder: Path) -> PublishedResults:
    read = read_published(folder / "results")
    return replace(read, results=read.results.slice(0, 3))


def test_a_cell_that_lacks_an_evaluation_is_not_restored(folder: Path, tmp_path: Path) -> None:
    read = three(folder)
    first = read.space.cells[0].id
    kept = [r for r in read.evaluations.to_pylist() if (r["cell"], r["task"]) != (first, "quantized")]
    store = Store(str(tmp_path))
    lacking = replace(read, evaluations=pa.Table.from_pylist(kept, schema=read.evaluations.schema))
    assert restore(lacking, store) == (2, 2)
    assert [state.cell.id for state in survey(store, read.space).left][:2] == [first, read.space.cells[3].id]


def test_a_cell_whose_corpus_has_no_text_for_an_evaluation_is_complete_without_it(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    text = {"folder": str(tmp_path / "texts")}
    whole = {"name": "whole", "tokenizer": "bpe", "vocabulary": 1024, "pretraining": text, "out_of_distribution": text}
    without = {"name": "without", "tokenizer": "bpe", "vocabulary": 1024, "pretraining": text}
    base = {"size": {"width": 16}, "tokens": 1e5, "batch_size": 8, "sequence_length": 64}
    file = tmp_path / "two.yaml"
    content = {"name": "two", "base": base, "cross": {"corpus": [whole, without]}}
    file.write_text(yaml.safe_dump(content | {"evaluations": ["in_distribution", "out_of_distribution"]}), "utf-8")
    two, store = space.load(file), Store(str(tmp_path / "store"))
    example.fill(store, two)
    last = two.cells[1]
    (unfit,) = [one for one in two.evaluations if one not in two.evaluations_of(last)]
    store.delete(store.evaluation_file(last.id, unfit.label, unfit.identity))
    assert not survey(store, two).left
    published = publish(file, store, tmp_path / "published")
    again = Store(str(tmp_path / "again"))
    assert restore(published, again) == (2, 2)
    assert not survey(again, two).left


def test_a_store_of_another_corpus_is_not_restored_to(folder: Path, tmp_path: Path) -> None:
    read = three(folder)
    store = Store(str(tmp_path))
    corpora_record.record(store, {read.space.cells[0].corpus.key: "another"})
    with pytest.raises(UserError, match=r"when the store .* was begun"):
        restore(read, store)
    assert store.files("cells") == []


def test_what_a_store_has_is_kept(folder: Path, tmp_path: Path) -> None:
    read = three(folder)
    cell = read.space.cells[0].id
    store = Store(str(tmp_path))
    restore(read, store)
    row = (store.cell_row(cell) or {}) | {"torch_version": "mine"}
    store.write_table(store.cell_file(cell), [row], CELLS)
    restore(read, store)
    assert (store.cell_row(cell) or {})["torch_version"] == "mine"


def test_what_has_no_weights_is_not_trained_by_evaluating(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    read = three(folder)
    store = Store(str(tmp_path))
    restore(read, store)
    first, *others = read.space.evaluations
    more = read.space.model_copy(update={"evaluations": (first.model_copy(update={"sequences": 7}), *others)})
    # What a fine-tuning left is no weights of the cell.
    done = read.results["id"].to_pylist()
    (tmp_path / "train" / done[0] / "finetune_math-0a1b2c3d").mkdir(parents=True)
    result = evaluate(more, store)
    assert len(result.survey.left) == 3
    assert "3 cells that lack evaluations have no weights in" in caplog.text
    assert "`raysweep run` trains them again" in caplog.text
    assert retry_evaluation(result.survey, store) == "`raysweep run` trains again what has no weights"
    assert capsys.readouterr().out == ""
    before = survey(store, more)
    assert [state.training for state in before.states[:4]] == ["done", "done", "done", "new"]
    assert cells_missing_weights(before, store) == set(done)
    # Weights that turn out to be damaged only in the trial: nothing is set aside there either.
    cell = next(cell for cell in more.cells if cell.id == done[0])
    failed = trial.complete_cell(cell, more, store, "", code(), train=False)
    assert failed == ["its final weights are damaged or gone: `raysweep run` trains it again"]
    assert survey(store, more) == before


def test_metrics_are_restored_under_the_settings_that_they_were_measured_with(folder: Path, tmp_path: Path) -> None:
    """The search space was edited after it was published: nothing of it is complete any more."""
    read = three(folder)
    first, *others = read.space.evaluations
    edited = read.space.model_copy(update={"evaluations": (first.model_copy(update={"sequences": 7}), *others)})
    store = Store(str(tmp_path))
    assert restore(replace(read, space=edited), store) == (0, 0)
    without = read.space.model_copy(update={"evaluations": tuple(others)})
    assert restore(replace(read, space=without), store) == (3, 3)
    assert all(state.complete for state in survey(store, read.space).states[:3])


def test_what_a_folder_lacks_is_not_restored(folder: Path, tmp_path: Path) -> None:
    read = three(folder)
    first, second, third = read.results.to_pylist()
    rows = [row for row in read.trajectories.to_pylist() if row["cell"] != first["id"]]
    lacking = replace(
        read,
        results=pa.Table.from_pylist([first, second, third | {"status": "diverged"}], schema=read.results.schema),
        trajectories=pa.Table.from_pylist(rows, schema=read.trajectories.schema),
    )
    store = Store(str(tmp_path))
    assert restore(lacking, store) == (2, 2)
    assert [state.training for state in survey(store, read.space).states[:3]] == ["new", "done", "diverged"]
    shutil.copytree(folder / "results", tmp_path / "five")
    (tmp_path / "five/evaluations.parquet").unlink()
    with pytest.raises(UserError, match=r"evaluations.parquet is missing: .*: publish it again"):
        read_published(tmp_path / "five")


def one(folder: Path) -> tuple[PublishedResults, Space, Store]:
    planned = space.load(folder / "simulated.yaml")
    return (
        read_published(folder / "results"),
        planned.model_copy(update={"cells": planned.cells[5:6]}),
        Store(str(folder / "store")),
    )


def test_equal_numbers_are_equal(folder: Path) -> None:
    published, planned, store = one(folder)
    comparison = reproduce.compare(published, planned, store)
    count, found = comparison.compared, comparison.differences
    rows = len(store.read_rows(store.trajectory_file(planned.cells[0].id), TRAJECTORIES) or [])
    assert found == []
    published_row, trajectory = published.results.to_pylist()[5], published.trajectories.to_pylist()
    of_row = sum(value is not None for value in published_row.values()) - 4
    of_training = sum(v is not None for row in trajectory if row["cell"] == planned.cells[0].id for v in row.values())
    assert rows
    assert count == of_row + of_training


@pytest.mark.parametrize("column", ["effective_rank_W", "quantized_4bit_in_distribution_loss", "corpus_fingerprint"])
def test_a_last_bit_is_a_difference(folder: Path, column: str) -> None:
    published, planned, store = one(folder)
    rows = published.results.to_pylist()
    was = rows[5][column]
    rows[5][column] = was * (1 + 2**-52) if isinstance(was, float) else "other"
    changed = replace(published, results=pa.Table.from_pylist(rows, schema=published.results.schema))
    found = reproduce.compare(changed, planned, store).differences
    assert [(d.name, d.published, d.here) for d in found] == [(column, rows[5][column], was)]


def test_what_was_not_measured_when_it_was_published_is_no_difference(folder: Path) -> None:
    published, planned, store = one(folder)
    rows = published.results.to_pylist()
    rows[5]["finetune_math_loss"] = None
    changed = replace(published, results=pa.Table.from_pylist(rows, schema=published.results.schema))
    assert reproduce.compare(changed, planned, store).differences == []


def test_a_task_of_one_s_own_that_is_not_here_is_no_difference(folder: Path) -> None:
    published, planned, store = one(folder)
    rows, metrics = published.results.to_pylist(), published.evaluations.to_pylist()
    own = next(row for row in metrics if row["cell"] == rows[5]["id"])
    own = own | {"task": "own_agreement", "settings": "{}", "metric": "own_agreement_accuracy", "value": 0.5}
    results = published.results.append_column("own_agreement_accuracy", pa.array([0.5] * len(rows)))
    evaluations = pa.Table.from_pylist([*metrics, own], schema=published.evaluations.schema)
    assert (
        reproduce.compare(replace(published, results=results, evaluations=evaluations), planned, store).differences
        == []
    )
    # A metric of a task that is here still has to be there.
    found = reproduce.compare(replace(published, results=results), planned, store).differences
    assert [d.name for d in found] == ["own_agreement_accuracy"]


def test_the_texts_of_evaluations_are_restored_with_the_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "law").mkdir()
    file = tmp_path / "one.yaml"
    base = {"size": {"width": 16}, "tokens": 1e5, "batch_size": 8, "sequence_length": 64}
    base["corpus"] = {"name": "installed", "tokenizer": "bpe", "vocabulary": 1024}
    law = {"task": "loss", "name": "law", "on": {"folder": str(tmp_path / "law")}}
    file.write_text(yaml.safe_dump({"name": "one", "base": base, "evaluations": [law]}), "utf-8")
    planned, store = space.load(file), Store(str(tmp_path / "store"))
    example.fill(store, planned)
    (evaluation,) = planned.evaluations
    assert evaluation.text is not None
    key = evaluation.text.key(planned.cells[0].corpus)
    corpora_record.record(store, {key: "f" * 16, "of another sweep": "0" * 16})
    publish(file, store, tmp_path / "published")
    again = Store(str(tmp_path / "again"))
    restore(read_published(tmp_path / "published"), again)
    recorded = corpora_record.fingerprints(again)
    assert recorded[key] == "f" * 16
    assert "of another sweep" not in recorded
    assert caplog.messages == []
    # Published by an older raysweep.
    (tmp_path / "published/texts.json").unlink()
    restore(read_published(tmp_path / "published"), Store(str(tmp_path / "third")))
    assert caplog.messages == [
        "loss_law: which text it read was not published: make sure that its text is the same here"
    ]


def test_a_search_space_behind_a_link_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/space.yaml").symlink_to(mine)
    publish(folder / "simulated.yaml", Store(str(folder / "store")), tmp_path / "out")
    assert mine.read_text() == "mine"
    assert read_published(tmp_path / "out").space.name == "simulated"


def test_a_row_over_training_that_differs_or_is_missing_is_a_difference(folder: Path) -> None:
    published, planned, store = one(folder)
    rows = published.trajectories.to_pylist()
    mine = [row for row in rows if row["cell"] == planned.cells[0].id]
    mine[2]["validation_loss"] += 1e-9
    changed = replace(published, trajectories=pa.Table.from_pylist(mine[:-1], schema=published.trajectories.schema))
    found = reproduce.compare(changed, planned, store).differences
    assert [d.name for d in found] == ["rows over training", f"step {mine[2]['step']}: validation_loss"]


def test_timings_and_sessions_are_published(folder: Path) -> None:
    timings = pq.read_table(folder / "results/timings.parquet").to_pandas()
    assert set(timings["stage"]) == {"train"}
    assert timings["cell"].nunique() == 108
    assert str(timings["finished"].dtype).startswith("datetime64")


def test_the_account_of_a_sweep() -> None:
    """Two cores for two hours in two sessions, one of them killed; 3 core-hours of work."""
    planned = space.load(Path(__file__).parents[2] / "search_spaces" / "demo.yaml")
    noon = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    hour = datetime.timedelta(hours=1)
    ran = [
        {
            "space": "demo",
            "started": noon + k * 5 * hour,
            "seen": noon + (k * 5 + 1) * hour,
            "ended": bool(k),
            "cores": 2,
        }
        for k in range(2)
    ]
    took = [
        {"cell": "a", "stage": "train", "seconds": 7200.0, "starts": 2, "finished": noon + hour},
        {"cell": "b", "stage": "train", "seconds": 1800.0, "starts": 1, "finished": noon + 5 * hour},
        {"cell": "b", "stage": "quantized", "seconds": 1800.0, "starts": 1, "finished": noon + 6 * hour},
        # For another search space of the same store.
        {"cell": "c", "stage": "train", "seconds": 360.0, "starts": 1, "finished": noon + 3 * hour},
    ]
    taken = account(
        PublishedResults(
            planned, pa.table({"tokens_trained": [5, 7]}), pa.table({}), pa.table({}),
            pa.Table.from_pylist(took, schema=TIMINGS), pa.Table.from_pylist(ran, schema=SESSIONS),
        )
    )  # fmt: skip
    assert taken == Account(2, 1, 1, 7200.0, 11160.0, 12, 4 / 3)


def test_a_publication_does_not_replace_cells_that_the_store_lacks(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "results", tmp_path / "results")
    store = Store(str(tmp_path / "few"))
    shutil.copytree(folder / "store", tmp_path / "few")
    gone = sorted((tmp_path / "few" / "cells").iterdir())[:100]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match=r"holds 108 published cells, of which 100 are not among the finished cells of"):
        publish(folder / "simulated.yaml", store, tmp_path / "results")
    assert len(read_published(tmp_path / "results").results) == 108
    # What a killed publication would leave: some files of one, some of another.
    publish(folder / "simulated.yaml", store, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "trajectories.parquet", tmp_path / "results")
    with pytest.raises(UserError, match="holds files of two publications"):
        read_published(tmp_path / "results")


def test_what_was_measured_is_published_and_restored(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "store", tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    cell = example.space().cells[3].id
    values = {"step": 5, "matrix": "hidden.1", "metric": "gini", "value": 0.5, "unit": "", "settings": "8 sequences",
              "reason": ""}  # fmt: skip
    spectrum = {"step": 5, "matrix": "hidden.1", "settings": "8 sequences", "singular_values": [2.0, 0.1]}
    measures.write(store, cell, [values], [spectrum])
    publish(folder / "simulated.yaml", store, tmp_path / "results")
    published = read_published(tmp_path / "results")
    assert published.measures.to_pylist() == [{"cell": cell, **values}]
    again = Store(str(tmp_path / "again"))
    restore(published, again)
    for path in (store.measures_file(cell), store.spectra_file(cell)):
        assert again.read(path) == store.read(path) is not None
    # A folder without them is one of before.
    publish(folder / "simulated.yaml", Store(str(folder / "store")), tmp_path / "results")
    assert not (tmp_path / "results/measures.parquet").exists()
    assert read_published(tmp_path / "results").spectra.num_rows == 0
