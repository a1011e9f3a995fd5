"""quantized: losses after post-training quantization of the blocks' linear layers.

GPTQ (Frantar et al. 2023) through auto-gptq's solver, per output channel and asymmetric, columns in the order of their
activations; round-to-nearest on the same grid beside it. Blocks are done from the first to the last and the layers of a
block in the order of the data, each calibrated on inputs that have passed through its quantized predecessors. The norms and
the embedding stay as they are, and the unembedding W too unless `layers` says otherwise: what the losses then tell of W's
geometry is how well W goes with quantized blocks, not how well W is quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from raysweep.evaluation import by_domain, in_distribution
from raysweep.evaluation.by_domain import Averaging
from raysweep.evaluation.task import Metric
from raysweep.space.fields import Count, Integer, Positive, unique

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.evaluation.task import Subject
    from raysweep.space.cell import Cell

Bits = Annotated[Integer, Field(ge=2, le=8)]


class Settings(Averaging):
    usual = Averaging.usual | {"layers": "blocks"}
    task: Literal["quantized"] = "quantized"
    bits: Annotated[tuple[Bits, ...], Field(min_length=1), AfterValidator(unique)] = (4, 3)
    """Widths of the quantized weights, each evaluated on its own."""
    calibration_sequences: Count = 128
    """Sequences of the training split that GPTQ sees, at the cell's length."""
    damping: Annotated[Positive, Field(lt=1)] = 0.01
    """Share of the mean of the Hessian's diagonal that is added to it."""
    sequences: Count = 512
    """Sequences for the loss in distribution, and in each domain out of it."""
    layers: Literal["blocks", "blocks+unembedding"] = "blocks"
    """What is quantized: the blocks' linear layers, or W after them as well."""

    def check_cells(self, cells: Iterable[Cell]) -> None:
        for cell in cells if self.layers != "blocks" else ():
            if cell.weight_tying or cell.head_bottleneck:
                what = "its embedding too" if cell.weight_tying else "a product of two matrices"
                raise ValueError(f"layers {self.layers}: W of {cell.id} is {what}: only blocks can be quantized")

    @property
    def shards(self) -> tuple[str, ...]:
        return (in_distribution.SHARD,)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`quantized_<b>bit_...` and `round_to_nearest_<b>bit_...`: the losses, and their change by the quantization.

    That out of distribution only where the corpus has such domains.
    """
    olmo = subject.language_model.olmo
    trained = {name: parameter.detach().clone() for name, parameter in olmo.state_dict().items()}
    before = _losses(subject, settings)
    metrics = []
    for bits in settings.bits:
        for method, quantize in (("quantized", gptq), ("round_to_nearest", round_to_nearest)):
            quantize(subject, bits, settings)
            for name, loss in _losses(subject, settings).items():
                metrics.append(Metric(f"{method}_{bits}bit_{name}", loss, "nats per token"))
                metrics.append(Metric(f"{method}_{bits}bit_{name}_change", loss - before[name], "nats per token"))
            olmo.load_state_dict(trained)
    return metrics


def _losses(subject: Subject, settings: Settings) -> dict[str, float]:
    losses = {"in_distribution_loss": in_distribution.loss(subject, settings.sequences)}
    if by_domain.present(subject.corpus, by_domain.PREFIX, subject.cell.sequence_length):
        of_domain = by_domain.losses(subject, subject.corpus, by_domain.PREFIX, settings.sequences)
        losses["out_of_distribution_loss"] = by_domain.averaged(of_domain, settings)[""][0]
    return losses


def gptq(subject: Subject, bits: int, settings: Settings) -> None:
    """Quantize the subject's model in place, by GPTQ."""
    for layer, inputs in _calibrated_layers(subject, settings.calibration_sequences, settings.layers != "blocks"):
        solve(layer, inputs, bits, settings.damping)


def solve(layer: nn.Linear, inputs: list[torch.Tensor], bits: int, damping: float) -> None:
    """Quantize one layer in place by auto-gptq's solver; `inputs` are what the layer is given, each (..., columns).

    Raises `ArithmeticError` where their Hessian is not positive definite, in 32 bits, with that damping.
    """
    import torch
    from auto_gptq.quantization import GPTQ

    solver = GPTQ(layer)
    solver.quantizer.configure(bits, perchannel=True, sym=False)
    for batch in inputs:
        solver.add_batch(batch, None)
    with _no_cuda_needed():
        # Columns with the largest activations first: without it a layer whose inputs are far from isotropic can come
        # out worse than by rounding (seen at width 32: 18.9 against 17.9, with it 2.5).
        try:
            solver.fasterquant(percdamp=damping, group_size=-1, actorder=True)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            tokens = sum(batch.numel() // batch.shape[-1] for batch in inputs)
            raise ArithmeticError(
                f"the Hessian of a layer with {layer.in_features:,} inputs is not positive definite, from {tokens:,} tokens "
                f"with a damping of {damping:g}: raise calibration_sequences, or damping (0.01 is usual)"
            ) from None
    solver.free()


def round_to_nearest(subject: Subject, bits: int, settings: Settings) -> None:
    """Quantize the model in place to the nearest point of the grid that GPTQ uses; needs no calibration."""
    if settings.layers != "blocks":
        round_layer(_unembedding(subject), bits)
    for layer in subject.language_model.linear_layers():
        round_layer(layer, bits)


def round_layer(layer: nn.Linear, bits: int) -> None:
    """Round one layer's weights in place, per output channel, with auto-gptq's quantizer."""
    from auto_gptq.quantization.quantizer import Quantizer

    quantizer = Quantizer()
    quantizer.configure(bits, perchannel=True, sym=False)
    weight = layer.weight.data
    quantizer.find_params(weight, weight=True)
    layer.weight.data = quantizer.quantize(weight).to(weight.dtype)


def _unembedding(subject: Subject) -> nn.Linear:
    """W as a linear layer: the model's own parameter."""
    from torch import nn

    weight = subject.language_model.unembedding
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight  # type: ignore[assignment]
    return layer


def _calibrated_layers(
    subject: Subject, sequences: int, unembedding: bool = False
) -> Iterator[tuple[nn.Linear, list[torch.Tensor]]]:
    """Each linear layer with its inputs, computed with the earlier layers in their current state; W last, if asked for."""
    import numpy as np
    import torch

    model = subject.language_model
    shard = subject.corpus.sequences("pretraining/train", subject.cell.sequence_length)
    indices = shard.sample(sequences)
    parts = np.array_split(indices, -(-len(indices) // subject.micro_batch_size))
    batches = [torch.from_numpy(shard.read(part)[:, :-1]).to(subject.device) for part in parts]
    with torch.no_grad():
        yield from model.layers_with_inputs(batches, _unembedding(subject) if unembedding else None)


@contextmanager
def _no_cuda_needed() -> Iterator[None]:
    """auto-gptq's solver waits for the GPU at its end, which PyTorch refuses where there is none."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    synchronize = torch.cuda.synchronize
    torch.cuda.synchronize = lambda device=None: None
    try:
        yield
    finally:
        torch.cuda.synchronize = synchronize
