"""The unembedding of a model somebody else trained: a folder or file on disk, or a causal LM on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import UserError

if TYPE_CHECKING:
    import torch

# What the unembedding is called in safetensors files, and what stands in for it where it is tied to the embedding:
# raysweep's own, Llama and its kin, GPT-NeoX, OLMo, GPT-2.
UNEMBEDDINGS = ("transformer.ff_out.weight", "lm_head.weight", "embed_out.weight", "model.transformer.ff_out.weight")
EMBEDDINGS = ("model.embed_tokens.weight", "gpt_neox.embed_in.weight", "transformer.wte.weight", "wte.weight")


def unembedding(model: str, revision: str | None = None) -> torch.Tensor:
    """W, of shape (V, d), of `model`: a .safetensors file, a folder with some, or what transformers can load.

    Only W is read from safetensors files with a known layout; anything else goes through transformers' AutoModelForCausalLM.
    Raises `UserError` where there is no such model.
    """
    path = Path(model)
    if path.is_file():
        weight = _from_files([path], tied=True)
        if weight is None:
            raise UserError(f"{model} holds no unembedding; looked for {', '.join(UNEMBEDDINGS)}")
        return weight
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files and not (path / "config.json").exists():
            raise UserError(f"{model} is no model: it has neither a .safetensors file nor a config.json")
        weight = _from_files(files, tied=_tied(path))
        if weight is not None:
            return weight
    return _from_transformers(model, revision)


def _tied(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return bool(config.get("tie_word_embeddings", False)) if isinstance(config, dict) else True


def _from_files(files: list[Path], tied: bool) -> torch.Tensor | None:
    from safetensors import SafetensorError, safe_open

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


def _from_transformers(model: str, revision: str | None) -> torch.Tensor:
    import transformers

    transformers.logging.set_verbosity_error()
    arguments: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, **arguments)
    except (OSError, ValueError, ImportError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{model} cannot be loaded as a causal language model: {reason}") from None
    weight = loaded.get_output_embeddings()
    if weight is None:
        raise UserError(f"{model} has no unembedding")
    return weight.weight  # type: ignore[no-any-return]
