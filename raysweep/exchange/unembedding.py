"""Which matrix is the unembedding W of a model on disk: the one that transformers would multiply by.

Whatever else lies in the folder does not count. Only W is read where that can be told from the model's own structure and the
names in its safetensors files; anything else is loaded whole by transformers. What neither can read as numbers (packed,
scaled, a pointer, a part that is missing) is refused by name.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from raysweep.errors import UserError, first_line
from raysweep.files import is_lfs_pointer
from raysweep.model.matrices import BOTTLENECK

log = logging.getLogger("raysweep")

# What W is called in safetensors files without a configuration, and what stands in for it where the two are tied:
# raysweep's own, Llama and its kin, GPT-NeoX, OLMo, GPT-2.
UNEMBEDDINGS = ("transformer.ff_out.weight", "lm_head.weight", "embed_out.weight", "model.transformer.ff_out.weight")
EMBEDDINGS = ("model.embed_tokens.weight", "gpt_neox.embed_in.weight", "transformer.wte.weight", "wte.weight")

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


# What transformers raises for folders that are not what they say.
_UNLOADABLE = (
    OSError, ValueError, ImportError, RuntimeError, AttributeError, LookupError, TypeError, ArithmeticError, AssertionError,
    SafetensorError,
)  # fmt: skip


def of_folder(folder: Path) -> torch.Tensor:
    """W (V, d) of a folder as transformers saves it, or of safetensors files without a configuration. Raises `UserError`."""
    if (folder / ADAPTER).exists():
        raise UserError(
            f"{folder} holds an adapter ({ADAPTER}), of which transformers would take the base model: merge the two with "
            "peft's merge_and_unload, save the result, and give that folder"
        )
    if not (folder / CONFIG).exists():
        files = sorted(set((_tensor_files(folder) or {}).values())) or sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder} is not a model: it has neither a .safetensors file nor a {CONFIG}")
        # Without an index nobody knows whether all parts are here, and the unembedding may be in another.
        whole = (folder / INDEX).exists() or not any("-of-" in file.stem for file in files)
        return _without_configuration(files, str(folder), tied=whole)
    structure = _structure(folder)
    files_of = _tensor_files(folder)
    if files_of is None:
        return loaded_unembedding(str(folder), load(str(folder), None))
    name = next((key for key in structure.keys if key in files_of), None)
    if name is None:  # Under a name that only the loader knows.
        return loaded_unembedding(str(folder), load(str(folder), None))
    weight = _read(files_of[name], name)
    _check(weight, name, files_of, structure.shape, str(folder), structure.quantization)
    for key in structure.unused:
        if key in files_of and not torch.equal(_read(files_of[key], key), weight):
            log.warning(
                "%s: %s is not used: %s ties the unembedding to the embedding, %s, which differs and is measured",
                files_of[key], key, CONFIG, name,
            )  # fmt: skip
    return weight


def of_file(file: Path) -> torch.Tensor:
    """W (V, d) of one safetensors file: its own, or that of the model whose folder it is the weights of."""
    folder = file.parent
    if (folder / CONFIG).exists() and file.name == WHOLE:
        return of_folder(folder)
    # One part of several may hold the embedding of a model whose unembedding is in another part.
    part = "-of-" in file.stem
    tied = not part and not (folder / CONFIG).exists()
    return _without_configuration([file], str(file), tied)


def load(model: str, revision: str | None, computes: bool = False) -> Any:
    """The whole model, by transformers. Raises `UserError`.

    Where it `computes`, and its unembedding is not all that is looked at, none of its weights may be missing: transformers
    would start them at random.
    """
    import transformers  # It takes seconds.

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _know_ai2_olmo(model)
    # An adapter that the folder may hold is looked for by itself: on the main branch, if it is not told.
    where = {} if revision is None else {"revision": revision}
    arguments: dict[str, Any] = where | {"adapter_kwargs": dict(where)}
    try:
        answer: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, output_loading_info=True, trust_remote_code=False, **arguments
        )
    except _UNLOADABLE as error:
        raise UserError(f"{model} cannot be loaded as a causal language model: {first_line(error)}") from None
    loaded, report = answer
    head = loaded.get_output_embeddings()
    made_up = {name for name, parameter in loaded.named_parameters() if head is not None and parameter is head.weight}
    if made_up & set(report["missing_keys"]):
        raise UserError(f"{model} holds no {min(made_up)}: transformers would start it at random")
    if computes and (missing := sorted(report["missing_keys"])):
        raise UserError(
            f"{model} lacks {len(missing)} of its weights, such as {missing[0]}: transformers would start them at random"
        )
    return loaded


def _know_ai2_olmo(model: str) -> None:
    """Have transformers know ai2-olmo's own format (DataDecide, OLMo-1B), where a model may be of it: it takes seconds."""
    config = Path(model) / CONFIG
    if not config.exists() or "hf_olmo" in config.read_text(encoding="utf-8", errors="replace"):
        import hf_olmo  # noqa: F401


def loaded_unembedding(model: str, loaded: Any) -> torch.Tensor:
    """W (V, d) of a model that transformers has loaded."""
    head = loaded.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None:
        raise UserError(f"{model} has no unembedding")
    if weight.is_meta:
        raise UserError(f"{model} holds no unembedding under a name that transformers would load: it leaves it empty")
    if not weight.is_floating_point() or weight.ndim != 2:
        raise UserError(
            f"{model}: the unembedding is packed as {weight.dtype} of shape {tuple(weight.shape)}: dequantize it"
        )
    return weight  # type: ignore[no-any-return]


class _Structure:
    """Where a model of a folder's configuration has its unembedding."""

    def __init__(self, model: Any, quantization: str) -> None:
        self.quantization = quantization
        head = model.get_output_embeddings()
        self.shape = tuple(head.weight.shape)
        names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is head.weight]
        embedding = model.get_input_embeddings()
        tied = embedding is not None and embedding.weight is head.weight
        inside = names
        if tied:
            # The loader fills the embedding and ties the head to it.
            own = {name for name, module in model.named_modules() if module is embedding}
            inside = [name for name in names if name.removesuffix(".weight") in own]
        prefix = f"{model.base_model_prefix}."
        self.keys = [key for name in inside for key in (name, name.removeprefix(prefix), prefix + name)]
        """What the tensor may be called in a file: a checkpoint of the model, or of its base alone."""
        self.unused = [name for name in names if name not in inside]
        """Other names of the same parameter, which a file may have another tensor under."""


def _structure(folder: Path) -> _Structure:
    import transformers  # It takes seconds.

    transformers.logging.set_verbosity_error()
    _know_ai2_olmo(str(folder))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        quantization = getattr(config, "quantization_config", None) or {}
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    except _UNLOADABLE as error:
        raise UserError(f"{folder} cannot be loaded as a causal language model: {first_line(error)}") from None
    if getattr(model.get_output_embeddings(), "weight", None) is None:
        raise UserError(f"{folder} has no unembedding")
    method = quantization.get("quant_method", "") if isinstance(quantization, dict) else type(quantization).__name__
    return _Structure(model, str(method))


def _tensor_files(folder: Path) -> dict[str, Path] | None:
    """Tensor -> the safetensors file that transformers would read it from; None where only transformers can tell."""
    if (folder / CONFIG).exists() and "transformers_weights" in (folder / CONFIG).read_text(encoding="utf-8"):
        return None  # Names other files.
    if (folder / WHOLE).exists():
        return dict.fromkeys(_names(folder / WHOLE), folder / WHOLE)
    if not (folder / INDEX).exists():
        return None
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / Path(str(file)).name for name, file in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / INDEX} is not an index of safetensors files") from None
    for file in dict.fromkeys(files.values()):
        if not file.exists():
            raise UserError(f"{file} is missing: {INDEX} names it; copy or download all parts of the model")
    return files


def _without_configuration(files: list[Path], given: str, tied: bool = True) -> torch.Tensor:
    """W of files that no configuration says anything of: by a known name, which only one of them may have."""
    names = {file: set(_names(file)) for file in files}
    for name in UNEMBEDDINGS + (EMBEDDINGS if tied else ()):
        holders = [file for file in files if name in names[file]]
        if len(holders) > 1:
            raise UserError(f"{given}: {name} is in {holders[0].name} and in {holders[1].name}: give one of the files")
        if holders:
            weight = _read(holders[0], name)
            if BOTTLENECK in names[holders[0]]:
                return weight.double() @ _read(holders[0], BOTTLENECK).double()
            _check(weight, name, dict.fromkeys(names[holders[0]], holders[0]), None, given, "")
            if name in EMBEDDINGS:
                log.warning(
                    "%s: no %s and no unembedding: the embedding %s is taken to be tied to it", given, CONFIG, name
                )
            return weight
    raise UserError(f"{given} holds no unembedding; looked for {', '.join(UNEMBEDDINGS)}: give the model's folder")


def _check(
    weight: torch.Tensor, name: str, names: dict[str, Path], shape: tuple[int, ...] | None, given: str, method: str
) -> None:
    """Raise `UserError` where a tensor is not W itself."""
    how = f" by {method}" if method else ""
    if not weight.is_floating_point() or weight.ndim != 2:
        raise UserError(
            f"{given}: {name} is packed{how} ({str(weight.dtype).removeprefix('torch.')} of shape {tuple(weight.shape)}): "
            "dequantize the model and save it again"
        )
    stem = name.removesuffix("weight")
    beside = [other for other in names if other.startswith(stem) and other not in (name, f"{stem}bias")]
    if beside:
        raise UserError(
            f"{given}: {name} is quantized{how}, with {min(beside)} beside it: dequantize the model and save it again"
        )
    if shape is not None and tuple(weight.shape) != shape:
        raise UserError(f"{given}: {name} has the shape {tuple(weight.shape)}, where {CONFIG} asks for {shape}")


def _names(file: Path) -> list[str]:
    try:
        with file.open("rb") as content:
            if is_lfs_pointer(content):
                raise UserError(
                    f"{file} is a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder"
                )
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None


def _read(file: Path, name: str) -> torch.Tensor:
    try:
        with safe_open(file, framework="pt") as tensors:
            weight: torch.Tensor = tensors.get_tensor(name)
            return weight
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
