"""The training loop: against a plain PyTorch loop, resumed, accumulated, over two workers, diverging."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from olmo.model import OLMo
from pydantic import ValidationError
from tiny import make_cell
from torch.nn.parallel import DistributedDataParallel

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation.finetune import finetuning
from raysweep.space.cell import Cell
from raysweep.space.evaluations import evaluation
from raysweep.space.measure import Measurement
from raysweep.store import Store
from raysweep.training import checkpoint
from raysweep.training import run as train
from raysweep.training.run import Run
from raysweep.training.schedule import learning_rate


def trained(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.rows() if row is not None]


def test_against_a_plain_loop_with_ai2_olmo(corpus: TokenizedCorpus) -> None:
    """The same cell by ai2-olmo's own forward pass, `F.cross_entropy` and torch's own scheduler arithmetic."""
    cell = make_cell(size={"width": 16}, final_learning_rate_fraction=0.2, weight_decay=0.3)
    run = Run(cell, corpus, micro_batch_size=3)
    model = OLMo(run.model.olmo.config)
    model.load_state_dict(run.model.olmo.state_dict())
    rows = trained(run)

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3, fused=False, foreach=False
    )
    sequences = corpus.sequences("pretraining/train", 32)
    order = sequences.order(corpus.fingerprint, 6198)
    losses = []
    for step in range(32):
        # Warm-up over 10% of 32 steps is 3 steps; then a half cosine over the other 29.
        share = (step + 1) / 3 if step < 3 else 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step + 1 - 3) / 29))
        optimizer.param_groups[0]["lr"] = cell.peak_learning_rate * share
        tokens = torch.from_numpy(sequences.read(order.at(torch.arange(4 * step, 4 * step + 4).numpy())))
        logits = model(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    for before, row in itertools.pairwise(rows):
        expected = sum(losses[before["step"] : row["step"]]) / (row["step"] - before["step"])
        assert row["train_loss"] == pytest.approx(expected, abs=1e-5)
    assert rows[-1]["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    validation = torch.from_numpy(corpus.sequences("pretraining/validation", 32).read(torch.arange(4).numpy()))
    logits = model(validation[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), validation[:, 1:].flatten()).detach()
    assert rows[-1]["validation_loss"] == pytest.approx(float(loss), abs=1e-5)


def test_learning_rate_schedule() -> None:
    cell = make_cell(tokens=100 * 128, final_learning_rate_fraction=0.1, warmup_fraction=0.1)
    assert cell.steps == 100
    rates = [learning_rate(cell, step) / cell.peak_learning_rate for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[54] == pytest.approx(0.55)  # halfway down the cosine
    assert rates[99] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))
    constant = make_cell(final_learning_rate_fraction=1.0, warmup_fraction=0.0)
    assert {learning_rate(constant, step) for step in range(32)} == {constant.peak_learning_rate}
    one_step = make_cell(tokens=128)
    assert learning_rate(one_step, 0) == pytest.approx(0.1 * one_step.peak_learning_rate)


def test_interrupted_anywhere_the_rows_are_the_same_to_the_last_bit(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """Stopped after a row, and between rows (where the loss since the last row is half summed), then gone on from disk."""
    cell = make_cell(batch_size=2, validation_sequences=2)
    reference = trained(Run(cell, corpus))
    for stop in (0, 1, 17, 41, 64):
        run = Run(cell, corpus)
        for _ in run.rows(pause=lambda step, stop=stop: step == stop):  # type: ignore[misc]
            if run.state.step == stop:
                break
        store = Store(str(tmp_path))
        checkpoint.write(run.checkpoint(), store, str(stop))
        resumed = Run(cell, corpus, checkpoint=checkpoint.read(store, str(stop)))
        assert resumed.state.step == stop
        list(resumed.rows())
        assert resumed.state.rows == reference
        assert resumed.state.starts == 2


def test_a_checkpoint_of_another_cell_or_corpus_is_refused(corpus: TokenizedCorpus) -> None:
    run = Run(make_cell(), corpus)
    with pytest.raises(UserError, match="cannot continue"):
        Run(make_cell(seed=1), corpus, checkpoint=run.checkpoint())


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 100])
def test_gradient_accumulation_changes_rounding_only(corpus: TokenizedCorpus, micro_batch_size: int) -> None:
    cell = make_cell(tokens=1024)
    whole = trained(Run(cell, corpus, micro_batch_size=4))
    parts = trained(Run(cell, corpus, micro_batch_size=micro_batch_size))
    for a, b in zip(whole, parts, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=1e-5)
        assert b["effective_rank_W"] == pytest.approx(a["effective_rank_W"], abs=1e-4)


def train_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    corpus = TokenizedCorpus(Path((Path(folder) / "corpus").read_text()))
    cell = Cell.model_validate_json((Path(folder) / "cell").read_text())
    make = partial(
        Run, cell, corpus, rank=rank, workers=2, micro_batch_size=1, distribute=DistributedDataParallel, measure=MEASURED
    )  # fmt: skip
    # Stopped between two rows, and gone on from what the first of them wrote.
    run = make()
    next(None for _ in run.rows(pause=lambda step: step == 6) if run.state.step == 6)
    if rank == 0:
        checkpoint.write(run.checkpoint(), Store(folder), "half")
    torch.distributed.barrier()
    run = make(checkpoint=checkpoint.read(Store(folder), "half"))
    list(run.rows())
    checkpoint.write(run.checkpoint(), Store(folder), str(rank))
    torch.distributed.destroy_process_group()


# Of one worker, while the others wait.
MEASURED = [
    Measurement(of=("gradients.unembedding", "blocks.1.mlp.up"), metrics=("frobenius_norm",)),
    Measurement(of=("hidden.2",), metrics=("effective_rank",), sequences=8),
]

MOVED = {"effective_rank_target": 0.5, "effective_rank_penalty": 10.0, "spectral_norm_cap": 1.0}


@pytest.mark.parametrize("changes", [{}, MOVED], ids=["plain", "interventions"])
def test_two_workers_give_the_losses_of_one(corpus: TokenizedCorpus, tmp_path: Path, changes: dict[str, float]) -> None:
    cell = make_cell(tokens=1024, reports=2, **changes)
    assert {4, 8} <= set(cell.report_steps) <= {0, 1, 2, 4, 8}
    (tmp_path / "corpus").write_text(str(corpus.folder))
    (tmp_path / "cell").write_text(cell.model_dump_json())
    torch.multiprocessing.spawn(train_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (checkpoint.read(Store(str(tmp_path)), str(rank)) for rank in (0, 1))
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)
    # Rows are the first worker's: the second has those that it went on from.
    assert second.state.rows == [row for row in first.state.rows if row["step"] <= 6] != []
    alone = Run(cell, corpus, measure=MEASURED)
    rows = trained(alone)
    assert [row["value"] for row in first.state.measures] == pytest.approx(
        [row["value"] for row in alone.state.measures], abs=2e-5
    )
    for one, two in zip(rows, first.state.rows, strict=True):
        assert two.keys() == one.keys()
        # Isotropy is taken over eigenvectors, and rounding alone chooses those of singular values that are all at the cap.
        determined = [name for name in one if not (changes and name.startswith("isotropy"))]
        for name, value in ((name, one[name]) for name in determined):
            assert two[name] == (pytest.approx(value, abs=2e-5) if isinstance(value, float) else value)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(corpus: TokenizedCorpus) -> None:
    run = Run(make_cell(learning_rate=1e30, tokens=8192), corpus)
    rows = trained(run)
    assert run.state.diverged
    assert run.finished
    assert rows[-1]["step"] < 64
    assert not math.isfinite(rows[-1]["train_loss"] + rows[-1]["gradient_norm"])
    # Going on from there does nothing more.
    assert not trained(Run(run.cell, corpus, checkpoint=run.checkpoint()))


def test_several_epochs_when_the_corpus_is_smaller_than_the_budget(corpus: TokenizedCorpus) -> None:
    """Sequences of 1024 tokens, more of them than the training shard holds."""
    sequences = len(corpus.sequences("pretraining/train", 1024))
    steps = sequences // 64 + 2
    cell = make_cell(batch_size=64, sequence_length=1024, tokens=64 * 1024 * steps, validation_sequences=1)
    run = Run(cell, corpus)
    order = run.order.at(torch.arange(64 * steps).numpy())
    assert len(set(order[:sequences].tolist())) == sequences < len(order)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(corpus: TokenizedCorpus) -> None:
    cell = make_cell(size={"width": 8, "depth": 1}, tokens=256)
    plain, compiled = (trained(Run(cell, corpus, compile=compile)) for compile in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], abs=1e-5)


@pytest.mark.parametrize("block", ["sequential", "parallel"])
def test_blocks_are_one_graph_that_is_compiled_once(corpus: TokenizedCorpus, block: str) -> None:
    """What GPUs run: no graph break under autocast, no second compilation over a run. The graph is not made code of."""
    cell = make_cell(
        size={"width": 96, "heads": 2, "depth": 2}, block=block, tokens=32 * 8 * 6, batch_size=8, precision="bfloat16"
    )
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    run = Run(cell, corpus, micro_batch_size=4)
    run.model.olmo.compile(backend=keep, fullgraph=True)
    for step in range(cell.steps):
        run._step(step)
    assert len(graphs) == 1


def test_parts_of_a_batch_are_of_one_size() -> None:
    """75M at a batch of 128 fits 60 sequences on some GPU: four of 32, not 60, 60 and 8."""
    assert [train.even_micro_batch(128, most) for most in (60, 64, 127, 200, 1)] == [32, 64, 64, 128, 1]
    assert train.even_micro_batch(7, 5) == 1


def test_micro_batches_fit() -> None:
    small, large = make_cell(batch_size=32), make_cell(size="75M", sequence_length=2048, tokens=10**9, batch_size=256)
    assert train.fitting_micro_batch(small, torch.device("cpu")) == 32
    assert train.fitting_micro_batch(large, torch.device("cpu")) == 1


@pytest.mark.parametrize("schedule", [{"schedule": "linear"}, {"schedule": "wsd", "decay_fraction": 0.25}])
def test_other_schedules_are_those_of_torchs_own_schedulers(schedule: dict[str, Any]) -> None:
    cell = make_cell(
        tokens=128 * 40, warmup_fraction=0.2, final_learning_rate_fraction=0.3, learning_rate=2.0, **schedule
    )
    assert (cell.steps, cell.warmup_steps, cell.decay_steps) == (40, 8, 32 if cell.schedule == "linear" else 10)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    stable = 40 - 8 - cell.decay_steps
    parts = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 8, 1.0, 7),
        torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1),
        torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.3, cell.decay_steps),
    ]
    # Its line begins at the peak, which here the step before has.
    together = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [7, 7 + stable])
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        together.step()
    assert [learning_rate(cell, step) for step in range(40)] == pytest.approx(rates, rel=1e-9)
    assert rates[7] == 2.0 > rates[-1] == pytest.approx(0.6)


def test_a_finetuning_has_its_own_schedule_whatever_the_cell_has() -> None:
    tuned = [
        finetuning(make_cell(**more), evaluation("finetune_math"))
        for more in ({}, {"schedule": "wsd", "decay_fraction": 0.5}, {"schedule": "linear"})
    ]
    assert tuned[0] == tuned[1] == tuned[2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"schedule": "wsd"}, "schedule: wsd and decay_fraction need each other"),
        ({"decay_fraction": 0.5}, "schedule: wsd and decay_fraction need each other"),
        ({"schedule": "wsd", "decay_fraction": 0.95}, "is 30 of 32 steps, of which warmup_fraction takes 3"),
        ({"schedule": "wsd", "decay_fraction": 0.001}, "is 0 of 32 steps"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make_cell(**wrong)


def test_a_run_of_years_asks_for_checkpoints_as_often_as_others(corpus: TokenizedCorpus) -> None:
    """Whoever stops a sweep waits for the cells' checkpoints, and a time limit for nobody."""
    run = Run(make_cell(tokens=10**12), corpus, reports=(0,))
    asked: list[int] = []

    def pause(step: int) -> bool:
        asked.append(step)
        return len(asked) == 3

    row, checkpointed = itertools.islice(run.rows(pause=pause), 2)
    assert row is not None
    assert checkpointed is None
    assert asked == [100, 200, 300]
    assert run.checkpoint().state.step == 300


def test_a_long_run_without_reports_ends_with_its_last_step(
    corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fine-tunings are, whose steps are no multiple of those after which a long one looks up."""
    monkeypatch.setattr(train, "CHECKS", 1)
    monkeypatch.setattr(train, "LEAST_OFTEN", 10)
    run = Run(make_cell(tokens=25 * 128), corpus, reports=())
    for _ in run.rows(pause=lambda step: True):
        assert run.state.step <= 25
    assert run.state.step == run.cell.steps == 25
