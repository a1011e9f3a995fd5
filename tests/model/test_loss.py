"""Against `F.cross_entropy` of the materialised logits, and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from traffic import Traffic, as_on_a_gpu

from raysweep.model.loss import CHUNK, normalised, token_losses, unembedding_cross_entropy


def problem(n: int, d: int, vocabulary: int, dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype) * scale
    weight = torch.randn(vocabulary, d, generator=generator, dtype=dtype)
    targets = torch.randint(0, vocabulary, (n,), generator=generator)
    return [hidden.requires_grad_(), weight.requires_grad_(), targets]


def with_gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("n", [1, 7, CHUNK["cpu"], 2 * CHUNK["cpu"] + 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_loss_and_gradients(n: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets = problem(n, 12, 101, dtype)
    # A factor on the loss must reach the gradients.
    ours = with_gradients(3 * unembedding_cross_entropy(hidden, weight, targets), hidden, weight)
    reference = with_gradients(3 * F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("scale", [40.0, 1000.0])
def test_logits_that_overflow_an_exponential(scale: float) -> None:
    """Where exp(logit) is beyond float32 the maximum is taken out first."""
    hidden, weight, targets = problem(30, 12, 101, torch.float32, scale)
    assert float((hidden @ weight.T).detach().max()) > 89  # exp(89) is infinite in float32
    ours = with_gradients(unembedding_cross_entropy(hidden, weight, targets), hidden, weight)
    reference = with_gradients(F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float64, 1.0), (torch.float32, 1.0), (torch.float32, 1000.0), (torch.bfloat16, 1.0)]
)
def test_z_loss_is_in_the_gradient_and_not_in_the_value(dtype: torch.dtype, scale: float) -> None:
    hidden, weight, targets = problem(140, 12, 101, torch.float32 if dtype == torch.bfloat16 else dtype, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = with_gradients(unembedding_cross_entropy(hidden, weight, targets, z_loss=0.01), hidden, weight)
    logits = hidden @ weight.T
    plain = F.cross_entropy(logits, targets)
    whole = plain + 0.01 * logits.logsumexp(dim=1).square().mean()
    reference = [plain.detach(), *torch.autograd.grad(whole, (hidden, weight))]
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-4, torch.bfloat16: 0.03}[dtype]
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * float(b.abs().max()), rtol=tolerance)


def test_gradient_check() -> None:
    hidden, weight, targets = problem(5, 3, 7, torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: unembedding_cross_entropy(h, w, targets), (hidden, weight))


def test_shapes_of_a_batch_and_gradients_that_are_not_wanted() -> None:
    hidden, weight, targets = problem(24, 6, 11, torch.float64)
    batch = hidden.detach().view(4, 6, 6).requires_grad_()
    loss = unembedding_cross_entropy(batch, weight.detach(), targets.view(4, 6))
    loss.backward()
    reference = F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(batch.grad.view(24, 6), torch.autograd.grad(reference, hidden)[0])  # type: ignore[union-attr]


def test_equal_targets_add_up() -> None:
    hidden, weight, targets = problem(40, 6, 11, torch.float64)
    targets.fill_(3)
    ours = with_gradients(unembedding_cross_entropy(hidden, weight, targets), hidden, weight)
    reference = with_gradients(F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_token_losses() -> None:
    hidden, weight, targets = problem(300, 6, 50, torch.float64)
    losses = token_losses(hidden.view(3, 100, 6), weight, targets.view(3, 100))
    reference = F.cross_entropy(hidden @ weight.T, targets, reduction="none").view(3, 100)
    torch.testing.assert_close(losses, reference.detach())
    assert not losses.requires_grad


def test_bfloat16_autocast_on_float32_weights() -> None:
    hidden, weight, targets = problem(64, 16, 200, torch.float32, 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = with_gradients(unembedding_cross_entropy(hidden, weight, targets), hidden, weight)
    reference = with_gradients(F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    assert [value.dtype for value in ours] == [torch.float32] * 3
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, atol=0.02 * float(b.abs().max()), rtol=0.02)


@pytest.mark.parametrize("d", [64, 256])
def test_in_bfloat16_it_is_no_further_from_the_truth_than_pytorchs_own(d: int) -> None:
    """At the paper's vocabulary and the scale of W's initialisation, against float64."""
    vocabulary, tokens = 50_304, 192
    hidden, weight, targets = problem(tokens, d, vocabulary, torch.float32)
    weight = (0.02 * weight.detach()).requires_grad_()
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    truth = with_gradients(F.cross_entropy(exact[0] @ exact[1].T, targets), *exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = with_gradients(unembedding_cross_entropy(hidden, weight, targets), hidden, weight)
        theirs = with_gradients(F.cross_entropy(F.linear(hidden, weight), targets), hidden, weight)
    for name, a, b, true in zip(("loss", "dH", "dW"), ours, theirs, truth, strict=True):
        own, other = (float((value.double() - true).norm() / true.norm()) for value in (a, b))
        assert own <= 1.05 * other, (name, own, other)


@pytest.mark.slow
def test_compiled_it_is_the_same() -> None:
    """The function that GPUs run compiled, by the compiler for CPUs: one graph, for chunks of two lengths."""
    torch._dynamo.reset()
    compiled = torch.compile(normalised, fullgraph=True)
    for n in (96, 33):
        logits = torch.randn(n, 1000, generator=torch.Generator().manual_seed(n)).to(torch.bfloat16)
        targets = torch.arange(n) * 7 % 1000
        for a, b in zip(compiled(logits, targets), normalised(logits, targets), strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=4e-3, rtol=1e-5)


def test_on_a_gpu_it_moves_twelve_bytes_a_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's operations for a chunk of the paper's 4M, without data; what is compiled as two reads and a write."""
    tokens, d, vocabulary = CHUNK["cuda"], 64, 50_304
    traffic = Traffic(tokens * vocabulary)
    as_on_a_gpu(traffic, monkeypatch)
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = torch.empty(tokens, d, requires_grad=True)
        weight = torch.empty(vocabulary, d, requires_grad=True)
        targets = torch.empty(tokens, dtype=torch.int64)
        with traffic:
            value = unembedding_cross_entropy(hidden, weight, targets)
            gradients = torch.autograd.grad(value, (hidden, weight))
        assert value.dtype == torch.float32
        assert [(g.dtype, g.shape) for g in gradients] == [(torch.float32, hidden.shape), (torch.float32, weight.shape)]
    assert 8 < traffic.bytes / (tokens * vocabulary) <= 12


def test_nan_stays_nan() -> None:
    hidden, weight, targets = problem(10, 4, 9, torch.float32)
    broken = hidden.detach().clone()
    broken[3, 2] = float("nan")
    assert torch.isnan(unembedding_cross_entropy(broken, weight, targets))


def test_memory_does_not_grow_with_tokens_times_vocabulary() -> None:
    """8192 tokens x 20000 entries are 655 MB of logits in float32; no tensor alive may come near that."""
    hidden, weight, targets = problem(8192, 8, 20000, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profiler:
        unembedding_cross_entropy(hidden, weight, targets).backward()
    allocated = [event.device_memory_usage or event.cpu_memory_usage for event in profiler.events()]
    # What one operation keeps: a chunk of logits is 10 MB.
    assert max(allocated) < 60e6
