"""The unembedding of a model somebody else trained: a folder or file on disk, or a causal LM on the hub."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from raysweep.corpora.build import open_corpus
from raysweep.errors import UserError, first_line
from raysweep.model.geometry import measure
from raysweep.space.corpus import Corpus

# What the unembedding is called in safetensors files, and what stands in for it where it is tied to the embedding:
# raysweep's own, Llama and its kin, GPT-NeoX, OLMo, GPT-2.
UNEMBEDDINGS = ("transformer.ff_out.weight", "lm_head.weight", "embed_out.weight", "model.transformer.ff_out.weight")
EMBEDDINGS = ("model.embed_tokens.weight", "gpt_neox.embed_in.weight", "transformer.wte.weight", "wte.weight")


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
    loaded = _from_transformers(model, revision)
    return measure(_output_weight(model, loaded)) | _loss(model, loaded, revision, text)


def _test_text(name: str) -> list[str]:
    """The in-distribution test documents of a corpus, in its order."""
    try:
        corpus = open_corpus(Corpus(name=name))
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
    """W, of shape (V, d), of `model`: a .safetensors file, a folder with some, or what transformers can load.

    Only W is read from safetensors files with a known layout; anything else goes through transformers' AutoModelForCausalLM.
    Raises `UserError` where there is no such model.
    """
    path = Path(model)
    if revision is not None and path.exists():
        raise UserError(f"{model} is on disk and has no revisions; --revision is for models on the hub")
    if path.is_file():
        # One part of several may hold the embedding of a model whose unembedding is in another part.
        part = re.search(r"-\d+-of-\d+\.", path.name) is not None and not (path.parent / "config.json").exists()
        weight = _from_files([path], tied=_tied(path.parent) and not part)
        if weight is None:
            raise UserError(
                f"{model} holds no unembedding; looked for {', '.join(UNEMBEDDINGS)}: give the model's folder"
            )
        return weight
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files and not (path / "config.json").exists():
            raise UserError(f"{model} is not a model: it has neither a .safetensors file nor a config.json")
        weight = _from_files(files, tied=_tied(path))
        if weight is not None:
            return weight
    return _output_weight(model, _from_transformers(model, revision))


def _tied(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return bool(config.get("tie_word_embeddings", False)) if isinstance(config, dict) else True


def _from_files(files: list[Path], tied: bool) -> torch.Tensor | None:
    for name in UNEMBEDDINGS + (EMBEDDINGS if tied else ()):
        for file in files:
            try:
                with safe_open(file, framework="pt") as tensors:
                    if name in tensors.keys():  # noqa: SIM118 (not a mapping)
                        weight: torch.Tensor = tensors.get_tensor(name)
                        return weight
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read: {error}") from None
    return None


def _from_transformers(model: str, revision: str | None) -> Any:
    import transformers  # It takes seconds.

    transformers.logging.set_verbosity_error()
    arguments: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(model, **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{model} cannot be loaded as a causal language model: {first_line(error)}") from None


def _output_weight(model: str, loaded: Any) -> torch.Tensor:
    weight = loaded.get_output_embeddings()
    if weight is None:
        raise UserError(f"{model} has no unembedding")
    return weight.weight  # type: ignore[no-any-return]
