"""A whole training step against ai2-olmo, transformers and its Trainer, and against the machine's own matmuls.

All train the same model from the same weights on the same tokens with AdamW and clipping, in float32 on the same number
of threads: raysweep by `raysweep.training.run.Run`; ai2-olmo's own forward pass and transformers' `LlamaForCausalLM` in a
plain PyTorch loop with `F.cross_entropy`; and `transformers.Trainer`, from its callback at the beginning of training to that
at the end, its set-up apart. `memory` compares the peak beyond the model itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.harness import Result, arguments, in_turn, ratios, show
from raysweep.model import olmo as model
from raysweep.model.language_model import LanguageModel
from raysweep.model.loss import unembedding_cross_entropy
from raysweep.space.cell import Cell
from raysweep.training.run import Run

# name -> width, vocabulary, sequence length, batch size, steps of one turn.
CASES = {
    "width 32": (32, 8192, 256, 16, 4),
    "OLMo-4M": (64, 50304, 512, 4, 2),
    "OLMo-16M": (256, 50304, 512, 2, 2),
}
OURS, OLMO, LLAMA, TRAINER = "raysweep", "ai2-olmo", "transformers", "transformers Trainer"
SPLIT = "raysweep in micro-batches"


class Text:
    """Token ids at random under a Zipf law, in the form of a `TokenizedCorpus`."""

    fingerprint = "random"

    def __init__(self, vocabulary: int, sequences: int, length: int) -> None:
        rng = np.random.default_rng(0)
        weights = 1 / np.arange(1, vocabulary + 1)
        self.ids = rng.choice(vocabulary, size=sequences * length + 1, p=weights / weights.sum()).astype(np.int64)

    def sequences(self, shard: str, length: int) -> Any:
        from raysweep.corpora.sequences import Sequences

        return Sequences(self.ids, length)


def cell_of(case: str, tokens: int | None = None) -> Cell:
    width, vocabulary, length, batch, _ = CASES[case]
    batch = batch if tokens is None else tokens // length
    return Cell.model_validate(
        {
            "size": {"width": width}, "corpus": {"name": "installed", "tokenizer": "bpe", "vocabulary": vocabulary},
            "tokens": 10_000 * batch * length, "batch_size": batch, "sequence_length": length, "seed": 1,
        }
    )  # fmt: skip


def loop(
    network: torch.nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor]
) -> Callable[[], list[float]]:
    """A plain PyTorch loop over the batches, which goes on where it was each time it is called."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
    )

    def turn() -> list[float]:
        losses = []
        for batch in batches:
            value = loss(batch)
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(value.detach()))
        return losses

    return turn


def ours(cell: Cell, text: Text, steps: int, compile: bool = False, whole: bool = True) -> Callable[[], list[float]]:
    """A batch at once, as the others take it, or unless `whole` in the micro-batches that a run takes by itself."""
    micro_batch_size = cell.batch_size if whole else None
    run = Run(cell, text, reports=(), micro_batch_size=micro_batch_size, compile=compile)  # type: ignore[arg-type]

    def turn() -> list[float]:
        losses = []
        for _ in range(steps):
            losses.append(float(run._step(run.state.step)[0]))
            run.state.step += 1
        return losses

    return turn


def olmo_network(cell: Cell) -> torch.nn.Module:
    """ai2-olmo with its own unembedding, from the weights that raysweep starts from."""
    network = model.build(cell.shape, cell.sequence_length, cell.seed)
    weight = network.transformer.ff_out.weight
    unembedding = torch.nn.Linear(cell.size.width, cell.shape.vocabulary, bias=False)
    unembedding.weight = weight
    network.transformer["ff_out"] = unembedding
    return network


def olmo(cell: Cell, batches: list[torch.Tensor]) -> Callable[[], list[float]]:
    network = olmo_network(cell)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())

    return loop(network, loss, batches)


def llama_network(cell: Cell) -> torch.nn.Module:
    from raysweep.exchange.llama import to_llama

    weights = model.build(cell.shape, cell.sequence_length, cell.seed).state_dict()
    return to_llama(cell, weights, end_of_text=0).train()


def llama(cell: Cell, batches: list[torch.Tensor]) -> Callable[[], list[float]]:
    network = llama_network(cell)
    # `labels` are shifted inside, so that the last target needs the last token among the inputs.
    return loop(network, lambda batch: network(input_ids=batch, labels=batch).loss, batches)


def trainer(cell: Cell, batches: list[torch.Tensor]) -> Callable[[], float]:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *given: Any, **more: Any) -> None:
            self.begun = time.perf_counter()

        def on_train_end(self, *given: Any, **more: Any) -> None:
            self.seconds = time.perf_counter() - self.begun

    network = llama_network(cell)
    rows = [{"input_ids": row, "labels": row} for batch in batches for row in batch]

    def turn() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(
                folder, per_device_train_batch_size=cell.batch_size, max_steps=len(batches), learning_rate=1e-3,
                adam_beta2=0.95, weight_decay=0.1, max_grad_norm=1.0, lr_scheduler_type="constant", use_cpu=True,
                report_to=[], save_strategy="no", log_level="error", logging_strategy="no", disable_tqdm=True,
                optim="adamw_torch_fused",
            )  # fmt: skip
            one = Trainer(network, options, train_dataset=rows, callbacks=[clock])
            one.remove_callback(PrinterCallback)  # It would print between our lines of JSON.
            one.train()
        return clock.seconds

    return turn


def parts(cell: Cell, batch: torch.Tensor, rounds: int) -> dict[str, float]:
    """Microseconds per token, forward and backward, of the loss and of the blocks alone, raysweep's and PyTorch's."""
    network = model.build(cell.shape, cell.sequence_length, cell.seed)
    weight = network.transformer.ff_out.weight
    inputs, targets = batch[:, :-1], batch[:, 1:]
    states = torch.randn(*inputs.shape, cell.size.width, requires_grad=True)
    language_model = LanguageModel(network)
    pieces: dict[str, Callable[[], torch.Tensor]] = {
        "loss, raysweep": lambda: unembedding_cross_entropy(states, weight, targets),
        "loss, F.cross_entropy": lambda: F.cross_entropy((states @ weight.T).flatten(0, 1), targets.flatten()),
        "blocks, raysweep": lambda: language_model.hidden(inputs).sum(),
        "blocks, ai2-olmo": lambda: network(inputs).logits.sum(),
    }
    seconds = in_turn({name: lambda piece=piece: piece().backward() for name, piece in pieces.items()}, rounds + 1)
    return {name: round(sorted(s[1:])[rounds // 2] / inputs.numel() * 1e6, 1) for name, s in seconds.items()}


def matmul_rate(seconds: float = 1.0) -> float:
    """FLOP/s of this machine's large float32 matmuls, on torch's number of threads."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    a @ b
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(4):
            a @ b
        best = max(best, 4 * 2 * 1024**3 / (time.perf_counter() - begun))
    return best


def compare(case: str, rounds: int, compile: bool) -> tuple[list[Result], dict[str, Any]]:
    steps = CASES[case][-1]
    cell = cell_of(case)
    text = Text(cell.shape.vocabulary, steps * cell.batch_size, cell.sequence_length)
    everything = text.sequences("", cell.sequence_length).read(np.arange(steps * cell.batch_size))
    batches = list(torch.from_numpy(everything).split(cell.batch_size))
    contestants: dict[str, Callable[[], object]] = {
        OURS: ours(cell, text, steps, compile), OLMO: olmo(cell, batches), LLAMA: llama(cell, batches),
        TRAINER: trainer(cell, batches),
    }  # fmt: skip
    rates = [matmul_rate()]
    for warm in contestants.values():
        warm()
    seconds = in_turn(contestants, rounds)
    rates.append(matmul_rate())
    tokens = steps * cell.tokens_per_step
    fastest = min(seconds[OURS])
    rate = max(rates)
    detail = {
        "tokens per second": {name: round(tokens / sorted(s)[len(s) // 2]) for name, s in seconds.items()},
        "microseconds per token": parts(cell, batches[0], rounds),
        "matmul GFLOP/s of this machine": round(rate / 1e9, 1),
        "fraction of the matmul rate": round(6 * cell.shape.parameters * tokens / fastest / rate, 3),
    }
    return ratios(case, OURS, seconds, "x tokens per second"), detail


def peak_memory(subject: str, tokens: int) -> float:
    """MiB by which one step of OLMo-4M on `tokens` tokens in one micro-batch raises the peak of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training_step", "--peak", subject, "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def _peak(subject: str, tokens: int) -> float:
    cell = cell_of("OLMo-4M", tokens)
    text = Text(cell.shape.vocabulary, cell.batch_size, cell.sequence_length)
    batch = torch.from_numpy(text.sequences("", cell.sequence_length).read(np.arange(cell.batch_size)))
    turn = olmo(cell, [batch]) if subject == OLMO else ours(cell, text, 1, whole=subject == OURS)
    before = _peak_rss()
    turn()
    return _peak_rss() - before


def _peak_rss() -> float:
    """MiB that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the parent held when it started this process.
        return (
            next(float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory() -> tuple[list[Result], dict[str, float]]:
    """Peaks are the same every time to a few MiB, so each is taken once."""
    costs = {subject: [peak_memory(subject, 8192)] for subject in (OURS, OLMO)}
    twice, in_parts = peak_memory(OURS, 16384), peak_memory(SPLIT, 65536)
    detail = {f"{name} MiB at 8,192 tokens": round(peak) for name, (peak,) in costs.items()}
    return ratios("OLMo-4M memory", OURS, costs, "x peak memory"), detail | {
        "raysweep MiB at 16,384 tokens": round(twice),
        "raysweep MiB at 65,536 tokens in the micro-batches that a run takes by itself": round(in_parts),
    }


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--case", action="append", choices=[*CASES, "memory"], help="only this case; may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of every contestant (default 1)")
    parser.add_argument("--compile", action="store_true", help="raysweep with resources.train.compile")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(_peak(options.peak, options.tokens))
        return
    results, details = [], {}
    for case in options.case or [*CASES, "memory"]:
        found, details[case] = memory() if case == "memory" else compare(case, options.rounds, options.compile)
        results += found
    show(results, options.json, threads=options.threads, details=details)


if __name__ == "__main__":
    main()
