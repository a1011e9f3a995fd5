"""The compiled blocks against ai2-olmo's own forward and backward pass, in float64 and in float32."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raysweep.model import kernels
from raysweep.model import olmo as model

pytestmark = pytest.mark.skipif(kernels._library() is None, reason="no C compiler on this machine")


def states_and_gradients(
    olmo: torch.nn.Module, compute: object, inputs: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    parameters = {n: p for n, p in olmo.named_parameters() if n != "transformer.ff_out.weight"}
    states = compute(inputs)  # type: ignore[operator]
    found = torch.autograd.grad(states, list(parameters.values()), grad.to(states.dtype))
    return states.detach(), dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("block", ["sequential", "parallel"])
@pytest.mark.parametrize(
    ("width", "heads", "length", "batch"),
    [
        (8, 4, 1, 2),
        (16, 4, 7, 3),
        (32, 4, 40, 2),
        (64, 4, 256, 2),
        (64, 2, 33, 2),
        (48, 3, 17, 1),
        (24, 4, 19, 2),
        (48, 4, 20, 1),
        (96, 4, 35, 2),
        (96, 2, 37, 2),
        (128, 2, 66, 2),
        (192, 2, 33, 1),
        (256, 2, 19, 2),
        (384, 2, 18, 1),
    ],
)
def test_as_exact_as_ai2_olmo_in_the_same_precision(
    width: int, heads: int, length: int, batch: int, block: str
) -> None:
    shape = model.Shape(width, 2, heads, 64, block)
    olmo = model.build(shape, length, seed=3)
    with torch.no_grad():
        for parameter in olmo.parameters():
            parameter.mul_(3)  # Scores and gates far from zero, where a wrong formula shows.
    inputs, grad = torch.randint(64, (batch, length)), torch.randn(batch, length, width)
    assert kernels.supports(olmo, inputs)
    ours, our_gradients = states_and_gradients(olmo, lambda ids: kernels.hidden(olmo, ids), inputs, grad)
    theirs, their_gradients = states_and_gradients(olmo, lambda ids: olmo(ids).logits, inputs, grad)
    exact = model.build(shape, length, seed=3)
    exact.load_state_dict(olmo.state_dict())
    exact = exact.double()
    truth, true_gradients = states_and_gradients(exact, lambda ids: exact(ids).logits, inputs, grad)

    def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))

    assert error(ours, truth) <= 3 * error(theirs, truth) + 1e-6
    for name, wanted in true_gradients.items():
        if wanted.norm() > 1e-9:  # Of one token, the attention has no gradient.
            assert error(our_gradients[name], wanted) <= 3 * error(their_gradients[name], wanted) + 3e-6, name


@pytest.mark.parametrize("ratio", [1, 3, 4, 10])
def test_an_mlp_of_any_width_is_as_exact(ratio: int) -> None:
    shape = model.Shape(24, 2, 4, 64, mlp_ratio=ratio)
    olmo = model.build(shape, 20, seed=3)
    inputs, grad = torch.randint(64, (2, 20)), torch.randn(2, 20, 24)
    assert kernels.supports(olmo, inputs)
    ours, our_gradients = states_and_gradients(olmo, lambda ids: kernels.hidden(olmo, ids), inputs, grad)
    theirs, their_gradients = states_and_gradients(olmo, lambda ids: olmo(ids).logits, inputs, grad)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for name, wanted in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], wanted, atol=1e-5, rtol=1e-3)


def test_nothing_after_a_token_changes_its_state() -> None:
    olmo = model.build(model.Shape(32, 2, 4, 64), 40, seed=1)
    inputs = torch.randint(64, (2, 40))
    changed = inputs.clone()
    changed[:, 23:] = (changed[:, 23:] + 1) % 64
    before, after = kernels.hidden(olmo, inputs), kernels.hidden(olmo, changed)
    assert torch.equal(before[:, :23], after[:, :23])
    assert not torch.equal(before[:, 23:], after[:, 23:])


def test_huge_scores_do_not_overflow() -> None:
    olmo = model.build(model.Shape(16, 1, 4, 64), 32, seed=1)
    with torch.no_grad():
        olmo.transformer.blocks[0].att_proj.weight.mul_(3000)
        olmo.transformer.blocks[0].ff_proj.weight.mul_(3000)
    inputs = torch.randint(64, (1, 32))
    torch.testing.assert_close(kernels.hidden(olmo, inputs), olmo(inputs).logits, rtol=1e-3, atol=1e-3)


def test_a_nan_is_not_hidden() -> None:
    olmo = model.build(model.Shape(16, 1, 4, 64), 32, seed=1)
    with torch.no_grad():
        olmo.transformer.blocks[0].att_proj.weight[0, 0] = float("nan")
    assert kernels.hidden(olmo, torch.randint(64, (1, 32))).isnan().any()


def test_the_same_bits_every_time_and_attention_on_any_number_of_threads() -> None:
    olmo = model.build(model.Shape(32, 2, 4, 64), 40, seed=1)
    inputs, grad = torch.randint(64, (3, 40)), torch.randn(3, 40, 32)

    def both() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return states_and_gradients(olmo, lambda ids: kernels.hidden(olmo, ids), inputs, grad)

    first, again = both(), both()
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    torch.set_num_threads(2)
    try:
        other = both()
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(other[0], first[0], rtol=1e-5, atol=1e-6)
    for name in first[1]:
        torch.testing.assert_close(other[1][name], first[1][name], rtol=1e-4, atol=1e-5)


def test_exponentials_to_the_last_places() -> None:
    x = torch.linspace(-86, 80, 4001).repeat(35, 1).T.contiguous()
    exact = x.double().exp()
    sums = kernels.exponential_sums(x)
    assert float(((x.double() - exact) / exact).abs().max()) < 3e-7
    torch.testing.assert_close(sums.double(), exact.sum(dim=0), rtol=1e-6, atol=0)
    outside = torch.tensor([[-1e9, -100.0, 200.0, float("inf")]])
    kernels.exponential_sums(outside)
    assert bool((outside[0, :2] < 2e-38).all())
    assert bool((outside[0, 2:] > 1e38).all())


@pytest.mark.parametrize("what", ["no compiler", pytest.param("damaged library", marks=pytest.mark.slow)])
def test_training_goes_on_without_what_was_compiled(what: str, tmp_path: Path) -> None:
    """In a process of its own: the library is looked for once."""
    code = (
        "import torch; from raysweep.model import kernels, olmo as model; "
        "olmo = model.build(model.Shape(16, 1, 4, 64), 32, 1); ids = torch.randint(64, (1, 32)); "
        "print(kernels.supports(olmo, ids), len(kernels.exponential_sums(torch.zeros(3, 2))))"
    )
    environment = {**os.environ, "RAYSWEEP_CACHE": str(tmp_path)}
    if what == "no compiler":
        environment |= {"PATH": str(tmp_path), "CC": ""}
    else:
        for library in [kernels.cache_directory() / "kernels"]:
            (tmp_path / "kernels").mkdir()
            for path in library.glob("*.so"):
                (tmp_path / "kernels" / path.name).write_bytes(b"not a library")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [str(what != "no compiler"), "2"], done.stderr


@pytest.mark.parametrize(
    ("victim", "times"),
    [
        ("the compiler", 2),
        pytest.param("a program of the compiler", 1, marks=pytest.mark.slow),
        ("a program of the compiler", 2),
        pytest.param("the compiler", 1, marks=pytest.mark.slow),
    ],
)
def test_a_compiler_that_a_signal_ended_is_not_a_missing_one(victim: str, times: int, tmp_path: Path) -> None:
    """A node that is shut down kills it before the worker, which would go on with other numbers and keep them."""
    cc = tmp_path / "cc"
    ended = "kill -TERM $$" if victim == "the compiler" else (
        # As gcc does when it loses cc1: it goes on, says so, and ends with 1.
        f"exec {shutil.which('cc')} -no-integrated-cpp -wrapper {tmp_path / 'killed'} \"$@\""
    )  # fmt: skip
    (tmp_path / "killed").write_text("#!/bin/sh\nkill -TERM $$\n")
    count = f'echo >> {tmp_path}/calls; [ "$(wc -l < {tmp_path}/calls)" -gt {times} ]'
    cc.write_text(f'#!/bin/sh\n{count} || {ended}\nexec {shutil.which("cc")} "$@"\n')
    for program in (cc, tmp_path / "killed"):
        program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "from raysweep.model import kernels; print(kernels.available())"],
        capture_output=True,
        text=True,
        env={**os.environ, "RAYSWEEP_CACHE": str(tmp_path / "cache"), "CC": str(cc)},
    )
    if times == 1:
        assert done.stdout == "True\n", done.stderr
    else:
        assert f"a signal ended {cc} twice while it compiled kernels.c" in done.stderr
        assert (done.returncode, done.stdout) == (1, "")
