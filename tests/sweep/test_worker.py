"""Workers of one cell begin at the same checkpoint, or none of them trains."""

from pathlib import Path

import torch

from raysweep.sweep.worker import _check_same_start


def compare(rank: int, folder: str, names: list[str | None]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(names))
    try:
        _check_same_start(names[rank], len(names))
        said = "same"
    except RuntimeError as error:
        said = str(error)
    (Path(folder) / str(rank)).write_text(said)
    torch.distributed.destroy_process_group()


def test_workers_that_found_different_checkpoints_do_not_train(tmp_path: Path) -> None:
    for names, said in (
        (["step-8", None], "the workers found different checkpoints in the store: step-8, None"),
        (["step-8", "step-8"], "same"),
    ):
        folder = tmp_path / said.replace(" ", "")
        folder.mkdir()
        torch.multiprocessing.spawn(compare, (str(folder), names), nprocs=2)
        assert [(folder / str(rank)).read_text() for rank in range(2)] == [said, said]
