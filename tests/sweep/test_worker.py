"""Workers of one cell begin at the same checkpoint, or none of them trains."""

from pathlib import Path

import pytest
import torch
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation.in_distribution import Settings
from raysweep.store import Store
from raysweep.store.schemas import TIMINGS
from raysweep.store.store import TRAIN
from raysweep.sweep.cell_tables import write_cell_tables
from raysweep.sweep.evaluate_cell import evaluate_cell
from raysweep.sweep.same_code import code
from raysweep.sweep.worker import _check_same_start, went_on_elsewhere
from raysweep.training.resume import train_to_end
from raysweep.training.run import Run


def compare(rank: int, folder: str, names: list[str | None]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(names))
    try:
        _check_same_start(names[rank], len(names))
        said = "same"
    except RuntimeError as error:
        said = str(error)
    (Path(folder) / str(rank)).write_text(said)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_workers_that_found_different_checkpoints_do_not_train(tmp_path: Path) -> None:
    for names, said in (
        (["step-8", None], "the workers found different checkpoints in the store: step-8, None"),
        (["step-8", "step-8"], "same"),
    ):
        folder = tmp_path / said.replace(" ", "")
        folder.mkdir()
        torch.multiprocessing.spawn(compare, (str(folder), names), nprocs=2)
        assert [(folder / str(rank)).read_text() for rank in range(2)] == [said, said]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_evaluation_that_asked_for_a_gpu_does_not_quietly_compute_without_one(tmp_path: Path) -> None:
    """In float32 on a CPU its numbers would be others, and nothing in the store would say so."""
    with pytest.raises(UserError, match=r"^resources\.evaluate\.gpus is 0\.5, and PyTorch .* finds no GPU on .*: set "):
        evaluate_cell(make_cell(), Settings(), str(tmp_path), "f", code(), 1, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_went_on_elsewhere_says_both_devices(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    cell, store = make_cell(tokens=4096), Store(str(tmp_path))
    run = Run(cell, corpus)
    (here,) = run.state.computed_by
    gpu = {"device": "cuda", "device_name": "NVIDIA L4", "precision": "bfloat16 autocast", "kernels": "ai2-olmo",
           "compiled": "yes"}  # fmt: skip
    run.state.computed_by.insert(0, gpu)
    train_to_end(run, store, store.run_directory(cell.id), None, None, 300.0)
    again = Run(cell, corpus, checkpoint=run.checkpoint())
    assert again.state.computed_by == [gpu, here]
    assert went_on_elsewhere([], [here]) is None
    assert went_on_elsewhere([gpu, here], again.state.computed_by) is None
    said = went_on_elsewhere([here, gpu], [here, gpu, {**gpu, "kernels": "raysweep"}])
    assert said is not None
    assert said.startswith("a cell that was trained on kernels ai2-olmo goes on on kernels raysweep: ")
    write_cell_tables(cell, store, 0)
    (row,) = store.read_rows(store.timing_file(cell.id, TRAIN), TIMINGS) or []
    assert row["device"] == "cuda, then cpu"
    assert row["device_name"] == f"NVIDIA L4, then {here['device_name']}"
    assert row["precision"] == "bfloat16 autocast, then float32"
