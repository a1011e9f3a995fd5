"""The text of a corpus, or of an evaluation, under the tokenizer of a published model.

A built text is decoded document by document and tokenized again, part of it where it is large: always the same documents,
whatever the tokenizer, so that bits per byte of models with different tokenizers compare. It has the form of a built corpus
(`TokenizedCorpus`) and lies beside those in the cache. What a published model has seen in its training nobody here knows:
its manifest has no `seen`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.cache import cache
from raysweep.corpora import manifest, questions
from raysweep.corpora.build import KEY_DIGITS
from raysweep.corpora.exclusive import made_once
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.corpora.tokenizer import bytes_of_tokens, encode, token_dtype
from raysweep.errors import UserError

# Increase with every change here that changes tokens.
REVISION = 1

# Places of a large shard from which documents are taken.
_PLACES = 64

# Of so many documents the tokens must give the text back.
_WHOLE = 0.99


def retokenized(built: TokenizedCorpus, name: str, tokenizer: Any, rows: int, text_bytes: int) -> TokenizedCorpus:
    """A text under a model's tokenizer.

    Parameters
    ----------
    built
        The text as raysweep built it.
    name
        What messages call the model.
    tokenizer
        The model's, as transformers loads it.
    rows
        Those of the model's embedding.
    text_bytes
        Bytes of each shard that are taken, or a little more; all of a shard that has fewer.

    Raises
    ------
    UserError
        Where the tokenizer is of a kind that has no form in the `tokenizers` library, or does not give the text back.
    """
    backend, end = plain(tokenizer, name)
    spelled = backend.to_str()
    specification = [REVISION, built.fingerprint, sha256(backend, end), rows, text_bytes]
    key = hashlib.sha256(json.dumps(specification).encode()).hexdigest()[:KEY_DIGITS]
    folder = cache() / "corpora" / f"{built.folder.name.rpartition('-')[0]}-{key}"

    def make(unfinished: Path) -> None:
        (unfinished / "tokenizer.json").write_text(spelled, encoding="utf-8")
        about: dict[str, Any] = {
            "corpus": built.manifest["corpus"] | {"tokenizer": "of a published model", "vocabulary": rows},
            "retokenized": built.fingerprint,
            "seen": None,
            "shards": {},
        }
        dtype = token_dtype(rows)
        for shard in built.shards:
            if shard.endswith(questions.REQUESTS):
                continue
            if shard.startswith(questions.PREFIX):
                of = shard.removeprefix(questions.PREFIX)
                asked = questions.asked_of(built, of)
                tokens, requests = questions.tokenized_requests(asked, backend, end)
                about["shards"] |= questions.write_requests(unfinished, of, tokens.astype(dtype), requests, len(asked))
            else:
                texts = list(documents(built, shard, text_bytes))
                about["shards"][shard] = _shard(unfinished, shard, texts, name, backend, end, dtype)
        manifest.finish(about, unfinished, end)

    made_once(folder, folder / manifest.FILE, make, resume=False)
    return TokenizedCorpus(folder)


def plain(tokenizer: Any, name: str) -> tuple[Any, int]:
    """A model's tokenizer as the `tokenizers` library has it, without padding and truncation, and its end-of-text.

    Raises `UserError` where there is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{name}: its tokenizer has no tokenizer.json, nor can transformers make one of it")
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if end is None:
        raise UserError(f"{name}: its tokenizer has no end-of-text")
    backend.no_padding()
    backend.no_truncation()
    return backend, int(end)


def sha256(backend: Any, end: int) -> str:
    """What tells one tokenizer from another."""
    return hashlib.sha256(f"{end} {backend.to_str()}".encode()).hexdigest()


def _shard(
    folder: Path, shard: str, texts: list[str], name: str, backend: Any, end: int, dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Write the tokens of a shard; its entry in the manifest."""
    of_tokens = bytes_of_tokens(backend, max(backend.get_vocab_size(), end + 1))
    pieces, whole = [], 0
    for text, ids in zip(texts, encode(texts, backend), strict=True):
        # A tokenizer of words puts a blank before the first.
        extra = int(of_tokens[ids].sum()) - len(text.encode())
        whole += extra in (0, 1) and backend.decode(ids, skip_special_tokens=False).strip() == text.strip()
        pieces.append(np.array([*ids, end], dtype=dtype))
    if whole < _WHOLE * len(texts):
        raise UserError(
            f"{name}: its tokenizer does not give the text back ({len(texts) - whole:,} of {len(texts):,} documents of "
            f"{shard}), so that its losses are of another text"
        )
    tokens = np.concatenate([*pieces, np.empty(0, dtype)])
    said = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
    return questions.write_shard(folder, shard, tokens) | said


def documents(built: TokenizedCorpus, shard: str, text_bytes: int) -> Iterator[str]:
    """Documents of a shard, of `text_bytes` together or a little more, from all over it; all where it has fewer."""
    tokens, end = built.tokens(shard), built.manifest["end_of_text"]
    size = int(built.manifest["shards"][shard].get("bytes") or 5 * len(tokens))
    decode = built.tokenizer.decode
    if size <= text_bytes:
        yield from (decode(ids.tolist(), skip_special_tokens=False) for ids in _documents(tokens, 0, len(tokens), end))
        return
    # Of few documents each place is to have one that begins there.
    number = max(1, min(_PLACES, int(built.manifest["shards"][shard].get("documents") or _PLACES) // 2))
    places = np.linspace(0, len(tokens), number + 1).astype(int)
    left = 0.0
    for start, stop in zip(places[:-1].tolist(), places[1:].tolist(), strict=True):
        left += text_bytes / number
        for ids in _documents(tokens, start, stop, end):
            text = decode(ids.tolist(), skip_special_tokens=False)
            if cut := len(text.encode()) > left:
                # As far as a blank: half a word is none.
                text = text.encode()[: int(left)].decode(errors="ignore").rpartition(" ")[0]
            if text:
                yield text
            left -= len(text.encode())
            if cut:
                break


def _documents(tokens: Any, start: int, stop: int, end: int) -> Iterator[NDArray[np.int64]]:
    """The documents that begin in a part of a shard, without their end-of-text; the last may go on behind it."""
    ahead = 1 << 16
    position = start
    if start and int(tokens[start - 1 : start][0]) != end:  # In the middle of one.
        position = _next_end(tokens, start, end, ahead) + 1
    while position < min(stop, len(tokens)):
        at = _next_end(tokens, position, end, ahead)
        if at > position:
            yield np.asarray(tokens[position:at]).astype(np.int64)
        position = at + 1


def _next_end(tokens: Any, start: int, end: int, ahead: int) -> int:
    """Where the next end-of-text is; behind the last token where there is none."""
    while start < len(tokens):
        found = np.flatnonzero(np.asarray(tokens[start : start + ahead]) == end)
        if len(found):
            return start + int(found[0])
        start += ahead
    return len(tokens)
