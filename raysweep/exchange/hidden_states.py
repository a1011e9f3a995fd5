"""The hidden states of any causal language model that transformers has loaded, by the names of `raysweep.space.measure`."""

from __future__ import annotations

from typing import Any

import torch

from raysweep.errors import UserError, first_line
from raysweep.exchange.model_matrices import blocks
from raysweep.exchange.text_loss import begins_with, check_entries, longest, tokenizer_of, tokens_of
from raysweep.space.measure import HIDDEN

# Sequences that pass through the model together.
_BATCH = 8


def names(loaded: Any) -> list[str]:
    """`hidden.0`, after the embedding, to `hidden.<blocks>` and `hidden.final`, as far as the model shows them."""
    depth = int(loaded.config.get_text_config().num_hidden_layers)
    shown = depth + 1 if blocks(loaded) else depth
    return [*(f"{HIDDEN}{layer}" for layer in range(shown)), f"{HIDDEN}final"]


def last_states(
    model: str, loaded: Any, revision: str | None, texts: list[str], sequences: int
) -> dict[str, torch.Tensor]:
    """Name -> (sequences, width) in float32: each layer's state of the last token of each sequence.

    The texts are joined by the model's end-of-text and cut into sequences as long as the model takes, at most 2,048 tokens;
    each begins with the model's begin-of-text where its tokenizer puts one. Raises `UserError` where there are too few.
    """
    tokenizer = tokenizer_of(model, revision)
    length = longest(loaded)
    begin = begins_with(tokenizer)
    own = length - (begin is not None)
    tokens, _, _ = tokens_of(tokenizer, texts, sequences * own)
    check_entries(model, loaded, tokens)
    if len(tokens) < sequences * own:
        raise UserError(
            f"the text has {len(tokens) // own:,} sequences of {length:,} tokens for {model}: set --sequences to no more"
        )
    return states_of(model, loaded, torch.tensor(tokens[: sequences * own]).view(sequences, own), begin)


def states_of(model: str, loaded: Any, ids: torch.Tensor, begin: int | None) -> dict[str, torch.Tensor]:
    """As `last_states`, of token ids (sequences, length); `begin`, if there is one, is put before each sequence."""
    if begin is not None:
        ids = torch.cat([torch.full((len(ids), 1), begin), ids], dim=1)
    of_last_block: list[torch.Tensor] = []

    def keep(module: Any, given: Any, out: Any) -> None:
        of_last_block.append(out[0] if isinstance(out, tuple) else out)

    known = blocks(loaded)
    hook = known[-1].register_forward_hook(keep) if known else None
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names(loaded)}
    try:
        for part in ids.split(_BATCH):
            of_last_block.clear()
            with torch.no_grad():
                *layers, final = loaded(part.to(loaded.device), output_hidden_states=True).hidden_states
            for name, states in zip(kept, [*layers, *of_last_block, final], strict=True):
                kept[name].append(states[:, -1].float())
    except (IndexError, RuntimeError) as error:
        raise UserError(f"{model} cannot take {ids.shape[1]:,} tokens at once: {first_line(error)}") from None
    finally:
        if hook is not None:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}
