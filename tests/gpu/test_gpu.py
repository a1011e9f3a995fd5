"""What only a GPU can show: `make test-gpu`. Without one every test is skipped, with that reason."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import make_cell

from benchmarks.training_step import Text
from raysweep.corpora.build import open_corpus
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.evaluation import finetune, in_distribution, out_of_distribution, quantized, representation
from raysweep.evaluation.run import run as evaluate
from raysweep.model import interventions
from raysweep.model.language_model import gpu, use_deterministic_operations
from raysweep.model.loss import unembedding_cross_entropy
from raysweep.space.cell import Cell
from raysweep.space.evaluations import Evaluation
from raysweep.space.size import SIZES
from raysweep.store import Store
from raysweep.training import checkpoint
from raysweep.training.run import Run

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that this PyTorch can use"),
]


def paper_cell(size: str, batch: int = 64) -> Cell:
    return make_cell(
        size=size, corpus={"name": "installed", "tokenizer": "bpe", "vocabulary": 50_304}, sequence_length=2048,
        batch_size=batch, tokens=batch * 2048 * 1000,
    )  # fmt: skip


def text_for(cell: Cell) -> Text:
    return Text(cell.shape.vocabulary, 2 * cell.batch_size, cell.sequence_length)


@pytest.mark.parametrize("d", [64, 256, 768])
def test_the_loss_is_no_further_from_float64_than_pytorchs_own(d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, d, generator=generator).to(DEVICE).requires_grad_()
    weight = (0.02 * torch.randn(50_304, d, generator=generator)).to(DEVICE).requires_grad_()
    targets = torch.randint(50_304, (4096,), generator=generator).to(DEVICE)
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    value = F.cross_entropy(exact[0] @ exact[1].T, targets)
    truth = [value.detach(), *torch.autograd.grad(value, exact)]
    found = []
    for loss in (
        lambda: unembedding_cross_entropy(hidden, weight, targets),
        lambda: F.cross_entropy(F.linear(hidden, weight), targets),
    ):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss()
        found.append([value.detach(), *torch.autograd.grad(value, (hidden, weight))])
    for name, ours, theirs, true in zip(("loss", "dH", "dW"), *found, truth, strict=True):
        own, other = (float((x.double() - true).norm() / true.norm()) for x in (ours, theirs))
        assert own <= 1.05 * other, (name, own, other)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_fits_and_waits_for_nothing(size: str) -> None:
    """A batch of 64 sequences in the micro-batches that are chosen: within the memory, and no step waits for the GPU."""
    cell = paper_cell(size)
    run = Run(cell, text_for(cell), reports=(), device=DEVICE, compile=True)  # type: ignore[arg-type]
    assert cell.batch_size % run.micro_batch_size == 0
    run._step(0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        total, _ = run._step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 9 < float(total) < 13  # ln 50,304 is 10.8
    assert torch.cuda.max_memory_allocated() < 0.8 * torch.cuda.get_device_properties(DEVICE).total_memory


def test_attention_is_flash_attention() -> None:
    cell = paper_cell("4M", batch=8)
    run = Run(cell, text_for(cell), reports=(), device=DEVICE)  # type: ignore[arg-type]
    with torch.profiler.profile() as profiler:
        run._step(0)
    names = [event.key for event in profiler.key_averages()]
    assert any("flash" in name.lower() for name in names), names


def test_compiled_blocks_give_the_losses_of_others(corpus: TokenizedCorpus) -> None:
    cell = make_cell(size={"width": 64}, tokens=32 * 64 * 20, batch_size=64)
    losses = [
        [row["validation_loss"] for row in Run(cell, corpus, device=DEVICE, compile=compile).rows() if row]
        for compile in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
    on_cpu = [row["validation_loss"] for row in Run(cell, corpus).rows() if row]
    assert losses[0] == pytest.approx(on_cpu, abs=0.02)


def test_a_run_resumes_where_it_was(corpus: TokenizedCorpus) -> None:
    cell = make_cell(size={"width": 32}, tokens=32 * 16 * 20, batch_size=16)
    whole = [row for row in Run(cell, corpus, device=DEVICE).rows() if row]
    first = Run(cell, corpus, device=DEVICE)
    for row in first.rows():
        if row is not None and row["step"] >= 10:
            break
    second = [row for row in Run(cell, corpus, device=DEVICE, checkpoint=first.checkpoint()).rows() if row]
    assert second[-1]["step"] == whole[-1]["step"]
    assert second[-1]["validation_loss"] == pytest.approx(whole[-1]["validation_loss"], abs=1e-3)
    assert second[-1]["effective_rank_W"] == pytest.approx(whole[-1]["effective_rank_W"], abs=1e-3)


def trained(compile: bool, stop: int | None) -> str:
    """The digest of a cell's final weights, trained with deterministic operations; resumed once, after `stop` steps."""
    use_deterministic_operations()
    cell = make_cell(size={"width": 64}, tokens=32 * 64 * 20, batch_size=64)
    corpus = open_corpus(cell.corpus)
    run = Run(cell, corpus, device=DEVICE, compile=compile)
    for _ in run.rows():
        if stop is not None and run.state.step >= stop:
            run = Run(cell, corpus, device=DEVICE, compile=compile, checkpoint=checkpoint.copied(run.checkpoint()))
            for _ in run.rows():
                pass
            break
    return checkpoint.digest(run.checkpoint().model)


@pytest.mark.parametrize("compile", [False, True])
def test_deterministic_runs_are_bit_equal_and_resume_so(compile: bool) -> None:
    """Each in a process of its own, since cuBLAS is told when it starts."""
    found = set()
    for stop in (None, None, 10):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.add(pool.submit(trained, compile, stop).result())
    assert len(found) == 1


def test_interventions_are_those_of_a_cpu() -> None:
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(50_304, 256))[0] @ torch.diag(torch.linspace(1, 0.1, 256))
    rank, gradient = interventions.effective_rank_and_gradient(weight)
    on_gpu_rank, on_gpu = interventions.effective_rank_and_gradient(weight.to(DEVICE))
    assert on_gpu.dtype == torch.float32
    assert on_gpu_rank == pytest.approx(rank, rel=1e-5)
    assert float((on_gpu.cpu() - gradient).norm() / gradient.norm()) < 1e-3


def test_a_share_of_the_gpu_is_a_share_of_its_memory() -> None:
    whole = torch.cuda.get_device_properties(DEVICE).total_memory
    gpu(0.25, "resources.train.gpus")
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(int(0.3 * whole), dtype=torch.uint8, device=DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(
    "settings",
    [
        in_distribution.Settings(sequences=32), out_of_distribution.Settings(sequences=8),
        representation.Settings(sequences=64),
        quantized.Settings(bits=(4,), calibration_sequences=32, sequences=32),
        finetune.Settings(task="finetune_python", tokens=32 * 32 * 8, sequences=32),
    ],
    ids=lambda settings: settings.task,
)  # fmt: skip
def test_an_evaluation_gives_nearly_what_a_cpu_gives(
    settings: Evaluation, corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    cell = make_cell(size={"width": 32}, tokens=65_536, batch_size=32)
    run = Run(cell, corpus, reports=())
    list(run.rows())
    weights = run.checkpoint().model
    values = {}
    for device in ("cpu", "cuda"):
        store = Store(str(tmp_path / device))
        rows, by = evaluate(cell, settings, weights, corpus, store, torch.device(device))
        assert by["device"] == device
        values[device] = {row["metric"]: row["value"] for row in rows}
    assert values["cuda"] == pytest.approx(values["cpu"], abs=0.05)
