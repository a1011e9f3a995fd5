"""Cross-entropy of the unembedding, in chunks of tokens, so that no tokens x vocabulary matrix exists.

For hidden states H (n x d), unembedding W (V x d) and targets y, token i has the loss log z_i - w_{y_i} . h_i with
z_i = sum_v exp(w_v . h_i). With E = exp(H W^T), the gradients of the summed loss are

    dH = diag(1/z) (E W) - W[y]          dW = E^T (diag(1/z) H) - sum_i onehot(y_i) h_i^T

so a chunk's share of both is two matmuls away while its E is still at hand. The forward pass computes them, and the
normalisation touches only the n x d side: E is written once, exponentiated once and summed once.

On a GPU memory traffic is what it costs. There a chunk's logits are written by the matmul (2 bytes each in bfloat16), read
twice and written once by one compiled function (maximum, exponential, sum, chosen logit, cast), and read by two matmuls: 12
bytes a logit. Products are summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from raysweep.model import kernels

# Tokens in a chunk, and on a CPU rows of W in a tile: a tile of logits, 1 MiB, stays in the cache between the matmul that
# makes it, the exponential and the matmul that uses it.
CHUNK = {"cpu": 128, "cuda": 8192}
TILE = 2048


def unembedding_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_loss: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy, in nats per token, of `softmax(hidden @ weight.T)`; differentiable once.

    `hidden` (..., d), `weight` (V, d), `targets` (...) of integers in [0, V). Equal to `F.cross_entropy` and its
    gradients to rounding. Under autocast the matmuls run in its precision and everything else in float32. Returns a
    float32 scalar (float64 for float64 inputs).

    With `z_loss` the gradient is that of the mean of cross-entropy + z_loss (log z)^2 (PaLM, arXiv 2204.02311, section 5);
    what is returned is still the cross-entropy.
    """
    return _CrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten(), z_loss)  # type: ignore[no-any-return]


def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every token, in nats, in the shape of `targets`; without gradients."""
    flat, labels = hidden.flatten(0, -2), targets.flatten()
    with torch.no_grad():
        weight = weight.to(_matmul_dtype(flat))
        if _tiled(flat):
            scratch = _Scratch(flat, weight)
            losses = [scratch.fill(flat[rows], labels[rows], None)[2] for rows in _chunks(flat)]
        else:
            losses = [_exponentials(_logits(flat[rows], weight), labels[rows])[3] for rows in _chunks(flat)]
    return torch.cat(losses).view(targets.shape)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_loss: float
    ) -> torch.Tensor:
        n = len(hidden)
        wants_gradients = any(ctx.needs_input_grad)
        factor = weight.to(_matmul_dtype(hidden))
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        grad_hidden = grad_weight = None
        if wants_gradients:
            grad_hidden = torch.empty_like(hidden, dtype=total.dtype)
            grad_weight = torch.zeros_like(weight)
        scratch = _Scratch(hidden, factor) if _tiled(hidden) else None
        for rows in _chunks(hidden):
            if scratch is not None:
                product = None if grad_hidden is None else grad_hidden[rows]
                norm, log_z, losses = scratch.fill(hidden[rows], targets[rows], product)
                total += losses.sum()
                norm = _with_z_loss(norm, log_z, z_loss)
                if grad_weight is not None and product is not None:
                    product /= norm[:, None]
                    scratch.add_outer(grad_weight, hidden[rows] / norm[:, None])
                continue
            exponentials, norm, log_z, losses = _exponentials(_logits(hidden[rows], factor), targets[rows])
            total += losses.sum()
            if grad_hidden is None or grad_weight is None:
                continue
            scale = 1 / _with_z_loss(norm, log_z, z_loss)[:, None]
            scaled = (hidden[rows] * scale).to(factor.dtype)
            if _sums_in_float32(factor):
                grad_hidden[rows] = torch.mm(exponentials, factor, out_dtype=torch.float32) * scale
                grad_weight = torch.addmm(grad_weight, exponentials.T, scaled, out_dtype=torch.float32)
            elif factor.dtype == grad_weight.dtype:
                grad_hidden[rows] = (exponentials @ factor) * scale
                grad_weight.addmm_(exponentials.T, scaled)
            else:
                grad_hidden[rows] = (exponentials @ factor) * scale
                grad_weight += exponentials.T @ scaled
        if grad_hidden is not None and grad_weight is not None:
            grad_hidden = (grad_hidden - weight[targets]).to(hidden.dtype)
            if _on_gpu(hidden):
                # By sorting, and not by atomic additions, whose order is another each time.
                grad_weight -= torch.ops.aten.embedding_dense_backward(
                    hidden.to(grad_weight.dtype), targets, len(weight), -1, False
                )
            else:
                grad_weight.index_add_(0, targets, hidden.to(grad_weight.dtype), alpha=-1)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.tokens = n
        return total / n

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        scale = grad_output / ctx.tokens
        hidden, weight = ctx.saved_tensors
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        return hidden * scale if wants_hidden else None, weight * scale if wants_weight else None, None, None


class _Scratch:
    """On a CPU: E^T of one chunk, tile by tile, in memory that all chunks share.

    Transposed, since of all matmuls here the one with E^T is slow where it is BLAS that transposes.
    """

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor) -> None:
        self.weight = weight
        self.memory = hidden.new_empty(min(len(hidden), CHUNK["cpu"]) * len(weight))
        self.tiles: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fill(
        self, hidden: torch.Tensor, targets: torch.Tensor, product: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row sums of E, log z and the losses of one chunk; E^T stays in `tiles`, and E W goes to `product` if given.

        A language model's logits are far from overflow. So their maximum, which costs another pass, is computed only
        if the sums require it; E is then correct up to a factor per row.
        """
        n = len(hidden)
        self.tiles = [
            (
                self.memory[n * start : n * min(start + TILE, len(self.weight))].view(-1, n),
                self.weight[start : start + TILE],
            )
            for start in range(0, len(self.weight), TILE)
        ]
        target_logits = (hidden * self.weight[targets]).sum(dim=1)
        norm = self._exponentials(hidden, None, product)
        if bool(((norm > 1e-30) & (norm < 1e30)).all()):
            log_z = norm.log()
            return norm, log_z, log_z - target_logits
        largest = torch.stack([(hidden @ rows.T).amax(dim=1) for _, rows in self.tiles]).amax(dim=0)
        norm = self._exponentials(hidden, largest, product)
        log_z = norm.log() + largest
        return norm, log_z, log_z - target_logits

    def _exponentials(
        self, hidden: torch.Tensor, shift: torch.Tensor | None, product: torch.Tensor | None
    ) -> torch.Tensor:
        norm = hidden.new_zeros(len(hidden))
        for first, (tile, rows) in enumerate(self.tiles):
            torch.mm(rows, hidden.T, out=tile)
            if shift is not None:
                tile.sub_(shift)
            norm += kernels.exponential_sums(tile)
            if product is not None:
                product.addmm_(tile.T, rows, beta=1 if first else 0)
        return norm

    def add_outer(self, grad_weight: torch.Tensor, scaled: torch.Tensor) -> None:
        """grad_weight += E^T scaled."""
        for start, (tile, _) in zip(range(0, len(self.weight), TILE), self.tiles, strict=True):
            grad_weight[start : start + TILE].addmm_(tile, scaled)


def _with_z_loss(norm: torch.Tensor, log_z: torch.Tensor, z_loss: float) -> torch.Tensor:
    """What E is to be divided by: the gradient of z_loss (log z)^2 is that of log z times 2 z_loss log z."""
    return norm / (1 + 2 * z_loss * log_z) if z_loss else norm


def _tiled(hidden: torch.Tensor) -> bool:
    return hidden.device.type == "cpu" and _matmul_dtype(hidden) == hidden.dtype and hidden.dtype.itemsize >= 4


def _chunks(hidden: torch.Tensor) -> list[slice]:
    size = CHUNK.get(hidden.device.type, CHUNK["cuda"])
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _matmul_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _sums_in_float32(factor: torch.Tensor) -> bool:
    """Whether the device multiplies in half precision and can give the sums as they are."""
    return _on_gpu(factor) and factor.dtype in (torch.bfloat16, torch.float16)


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return hidden.to(weight.dtype) @ weight.T


def _exponentials(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of one chunk: E up to a factor per row, in the precision of the logits, its row sums, log z, and the losses."""
    return (_compiled() if _on_gpu(logits) else normalised)(logits, targets)


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


@lru_cache(1)
def _compiled() -> Callable[..., tuple[torch.Tensor, ...]]:
    return torch.compile(normalised)


def normalised(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of logits (n, V) and targets (n,): exp(logits - maximum), (n, V) in their precision; its sums, log z, losses, (n,).

    Written so that a compiler makes one pass for the maximum and one for the rest.
    """
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = values.amax(dim=1)
    exponentials = (values - largest[:, None]).exp()
    norm = exponentials.sum(dim=1)
    chosen = values.gather(1, targets[:, None]).squeeze(1)
    log_z = norm.log() + largest
    return exponentials.to(logits.dtype), norm, log_z, log_z - chosen
