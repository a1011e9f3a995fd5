"""The unembedding of a model somebody else trained: a folder or file on disk, or a causal LM on the hub."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from raysweep.corpora.build import open_corpus
from raysweep.errors import UserError, first_line
from raysweep.exchange.hub import find_on_hub
from raysweep.exchange.unembedding import load, loaded_unembedding, of_file, of_folder
from raysweep.model.geometry import measure
from raysweep.space.corpus import Corpus

# Sequences of the corpus on which a loss is taken, and the longest that they are.
SEQUENCES = 128
LONGEST = 2048


def geometry(model: str, revision: str | None = None, corpus: str | None = None) -> dict[str, float]:
    """The geometry of the unembedding W (V, d) of any causal language model.

    Parameters
    ----------
    model
        A folder or .safetensors file, or the name of a model on the hub.
    revision
        A revision of a model on the hub.
    corpus
        The name of a corpus on which to measure the loss as well.

    Returns
    -------
    dict
        `effective_rank` (fraction of d), `cosine`, `isotropy`, `isotropy_symmetric`, `spectral_norm`, as
        `raysweep.model.geometry` defines them; with a corpus also `loss` in nats per token and `bits_per_byte`, over the
        start of its in-distribution test documents, tokenized by the model's own tokenizer and joined by its end-of-text.

    Raises
    ------
    UserError
        Where there is no such model, or it cannot be read.

    Examples
    --------
    >>> raysweep.geometry("model")["effective_rank"]                   # doctest: +SKIP
    0.6475
    """
    if corpus is None:
        return measure(unembedding(model, revision))
    text = _test_text(corpus)
    if not Path(model).exists():
        find_on_hub(model, revision)
    loaded = load(model, revision)
    return measure(unembedding(model, revision)) | _loss(model, loaded, revision, text)


def _test_text(name: str) -> list[str]:
    """The in-distribution test documents of a corpus, in its order."""
    try:
        # The Pile as the study's search space has it, so that it is built once.
        corpus = open_corpus(Corpus(name=name, decontaminate=13 if name == "pile" else None))
    except ValidationError:
        raise UserError(f"--corpus {name}: unknown corpus; allowed: installed, pile") from None
    tokens = corpus.tokens("pretraining/test")[:]
    end = corpus.manifest["end_of_text"]
    documents = np.split(tokens, np.flatnonzero(tokens == end) + 1)
    return [corpus.tokenizer.decode(document[:-1].tolist()) for document in documents if len(document) > 1]


def _loss(model: str, loaded: Any, revision: str | None, texts: list[str]) -> dict[str, float]:
    import transformers  # It takes seconds.

    try:
        arguments = {} if revision is None else {"revision": revision}
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, **arguments)
    except (OSError, ValueError) as error:
        raise UserError(f"{model} has no tokenizer that can be loaded: {first_line(error)}") from None
    end = tokenizer.eos_token_id
    length = min(LONGEST, getattr(loaded.config, "max_position_embeddings", LONGEST) or LONGEST)
    tokens: list[int] = []
    content = 0
    for text in texts:
        if len(tokens) > SEQUENCES * length:
            break
        tokens += tokenizer(text, add_special_tokens=False)["input_ids"] + ([] if end is None else [end])
        content += len(text.encode())
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, length):
            part = torch.tensor([tokens[start : start + length + 1]])
            logits = loaded(part[:, :-1]).logits[0].float()
            total += F.cross_entropy(logits, part[0, 1:], reduction="sum").double()
    return {"loss": float(total) / (len(tokens) - 1), "bits_per_byte": float(total) / (math.log(2) * content)}


def unembedding(model: str, revision: str | None = None) -> torch.Tensor:
    """W, of shape (V, d), of `model`: a .safetensors file, a folder, or the name of a model on the hub.

    It is what `from_pretrained(model).get_output_embeddings()` would multiply by. Raises `UserError` where there is no such
    model, or where its unembedding cannot be read as numbers.
    """
    path = Path(model)
    if revision is not None and path.exists():
        raise UserError(f"{model} is on disk and has no revisions; --revision is for models on the hub")
    if path.is_file():
        return of_file(path)
    if path.is_dir():
        return of_folder(path)
    find_on_hub(model, revision)
    return loaded_unembedding(model, load(model, revision))
