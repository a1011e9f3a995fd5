"""The losses of 200 steps: against ai2-olmo in a plain PyTorch loop, and against what they were when they were written down.

`golden_trajectory.txt` was written by `python tests/test_trajectory.py`, on the processor and with the versions in its first
line; where any of those differ the last digits may, and the losses are held to 1e-4 instead. Write it anew only for a change
that is meant to change the numbers.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from olmo.model import OLMo
from tiny import make_cell

from raysweep.corpora.sequences import Sequences
from raysweep.model import kernels
from raysweep.training.run import Run
from raysweep.training.schedule import learning_rate

GOLDEN = Path(__file__).parent / "golden_trajectory.txt"
STEPS = 200
CELL = make_cell(size={"width": 32}, tokens=STEPS * 4 * 32, learning_rate=0.003)


class Text:
    """Token ids under Zipf's law out of a linear congruential generator: the same wherever there are integers."""

    fingerprint = "zipf"

    def __init__(self) -> None:
        state, ids = 1, []
        for _ in range(STEPS * 4 * 32 + 1):
            state = (1103515245 * state + 12345) % 2**31
            ids.append(int(512 ** (state / 2**31)) - 1)
        self.ids = np.array(ids)

    def sequences(self, shard: str, length: int) -> Sequences:
        return Sequences(self.ids, length)


TEXT: Any = Text()


def made_on() -> dict[str, str]:
    """What the last digits may depend on."""
    compiler = shutil.which("cc") or ""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout if compiler else ""
    return {
        "torch": torch.__version__,
        "processor": hashlib.sha256(kernels._processor().encode()).hexdigest()[:12],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "compiler": version.partition("\n")[0],
        "kernels": str(kernels._library() is not None),
        "threads": str(torch.get_num_threads()),
    }


@cache
def losses() -> list[float]:
    """Of every step, as raysweep trains."""
    run = Run(CELL, TEXT)
    return [float(run._step(step)[0]) for step in range(STEPS)]


def test_200_steps_against_ai2_olmo() -> None:
    model = OLMo((run := Run(CELL, TEXT)).model.olmo.config)
    model.load_state_dict(run.model.olmo.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
    sequences = TEXT.sequences("", 32)
    order = sequences.order(TEXT.fingerprint, CELL.seed)
    theirs = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(CELL, step)
        tokens = torch.from_numpy(sequences.read(order.at(torch.arange(4 * step, 4 * step + 4).numpy())))
        loss = F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    assert losses() == pytest.approx(theirs, abs=1e-4)
    assert losses()[-1] < losses()[0] - 1  # It did learn, so that equal losses say something.


def test_200_steps_to_the_last_digit() -> None:
    first, *lines = GOLDEN.read_text().splitlines()
    golden = [float.fromhex(line) for line in lines]
    if json.loads(first) == made_on():
        assert [loss.hex() for loss in losses()] == lines
    else:
        assert losses() == pytest.approx(golden, abs=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write("\n".join([json.dumps(made_on()), *(loss.hex() for loss in losses())]) + "\n")
