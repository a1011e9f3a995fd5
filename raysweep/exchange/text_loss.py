"""The loss of any causal language model on text, tokenized by its own tokenizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from raysweep.errors import UserError, first_line

log = logging.getLogger("raysweep")

# Sequences on which a loss is taken, and the longest that they are.
SEQUENCES = 128
LONGEST = 2048

# Bits per byte count the bytes of the text, so that the tokens must hold all of it: of this share of the documents.
_WHOLE = 0.99


def loss_on_text(model: str, loaded: Any, revision: str | None, texts: list[str]) -> dict[str, float]:
    """`loss` in nats per token and `bits_per_byte` of a model that transformers has loaded, over the start of the texts.

    They are joined by the model's end-of-text and cut into sequences. Each begins with the model's begin-of-text where its
    tokenizer puts one before a text. `bits_per_byte` is NaN where the tokenizer does not give the text back, with a warning.

    Raises
    ------
    UserError
        Where the tokenizer cannot be loaded or is not the model's, or what the model predicts depends on what follows.
    """
    tokenizer = tokenizer_of(model, revision)
    length = longest(loaded)
    begin = begins_with(tokenizer)
    tokens, content, whole = tokens_of(tokenizer, texts, SEQUENCES * length)
    check_entries(model, loaded, tokens)
    check_causal(model, lambda ids: _logits(model, loaded, ids), tokens[: min(length, 32)])
    total, targets = 0.0, 0
    for start in range(0, len(tokens) if begin is not None else len(tokens) - 1, length):
        ids = [begin, *tokens[start : start + length]] if begin is not None else tokens[start : start + length + 1]
        part = torch.tensor([ids])
        logits = _logits(model, loaded, part[:, :-1])
        total += float(F.cross_entropy(logits, part[0, 1:], reduction="sum"))
        targets += part.shape[1] - 1
    bits = total / (math.log(2) * content) if whole else math.nan
    if not whole:
        log.warning("%s: its tokenizer does not give the text back, so that there are no bits per byte", model)
    return {"loss": total / targets, "bits_per_byte": bits}


def begins_with(tokenizer: Any) -> int | None:
    """The model's begin-of-text, where its tokenizer puts one before a text."""
    begin: int | None = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else None


def check_entries(model: str, loaded: Any, tokens: list[int]) -> None:
    """Raise `UserError` where the embedding has no row for a token."""
    rows = loaded.get_input_embeddings().weight.shape[0]
    if max(tokens, default=0) >= rows:
        raise UserError(
            f"{model}: its tokenizer has entry {max(tokens):,} and its embedding {rows:,} rows: they are of two models"
        )


def tokenizer_of(model: str, revision: str | None) -> Any:
    """The model's own tokenizer. Raises `UserError` where it cannot be loaded."""
    import transformers  # It takes seconds.

    try:
        arguments = {} if revision is None else {"revision": revision}
        return transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False, **arguments)
    except Exception as error:  # The tokenizers library has no kind of its own.
        raise UserError(f"{model} has no tokenizer that can be loaded: {first_line(error)}") from None


def longest(loaded: Any) -> int:
    """The tokens that the model takes at once, at most LONGEST."""
    most = positions(loaded)
    return LONGEST if most is None else min(LONGEST, most)


def positions(loaded: Any) -> int | None:
    """The tokens that the model takes at once; None where it does not say."""
    config = loaded.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
    said = (getattr(config, name, None) for name in names)
    return min((number for number in said if isinstance(number, int) and number > 1), default=None)


def tokens_of(tokenizer: Any, texts: list[str], most: int) -> tuple[list[int], int, bool]:
    """The tokens of the first texts, how many bytes those have, and whether the tokens hold all of it."""
    end = tokenizer.eos_token_id
    tokens: list[int] = []
    content = read = same = 0
    for text in texts:
        if len(tokens) > most:
            break
        # What spells a special token is text.
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        same += tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == text.strip()
        tokens += ids + ([] if end is None else [end])
        content += len(text.encode())
        read += 1
    return tokens, content, same >= _WHOLE * read


def _logits(model: str, loaded: Any, inputs: torch.Tensor) -> torch.Tensor:
    """(L, V) in float32 for the inputs (1, L)."""
    try:
        with torch.no_grad():
            logits: torch.Tensor = loaded(inputs).logits[0].float()
    except (IndexError, RuntimeError) as error:
        raise UserError(f"{model} cannot take {inputs.shape[1]:,} tokens at once: {first_line(error)}") from None
    return logits


def check_causal(model: str, logits: Callable[[torch.Tensor], torch.Tensor], tokens: list[int]) -> None:
    """Raise `UserError` where the prediction at a place changes with the tokens that follow it.

    `logits` gives (L, V) for the inputs (1, L).
    """
    half = len(tokens) // 2
    other = tokens[:half] + tokens[:1] * (len(tokens) - half)
    with torch.no_grad():
        one, two = (logits(torch.tensor([part]))[:half] for part in (tokens, other))
    if half and float((one - two).abs().max()) > 1e-2 * float(one.std()):
        raise UserError(
            f"{model} sees the tokens that it is to predict: it is no causal language model as it is configured, so that "
            "its loss says nothing (is_decoder in its config.json)"
        )
