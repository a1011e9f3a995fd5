"""The paper's six sizes on a GPU: tokens per second against ai2-olmo and transformers, and a file for `raysweep plan`.

All train the same model from the same weights on the same tokens in bfloat16 autocast, with fused AdamW and clipping, on
batches of 64 sequences of 2,048: raysweep by `raysweep.training.run.Run`, compiled, not compiled, and with deterministic
operations; ai2-olmo with `F.cross_entropy`, compiled (which is nanoGPT's step, on this model) and not; and transformers'
`LlamaForCausalLM`, with `--liger` by Liger's. The peers take the batch in parts of 8 sequences, since their logits of
more do not fit. `loss alone` is against `F.cross_entropy`, and PyTorch's `linear_cross_entropy` and Liger's where they are
there.

    python -m benchmarks.gpu --output gpu.json
    raysweep plan search_spaces/paper.yaml --calibrate gpu.json

`--rehearse` goes through all of it on a CPU with a model of width 32: to see that it works, not to measure.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls

from benchmarks.harness import Result, arguments, in_turn, machine, ratios, show
from benchmarks.training_step import Text, llama_network, olmo_network
from raysweep.model.language_model import autocast, use_deterministic_operations
from raysweep.model.loss import unembedding_cross_entropy
from raysweep.space.cell import Cell
from raysweep.space.size import SIZES
from raysweep.sweep import cost
from raysweep.training.run import Run

OURS, EAGER, DETERMINISTIC = "raysweep", "raysweep, not compiled", "raysweep, deterministic"
OLMO, OLMO_COMPILED, LLAMA, LIGER = "ai2-olmo", "ai2-olmo, compiled", "transformers", "transformers with Liger"
PEERS_AT = ("4M", "28M", "75M")
PART = 8
"""Sequences in a forward pass of the peers."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured: on a GPU the paper's, in a rehearsal a small one."""

    device: torch.device
    sizes: dict[str, int]
    vocabulary: int
    length: int
    batch: int
    steps: int
    """Of one turn."""
    liger: bool = False
    """Whether transformers uses Liger's kernels: they replace some of its own for the whole process."""

    def cell(self, size: str) -> Cell:
        return Cell.model_validate(
            {
                "size": {"width": self.sizes[size]}, "tokens": 10_000 * self.batch * self.length, "batch_size": self.batch,
                "corpus": {"name": "installed", "tokenizer": "bpe", "vocabulary": self.vocabulary},
                "sequence_length": self.length, "seed": 1,
            }
        )  # fmt: skip


GPU = Setting(torch.device("cuda"), SIZES, 50_304, 2048, 64, 4)
REHEARSAL = Setting(torch.device("cpu"), {"4M": 32}, 512, 64, 4, 1)


def timed(device: torch.device, work: Callable[[], object]) -> Callable[[], float]:
    """Seconds of a piece of work, the device's queue included."""

    def turn() -> float:
        synchronize(device)
        begun = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - begun

    return turn


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ours(setting: Setting, cell: Cell, text: Text, compile: bool) -> Callable[[], object]:
    run = Run(cell, text, reports=(), device=setting.device, compile=compile)  # type: ignore[arg-type]

    def turn() -> None:
        for _ in range(setting.steps):
            run._step(run.state.step)
            run.state.step += 1

    return turn


def theirs(
    setting: Setting,
    network: torch.nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    batches: list[torch.Tensor],
) -> Callable[[], object]:
    """A plain loop that adds up the gradients of the parts of a batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def turn() -> None:
        for batch in batches:
            for part in batch.to(setting.device).split(PART):
                with autocast(setting.device):
                    value = loss(part) * (len(part) / len(batch))
                value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return turn


def contestants(setting: Setting, size: str, peers: bool) -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes each of them; one is made after the other is gone, since memory is short."""
    cell = setting.cell(size)
    text = Text(setting.vocabulary, setting.steps * setting.batch, setting.length)
    everything = text.sequences("", setting.length).read(np.arange(setting.steps * setting.batch))
    batches = list(torch.from_numpy(everything).split(setting.batch))
    on_gpu = setting.device.type == "cuda"

    def olmo(compile: bool) -> Callable[[], object]:
        network = olmo_network(cell).to(setting.device)
        if compile:
            network.compile()

        def loss(part: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(network(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten())

        return theirs(setting, network, loss, batches)

    def llama() -> Callable[[], object]:
        network = llama_network(cell).to(setting.device)
        if setting.liger:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama(model=network)
        return theirs(setting, network, lambda part: network(input_ids=part, labels=part).loss, batches)

    def deterministic() -> Callable[[], object]:
        use_deterministic_operations()
        return ours(setting, cell, text, compile=True)

    made: dict[str, Callable[[], Callable[[], object]]] = {OURS: lambda: ours(setting, cell, text, compile=on_gpu)}
    if peers:
        made |= {OLMO: lambda: olmo(False), LIGER if setting.liger else LLAMA: llama}
        if on_gpu:
            made |= {EAGER: lambda: ours(setting, cell, text, False), OLMO_COMPILED: lambda: olmo(True)}
            made[DETERMINISTIC] = deterministic
    return made


def measured(
    setting: Setting, make: Callable[[], Callable[[], object]], rounds: int
) -> tuple[list[float], float] | str:
    """Seconds of each turn after one to warm up, and the peak of the memory in bytes; why not, where it cannot be."""
    try:
        turn = timed(setting.device, make())
        turn()
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = [turn() for _ in range(rounds)]
        return seconds, float(torch.cuda.max_memory_allocated()) if setting.device.type == "cuda" else 0.0
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    finally:
        torch.use_deterministic_algorithms(False)
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def matmul_rate(setting: Setting) -> float:
    """FLOP/s of large matmuls in bfloat16 (on a CPU float32)."""
    n, kind = (8192, torch.bfloat16) if setting.device.type == "cuda" else (256, torch.float32)
    a, b = (torch.randn(n, n, device=setting.device, dtype=kind) for _ in range(2))
    turn = timed(setting.device, lambda: [a @ b for _ in range(10)])
    turn()
    return 10 * 2 * n**3 / min(turn() for _ in range(5))


def of_losses(setting: Setting, rounds: int) -> list[Result]:
    """The loss alone, forward and backward, of a part of the peers, at the smallest width."""
    cell = setting.cell(next(iter(setting.sizes)))
    states = torch.randn(PART * setting.length, cell.size.width, device=setting.device, requires_grad=True)
    weight = (0.02 * torch.randn(setting.vocabulary, cell.size.width, device=setting.device)).requires_grad_()
    targets = torch.randint(setting.vocabulary, (len(states),), device=setting.device)
    pieces = {
        OURS: lambda: unembedding_cross_entropy(states, weight, targets),
        "F.cross_entropy": lambda: F.cross_entropy(F.linear(states, weight), targets),
    }
    if (fused := getattr(F, "linear_cross_entropy", None)) is not None and setting.device.type == "cuda":
        pieces["F.linear_cross_entropy"] = lambda: fused(states, weight, targets)

    with suppress(ImportError):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        pieces["Liger"] = lambda: LigerFusedLinearCrossEntropyLoss()(weight, states, targets)

    def both_ways(piece: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def work() -> None:
            with autocast(setting.device):
                value = piece()
            value.backward()

        return timed(setting.device, work)

    turns = {name: both_ways(piece) for name, piece in pieces.items()}
    for turn in turns.values():
        turn()
    return ratios("loss alone", OURS, in_turn(turns, rounds), "times as fast")


def device_of(setting: Setting, name: str, peak: float, seconds: dict[str, float]) -> dict[str, Any]:
    """The device as `raysweep plan --calibrate` takes it: seconds per token by least squares on bytes and FLOP."""
    rows = [cost.per_token(setting.cell(size)) for size in seconds]
    features = np.array([(moved, flop + attention) for moved, flop, attention in rows])
    target = np.array(list(seconds.values()))
    (per_byte, per_flop), _ = nnls(features / target[:, None], np.ones(len(target)))
    fitted = features @ [per_byte, per_flop]
    return {
        "name": name, "peak": peak, "seconds_per_byte": float(per_byte), "seconds_per_flop": float(per_flop),
        "largest_error": float(np.abs(fitted / target - 1).max()),
    }  # fmt: skip


def main() -> int:
    parser = arguments(__doc__ or "", rounds=5)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the answer, with the device for `raysweep plan`"
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with a small model: to see that it works")
    parser.add_argument(
        "--liger", action="store_true", help="transformers by Liger's kernels (pip install liger-kernel)"
    )
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print(f"no GPU that PyTorch {torch.__version__} can use: nothing was measured (--rehearse tries it on a CPU)")
        return 1
    setting = dataclasses.replace(REHEARSAL if options.rehearse else GPU, liger=options.liger)
    name = "CPU, a rehearsal" if options.rehearse else torch.cuda.get_device_name()
    peak = matmul_rate(setting)
    seconds: dict[str, float] = {}
    of_sizes: dict[str, dict[str, Any]] = {}
    results: list[Result] = []
    for size in setting.sizes:
        costs: dict[str, list[float]] = {}
        of_sizes[size] = {}
        tokens = setting.steps * setting.batch * setting.length
        for contestant, make in contestants(setting, size, peers=size in PEERS_AT).items():
            print(f"{size}: {contestant}", file=sys.stderr)
            found = measured(setting, make, options.rounds)
            if isinstance(found, str):
                of_sizes[size][contestant] = found
                continue
            costs[contestant], memory = found
            rate = tokens / statistics.median(costs[contestant])
            _, flop, attention = cost.per_token(setting.cell(size))
            of_sizes[size][contestant] = {
                "tokens_per_second": round(rate), "share_of_matmuls": round(rate * (flop + attention) / peak, 4),
                "gigabytes": round(memory / 1e9, 2),
            }  # fmt: skip
        if OURS in costs:
            seconds[size] = statistics.median(costs[OURS]) / tokens
            results += ratios(size, OURS, costs, "times as fast")
    results += of_losses(setting, options.rounds)
    device = device_of(setting, name, peak, seconds)
    show(results, options.json, sizes=of_sizes, device=device)
    if options.output is not None:
        answer = {
            "results": [dataclasses.asdict(r) for r in results], "machine": machine(), "sizes": of_sizes, "device": device,
        }  # fmt: skip
        options.output.write_text(json.dumps(answer, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
