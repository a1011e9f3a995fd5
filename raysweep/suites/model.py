"""A model that others have trained, as what raysweep's evaluations take: a `LanguageModel`.

What it predicts is what transformers (or ai2-olmo, of its own format) computes. Where its logits are the product of its last
states and its unembedding, as of nearly every model, losses take that way, which never holds all logits; where a model
scales, caps or shifts them its own logits are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from raysweep.errors import UserError
from raysweep.exchange.model_matrices import blocks, is_ai2_olmo
from raysweep.exchange.text_loss import begins_with, check_causal, check_entries, tokenizer_of
from raysweep.exchange.unembedding import load, loaded_unembedding
from raysweep.model.language_model import LanguageModel, LayerNotReached, autocast, input_of
from raysweep.model.loss import unembedding_cross_entropy
from raysweep.space.cell import Cell
from raysweep.store.sessions import processor

# Logits of one batch that are held at once, where they must be.
_LOGITS = 2**26


class LoadedModel(LanguageModel):
    """A published model with its loss.

    Parameters
    ----------
    name
        What messages call it.
    loaded
        The model as transformers loads it.
    begin
        The token that its tokenizer puts before a text, if it does. Every sequence begins with it, and it is not predicted.
    """

    def __init__(self, name: str, loaded: Any, begin: int | None = None) -> None:
        nn.Module.__init__(self)
        self.name, self.loaded, self.begin = name, loaded.eval(), begin
        check_causal(name, lambda ids: self._forward(ids.to(self.device))[0].float(), self._probe()[0].tolist())
        self.product = self._is_product()
        """Whether its logits are the product of its last states and its unembedding."""

    @property
    def olmo(self) -> nn.Module:  # type: ignore[override]
        """The network itself."""
        return self.loaded  # type: ignore[no-any-return]

    def trained_by(self, cell: Cell) -> LoadedModel:
        """Itself, to be trained; as always without dropout."""
        for parameter in self.loaded.parameters():
            parameter.requires_grad_(True)
        return self

    def forward(self, sequences: torch.Tensor, unembedding: torch.Tensor | None = None) -> torch.Tensor:
        """Mean next-token loss in nats of sequences (batch, length + 1), by its own W; differentiable."""
        if self.product:
            return unembedding_cross_entropy(self.hidden(sequences[:, :-1]), self.unembedding, sequences[:, 1:])
        # The logits of one part at a time: they are computed again for the gradient.
        parts = [
            checkpoint(self._logit_losses, part[:, :-1], part[:, 1:], use_reentrant=False)
            for part in sequences.split(self._most_rows(sequences.shape[1]))
        ]
        return torch.cat(parts).mean()

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """Final states after the last norm, (batch, length, d), of token ids (batch, length)."""
        return self._without_begin(self._last_states(self._with_begin(inputs)))

    def _with_begin(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs if self.begin is None else F.pad(inputs, (1, 0), value=self.begin)

    def _without_begin(self, states: torch.Tensor) -> torch.Tensor:
        return states if self.begin is None else states[:, 1:]

    def _last_states(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the unembedding is given; the logits, which cost most in a small model, are not computed."""
        try:
            if is_ai2_olmo(self.loaded):
                # Its tied head is a function of the embedding, and no module that is called.
                norm = self.loaded.model.transformer.ln_f
                states: torch.Tensor = norm(input_of(norm, self._forward, inputs))
                return states
            return input_of(self.loaded.get_output_embeddings(), self._forward, inputs)
        except LayerNotReached:
            raise UserError(f"{self.name}: what its unembedding is given cannot be seen") from None

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.loaded(inputs, use_cache=False).logits
        return logits

    def token_losses(
        self, inputs: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As of every `LanguageModel`."""
        if self.product:
            return super().token_losses(inputs, targets, chosen)
        rows = self._most_rows(inputs.shape[1])
        parts = zip(inputs.split(rows), targets.split(rows), strict=True)
        losses = torch.cat([self._logit_losses(part, labels) for part, labels in parts])
        return losses if chosen is None else losses[chosen]

    def _most_rows(self, length: int) -> int:
        """Sequences whose logits may be held at once."""
        return max(1, _LOGITS // (length * len(self.unembedding)))

    def _logit_losses(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The cross-entropy of every target by the model's own logits."""
        logits = self._without_begin(self._forward(self._with_begin(inputs))).float()
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")

    @property
    def unembedding(self) -> torch.Tensor:
        return loaded_unembedding(self.name, self.loaded)

    @property
    def measured_unembedding(self) -> torch.Tensor:
        return self.unembedding

    @property
    def device(self) -> torch.device:
        return self.unembedding.device

    @property
    def tied(self) -> bool:
        """Whether its unembedding is its embedding too."""
        return self.unembedding is self.loaded.get_input_embeddings().weight

    @cached_property
    def shape(self) -> dict[str, int]:
        """`width`, `depth`, `heads` (0 where its configuration does not say) and `parameters`, without the input embedding
        where that is not the unembedding too."""
        config = self.loaded.config.get_text_config()
        embedding = self.loaded.get_input_embeddings().weight
        counted = {id(p): p.numel() for p in self.loaded.parameters() if p is not embedding or p is self.unembedding}

        def said(*names: str) -> int:
            return next((int(value) for name in names if (value := getattr(config, name, None))), 0)

        return {
            "width": self.unembedding.shape[1],
            "depth": said("num_hidden_layers", "n_layers", "n_layer"),
            "heads": said("num_attention_heads", "n_heads", "n_head"),
            "parameters": sum(counted.values()),
        }

    def autocast(self) -> Any:
        return autocast(self.device)

    def computed_by(self) -> dict[str, str]:
        """What computes its numbers here, under the columns of the store's timings."""
        cuda = self.device.type == "cuda"
        return {
            "device": self.device.type,
            "device_name": torch.cuda.get_device_name(self.device) if cuda else processor(),
            "precision": "bfloat16 autocast" if cuda else "float32",
            "kernels": "ai2-olmo" if is_ai2_olmo(self.loaded) else "transformers",
            "compiled": "no",
        }

    def linear_layers(self) -> list[nn.Linear]:
        """The linear layers of its blocks, in the order in which data passes through them.

        Raises `UserError` where it shows no blocks, or some of their layers take no part.
        """
        layers = [layer for block in blocks(self.loaded) for layer in block.modules() if isinstance(layer, nn.Linear)]
        if not layers:
            raise UserError(f"{self.name}: its blocks are of no kind that raysweep can quantize")
        called: dict[nn.Linear, None] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda module, given: called.update({module: None})) for layer in layers
        ]
        try:
            with torch.no_grad():
                self._forward(self._probe())
        finally:
            for hook in hooks:
                hook.remove()
        if len(called) < len(layers):
            raise UserError(
                f"{self.name}: {len(layers) - len(called)} of the {len(layers)} linear layers of its blocks took no part "
                "for a short text (experts?), and cannot be calibrated: leave quantized out"
            )
        return list(called)

    def layers_with_inputs(
        self, batches: list[torch.Tensor], head: nn.Linear | None = None
    ) -> Iterator[tuple[nn.Linear, list[torch.Tensor]]]:
        """As of every `LanguageModel`: only a layer's own block is run again for it."""
        layers = self.linear_layers()
        with self.autocast():
            calls = [self._calls_of_blocks(self._with_begin(batch)) for batch in batches]
        states = [of_batch[0][0] for of_batch in calls]
        for number, block in enumerate(blocks(self.loaded)):
            # With what else the block was given, such as positions and masks, which no layer changes.
            given = [partial(_first, block, *of_batch[number][1]) for of_batch in calls]
            own = set(block.modules())
            for layer in layers:
                if layer not in own:
                    continue
                with self.autocast():
                    inputs = [
                        self._without_begin(input_of(layer, run, state))
                        for run, state in zip(given, states, strict=True)
                    ]
                yield layer, inputs
            with self.autocast():
                states = [run(state) for run, state in zip(given, states, strict=True)]
        if head is not None:
            with self.autocast():
                inputs = [self.hidden(batch) for batch in batches]
            yield head, inputs

    def _calls_of_blocks(
        self, inputs: torch.Tensor
    ) -> list[tuple[torch.Tensor, tuple[tuple[Any, ...], dict[str, Any]]]]:
        """Of each block the state that it is given, and what else."""
        calls: list[tuple[torch.Tensor, tuple[tuple[Any, ...], dict[str, Any]]]] = []

        def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not given:
                raise UserError(f"{self.name}: its blocks are given their states by a name, and cannot be calibrated")
            calls.append((given[0], (given[1:], named)))

        hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks(self.loaded)]
        try:
            self._last_states(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return calls

    def _probe(self) -> torch.Tensor:
        """A few token ids of its own."""
        rows = len(self.unembedding)
        return torch.arange(0, rows, max(1, rows // 16), device=self.device)[None, :16]

    def _is_product(self) -> bool:
        probe = self._probe()
        with torch.no_grad():
            logits = self._forward(probe).float()
            try:
                states = self._last_states(probe)
            except UserError:
                return False
            if not states.is_floating_point() or states.shape[-1] != self.unembedding.shape[1]:
                return False
            product = states.float() @ self.unembedding.float().T
        # Some models cut their logits to the tokenizer's entries.
        if product.shape != logits.shape:
            return False
        return float((product - logits).abs().max()) <= 1e-3 * float(logits.abs().max())


def _first(block: Any, more: tuple[Any, ...], named: dict[str, Any], state: torch.Tensor) -> torch.Tensor:
    """The state that a block gives for another."""
    out = block(state, *more, **named)
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def load_model(name: str, folder: Path, device: torch.device) -> tuple[LoadedModel, Any]:
    """The model in a folder, in float32, and its tokenizer. Raises `UserError` where it cannot be loaded."""
    # First: it makes ai2-olmo's own tokenizer known, too.
    loaded = load(str(folder), None, computes=True).float().to(device)
    tokenizer = tokenizer_of(str(folder), None)
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    check_entries(name, loaded, [len(tokenizer) - 1])
    with torch.no_grad():
        return LoadedModel(name, loaded, begins_with(tokenizer)), tokenizer
