"""An OLMo with its loss, as one module."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import nn

from raysweep.errors import UserError
from raysweep.model import kernels, matrices, olmo
from raysweep.model.loss import token_losses, unembedding_cross_entropy
from raysweep.space.cell import Cell
from raysweep.store.sessions import processor

# The linear layers of an OLMo block, in the order in which data passes through them.
_LAYERS = ("att_proj", "attn_out", "ff_proj", "ff_out")


class LanguageModel(nn.Module):
    """An OLMo with its loss, as one module: what DDP wraps, so that the gradient of W is averaged too."""

    def __init__(self, olmo: nn.Module, precision: str | None = None, z_loss: float = 0.0) -> None:
        """`precision` and `z_loss` are those of a cell."""
        super().__init__()
        self.olmo = olmo
        self._precision, self._z_loss = precision, z_loss

    @classmethod
    def of(
        cls, cell: Cell, device: str | torch.device = "cpu", weights: Mapping[str, torch.Tensor] | None = None
    ) -> Self:
        """A cell's model, with its first weights or those given under OLMo's names."""
        model = cls(olmo.build(cell.shape, cell.sequence_length, cell.seed, device), cell.precision, cell.z_loss)
        if weights is not None:
            model.olmo.load_state_dict(weights)
        return model

    def trained_by(self, cell: Cell) -> LanguageModel:
        """This model, its weights the same memory, as the settings of another cell train it."""
        return LanguageModel(self.olmo, cell.precision, cell.z_loss)

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """Final states after the last norm, (batch, length, d), of token ids (batch, length)."""
        if _by_kernels(self.olmo, inputs):
            return kernels.hidden(self.olmo, inputs)
        return self.olmo(inputs).logits  # type: ignore[no-any-return]

    def states(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """What `hidden` passes through, each (batch, length, d): after the embedding, each block, and the last norm."""
        if _by_kernels(self.olmo, inputs):
            return list(kernels.states(self.olmo, inputs))
        transformer: Any = self.olmo.transformer
        seen: list[torch.Tensor] = []
        hooks = [
            module.register_forward_hook(
                lambda module, given, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            for module in (transformer.wte, *transformer.blocks, transformer.ln_f)
        ]
        try:
            self.olmo.forward(inputs)  # Not what was compiled, which knows no hooks.
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def linear_layers(self) -> list[nn.Linear]:
        """The linear layers of the blocks, in the order in which data passes through them."""
        blocks: Any = self.olmo.transformer.blocks  # type: ignore[union-attr]
        return [getattr(block, name) for block in blocks for name in _LAYERS]

    def layers_with_inputs(
        self, batches: list[torch.Tensor], head: nn.Linear | None = None
    ) -> Iterator[tuple[nn.Linear, list[torch.Tensor]]]:
        """Each of `linear_layers` with what it is given for batches of token ids (batch, length), as the layers are then.

        Last the `head`, with what the unembedding is given.

        Who takes them may change a layer before asking for the next. Only the layer's own block is run again for it, as far
        as the layer: its inputs are kept from the block before.
        """
        transformer: Any = self.olmo.transformer
        states = [transformer.wte(batch) for batch in batches]
        for block in transformer.blocks:
            for name in _LAYERS:
                layer = getattr(block, name)
                # Not around the yield: what is computed of the inputs is in float32.
                with self.autocast():
                    inputs = [input_of(layer, block, state) for state in states]
                yield layer, inputs
            with self.autocast():
                states = [block(state)[0] for state in states]
        if head is not None:
            with self.autocast():
                inputs = [transformer.ln_f(state) for state in states]
            yield head, inputs

    def token_losses(
        self, inputs: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The cross-entropy of every target, in nats, for inputs and targets (batch, length); without gradients.

        Of the `chosen` (batch, length) targets alone where they are given, as one row.
        """
        hidden = self.hidden(inputs)
        if chosen is not None:
            hidden, targets = hidden[chosen], targets[chosen]
        return token_losses(hidden, self.unembedding, targets)

    @property
    def unembedding(self) -> torch.Tensor:
        """W, (V, d), float32; with a bottleneck the product of its two factors, computed anew."""
        return self.measured_unembedding.to(self._last_factor.dtype)

    @property
    def measured_unembedding(self) -> torch.Tensor:
        """W, of which a product is in float64: float32 would round the zeros of its spectrum."""
        bottleneck = self._bottleneck
        if bottleneck is None:
            return self._last_factor
        return self._last_factor.double() @ bottleneck.double()

    @property
    def _last_factor(self) -> torch.Tensor:
        return self.olmo.transformer.ff_out.weight  # type: ignore[union-attr, return-value]

    @property
    def _bottleneck(self) -> torch.Tensor | None:
        return getattr(self.olmo.transformer.ff_out, "bottleneck", None)  # type: ignore[union-attr]

    def matrices(self) -> dict[str, torch.Tensor]:
        """The parameters by OLMo's names, with W whole where it is a product."""
        parameters: dict[str, torch.Tensor] = dict(self.olmo.named_parameters())
        if self._bottleneck is not None:
            del parameters[matrices.BOTTLENECK]
            parameters[matrices.UNEMBEDDING] = self.measured_unembedding.detach()
        return parameters

    @property
    def device(self) -> torch.device:
        return self.olmo.transformer.wte.weight.device  # type: ignore[union-attr, return-value]

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside it the model is computed in its precision, gradients beside it."""
        return autocast(self.device, self._precision)

    def computed_by(self) -> dict[str, str]:
        """What computes its numbers here, under the columns of the store's timings."""
        with self.autocast():
            kernels = _by_kernels(self.olmo, self.olmo.transformer.wte.weight)  # type: ignore[union-attr, arg-type]
        return {
            "device": self.device.type,
            "device_name": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor(),
            "precision": "bfloat16 autocast" if _halved(self.device, self._precision) else "float32",
            "kernels": "raysweep" if kernels else "ai2-olmo",
            "compiled": "yes" if _compiled(self.olmo) else "no",
        }

    def forward(self, sequences: torch.Tensor, unembedding: torch.Tensor | None = None) -> torch.Tensor:
        """Mean next-token loss in nats of sequences (batch, length + 1), by another W where one is given.

        Its gradient includes that of the z-loss.
        """
        hidden = self.hidden(sequences[:, :-1])
        if unembedding is None:
            if (bottleneck := self._bottleneck) is not None:
                hidden = hidden @ bottleneck.T
            unembedding = self._last_factor
        return unembedding_cross_entropy(hidden, unembedding, sequences[:, 1:], self._z_loss)


class LayerNotReached(Exception):
    """A forward pass ended without a layer that it was to be run as far as."""


class _Reached(Exception):
    """Ends a forward pass where a layer is reached, with what it is given."""


def input_of(layer: nn.Module, whole: Callable[[torch.Tensor], Any], given: torch.Tensor) -> torch.Tensor:
    """What a layer is given when the `whole` that it is in is given `given`; that is run as far as the layer."""

    def stop(module: nn.Module, given: tuple[torch.Tensor]) -> None:
        raise _Reached(given[0])

    hook = layer.register_forward_pre_hook(stop)
    try:
        whole(given)
    except _Reached as reached:
        inputs: torch.Tensor = reached.args[0]
        return inputs
    finally:
        hook.remove()
    raise LayerNotReached


def gpu(share: float, asked_by: str) -> torch.device:
    """The GPU of this process, of which it may use `share`. `asked_by` is the setting that asked for it.

    Raises `UserError` where there is none: a number that was to come from a GPU is not quietly one of a CPU.
    """
    if not torch.cuda.is_available():
        build = "" if torch.version.cuda else " (built without CUDA)"
        raise UserError(
            f"{asked_by} is {share:g}, and PyTorch {torch.__version__}{build} finds no GPU on {socket.gethostname()}: "
            f"set {asked_by} to 0, or install a CUDA build of PyTorch and its driver there"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    if share < 1:
        # Two that share a GPU must not take each other's memory.
        torch.cuda.set_per_process_memory_fraction(share, device)
    return device


def use_deterministic_operations() -> None:
    """From here on this process uses operations that give the same bits each time, or raises. Call it before any other."""
    # cuBLAS reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It would hide reads of memory that nobody wrote, at the price of writing all memory twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _compiled(olmo: Any) -> bool:
    return olmo._compiled_call_impl is not None


def _by_kernels(olmo: Any, inputs: torch.Tensor) -> bool:
    """Whether raysweep's own code computes the blocks, on the device of `inputs`."""
    return not _compiled(olmo) and kernels.supports(olmo, inputs)


def autocast(device: torch.device, precision: str | None = None) -> AbstractContextManager[Any]:
    """Matrix products in the `precision` of a cell: `float32` or `bfloat16`, which by default is the one of GPUs."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if _halved(device, precision) else nullcontext()


def _halved(device: torch.device, precision: str | None) -> bool:
    return precision == "bfloat16" or (precision is None and device.type == "cuda")
