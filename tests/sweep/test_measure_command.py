"""`raysweep measure`, on a real Ray cluster: from checkpoints come the very tables that training writes."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from tiny import make_cell

from raysweep.cli.main import main
from raysweep.cluster.environment import ray_environment
from raysweep.corpora.build import open_corpus
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.model import matrices as of_cells
from raysweep.space.measure import Measurement
from raysweep.space.read import load
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store.checkpoints import names, new_name, step_of
from raysweep.store.schemas import MEASURES
from raysweep.sweep.cell_tables import write_cell_tables
from raysweep.sweep.measure import measure
from raysweep.sweep.runner import write_plan
from raysweep.training import checkpoint
from raysweep.training.resume import train_to_end
from raysweep.training.run import Run

ITEMS = [
    {"of": ["blocks.1.*", "gradients.unembedding"], "metrics": ["stable_rank", "gini"]},
    {"of": "hidden.*", "metrics": ["effective_rank"], "sequences": 8, "when": [0.5, 1.0]},
    {"of": "unembedding", "metrics": ["cosine"], "tokens": "rare"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    base = make_cell(tokens=1024, reports=2).model_dump(exclude={"seed"})
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({"name": "m", "base": base, "cross": {"seed": [1, 2]}, "measure": ITEMS}), "utf-8")
    return file


@pytest.fixture
def trained(file: Path, corpus: TokenizedCorpus, tmp_path: Path) -> tuple[Space, Store]:
    """Two cells with a checkpoint for every report, trained without a cluster."""
    space, store = load(file), Store(str(tmp_path / "store"))
    write_plan(space, store)
    for cell in space.cells:
        run = Run(cell, corpus, measure=space.measure)
        train_to_end(run, store, store.run_directory(cell.id), None, None, 300.0)
        write_cell_tables(cell, store, 0)
    return space, store


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def cluster() -> Iterator[None]:
    """One for all that a test calls: each would start its own."""
    with ray_environment(local=True):
        ray.init("local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
        yield
        ray.shutdown()


def tables(store: Store, cell: str) -> list[bytes | None]:
    return [store.read(store.measures_file(cell)), store.read(store.spectra_file(cell))]


@pytest.mark.usefixtures("cluster")
def test_it_is_what_training_writes(
    trained: tuple[Space, Store], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, store = trained
    whole, short = (cell.id for cell in space.cells)
    written = tables(store, whole)
    assert None not in written
    for cell in (whole, short):
        store.delete(store.measures_file(cell))
        store.delete(store.spectra_file(cell))
    # The other has its last checkpoint alone.
    directory = store.run_directory(short)
    for name in names(store, directory)[1:]:
        store.delete_directory(f"{directory}/{name}")
    damaged = next(name for name in names(store, store.run_directory(whole)) if step_of(name) == 1)
    weights = Path(store.root) / store.run_directory(whole) / damaged / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    # Killed while it was written, beside the one that was written then: that one is read.
    (Path(store.root) / store.run_directory(whole) / new_name(4)).mkdir()

    found = measure(space, store)
    assert found.cells == 2
    assert found.errors == {}
    # One is damaged, the others are gone.
    assert found.missing == {whole: 1, short: len(space.cells[0].report_steps) - 1}
    assert {row["step"] for row in store.read_rows(store.measures_file(short), MEASURES) or []} == {8}
    # What a damaged checkpoint would have given stays missing, and is measured once it is mended.
    assert tables(store, whole) != written
    weights.write_bytes(intact)
    arguments = ["measure", str(file), "--store", store.location]
    assert command(*arguments) == 0
    assert tables(store, whole) == written
    said = capsys.readouterr().out
    assert (
        f"{found.missing[short]} reports of 1 cells are not complete, and their checkpoints are gone or damaged" in said
    )

    # Something else, beside what there is.
    assert command(*arguments, "--of", "hidden.0", "--metrics", "hoyer", "--sequences", "4") == 0
    rows = store.read_rows(store.measures_file(whole), MEASURES) or []
    assert {(row["matrix"], row["settings"]) for row in rows if row["metric"] == "hoyer"} == {
        ("hidden.0", "4 sequences")
    }
    assert len(rows) == len([row for row in rows if row["metric"] != "hoyer"]) + len(space.cells[0].report_steps)


def test_what_cannot_be_measured_is_one_line(
    trained: tuple[Space, Store], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, store = trained
    with pytest.raises(UserError, match="no cell of m is trained in"):
        measure(space, tmp_path / "empty")
    with pytest.raises(UserError, match="m has no `measure`: add it to the search space, or say what"):
        measure(space.model_copy(update={"measure": ()}), store)
    with pytest.raises(UserError, match=r"hidden\.9 is no matrix of a model of 6 blocks"):
        measure(space, store, [Measurement(of=("hidden.9",))])
    for options, said in (
        (["--metrics", "gini"], "--metrics is of --of: say of which matrices"),
        (["--of", "unembedding", "--metrics", "ginni"], "--metrics: no metric ginni; allowed: .*did you mean 'gini'"),
        (["--of", "unembedding", "--sequences", "0"], "--sequences: input should be greater than 0"),
    ):
        assert command("measure", str(file), "--store", store.location, *options) == 1
        error = capsys.readouterr().err
        assert error.count("raysweep: error") == 1
        assert re.search(said, error), error


@pytest.mark.usefixtures("cluster")
def test_a_layer_against_itself_at_the_end(trained: tuple[Space, Store], file: Path) -> None:
    """Against a definition written out here, in numpy, on the checkpoints' own weights."""
    space, store = trained
    cell = space.cells[0]
    item = Measurement(of=("embedding", "blocks.0.mlp.up"), metrics=("cka",), against="end")
    measured = measure(space, store, [item])
    assert (measured.errors, measured.missing) == ({}, {})
    rows = store.read_rows(store.measures_file(cell.id), MEASURES) or []
    found = {(row["step"], row["matrix"]): row["value"] for row in rows if row["metric"] == "cka(end)"}
    weights = {
        step_of(name): checkpoint.read(store, f"{store.run_directory(cell.id)}/{name}", optimizer=False).model
        for name in names(store, store.run_directory(cell.id))
    }
    assert {step for step, _ in found} == set(weights) == {0, 1, 4, 8}

    def centred(step: int, matrix: str) -> np.ndarray:
        values = of_cells.weight(matrix, weights[step], cell.size).double().numpy()
        return values - values.mean(axis=0)

    for (step, matrix), value in found.items():
        x, y = centred(step, matrix), centred(8, matrix)
        norms = [np.linalg.norm(a.T @ b) for a, b in ((y, x), (x, x), (y, y))]
        assert value == pytest.approx(norms[0] ** 2 / (norms[1] * norms[2]), rel=1e-9)
    assert found[8, "embedding"] == pytest.approx(1)
    assert found[0, "embedding"] < found[4, "embedding"] < 1

    # In training only the end is known.
    assert _in_training(space, item) == {8: pytest.approx(1)}
    text = yaml.safe_load(file.read_text("utf-8")) | {"measure": [item.model_dump(mode="json", exclude_unset=True)]}
    file.write_text(yaml.safe_dump(text), "utf-8")
    with pytest.raises(
        UserError, match=r"space\.yaml:\d+: measure\[0\]\.against: end is known at the end only, .*: set"
    ):
        load(file)
    file.write_text(yaml.safe_dump(text | {"resources": {"train": {"keep_checkpoints": "all"}}}), "utf-8")
    assert load(file).measure == (item,)


def _in_training(space: Space, item: Measurement) -> dict[int, float]:
    run = Run(space.cells[0], open_corpus(space.cells[0].corpus), measure=[item])
    list(run.rows())
    return {row["step"]: row["value"] for row in run.state.measures if row["matrix"] == "embedding"}
