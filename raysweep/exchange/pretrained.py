"""The unembedding of a model somebody else trained: a folder or file on disk, or a causal LM on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from raysweep.corpora.build import open_corpus
from raysweep.errors import UserError
from raysweep.exchange.hidden_states import last_states
from raysweep.exchange.hub import find_on_hub
from raysweep.exchange.model_matrices import measured
from raysweep.exchange.text_loss import loss_on_text
from raysweep.exchange.unembedding import load, loaded_unembedding, of_file, of_folder
from raysweep.model.geometry import measure
from raysweep.space.corpus import Corpus
from raysweep.space.measure import HIDDEN, Measurement


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
        start of its in-distribution test documents (`raysweep.exchange.text_loss`).

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
    loaded = load(model, revision, computes=True)
    return measure(unembedding(model, revision)) | loss_on_text(model, loaded, revision, text)


def matrices(
    model: str, revision: str | None, measurements: list[Measurement], corpus: str | None = None
) -> list[dict[str, Any]]:
    """What is asked for of the matrices of any causal language model: `matrix`, `metric` and `value` of each.

    The names are those of `raysweep.space.measure`, without gradients. Hidden states are those of the last tokens of
    sequences of the in-distribution test text of a `corpus`. Raises `UserError` where there is no such model or matrix.
    """
    asks = any(name.startswith(HIDDEN) for measurement in measurements for name in measurement.of)
    if asks and corpus is None:
        raise UserError("--of: hidden states are of a text: add --corpus installed")
    if not asks and any("sequences" in measurement.model_fields_set for measurement in measurements):
        raise UserError("--sequences is for hidden states beside --of: leave it out")
    if corpus is not None and not asks:
        raise UserError(f"--corpus {corpus} is for hidden states beside --of: leave it out")
    path = Path(model)
    if path.is_file():
        raise UserError(f"--of needs the whole model: give the folder of {model}")
    if not path.exists():
        find_on_hub(model, revision)
    elif revision is not None:
        raise UserError(f"{model} is on disk and has no revisions; --revision is for models on the hub")
    loaded = load(model, revision, computes=corpus is not None)
    states = {}
    if corpus is not None:
        sequences = max(measurement.sequences for measurement in measurements)
        states = last_states(model, loaded, revision, _test_text(corpus), sequences)
    return measured(model, loaded, states, measurements)


def _test_text(name: str) -> list[str]:
    """The in-distribution test documents of a corpus, in its order."""
    try:
        # As the search spaces have it, so that it is built once.
        corpus = open_corpus(Corpus(name=name, decontaminate=13))
    except ValidationError:
        raise UserError(f"--corpus {name}: unknown corpus; allowed: installed, pile") from None
    tokens = corpus.tokens("pretraining/test")[:]
    end = corpus.manifest["end_of_text"]
    documents = np.split(tokens, np.flatnonzero(tokens == end) + 1)
    return [corpus.tokenizer.decode(document[:-1].tolist()) for document in documents if len(document) > 1]


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
