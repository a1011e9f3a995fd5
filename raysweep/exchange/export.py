"""A trained cell as a transformers `LlamaForCausalLM` folder, with its tokenizer and a model card.

OLMo's blocks in this configuration are Llama's: the weights are copied one to one and the logits are the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import UserError
from raysweep.space.cell import Cell, Space
from raysweep.store import Store

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

    from raysweep.corpora.loader import TokenizedCorpus
    from raysweep.evaluation.task import Subject
    from raysweep.training.checkpoint import Checkpoint


def find(space: Space, wanted: str) -> Cell:
    """The cell with this id, or with this part in its id where only one has it."""
    found = [cell for cell in space.cells if cell.id == wanted] or [cell for cell in space.cells if wanted in cell.id]
    if len(found) == 1:
        return found[0]
    why = "no cell" if not found else f"{len(found)} cells"
    raise UserError(f"{space.name} has {why} with {wanted!r} in the id: `raysweep plan` lists them")


def export(
    space: Space, store: Store, cell: Cell, folder: Path, form: str = "trained", step: int | None = None
) -> None:
    """Write the model of a cell to `folder`.

    `form` is `trained`, `finetune_python` or `finetune_math` (as the space's evaluation of that name left it), or
    `quantized_<b>bit` (GPTQ, made again, with the settings of the space's `quantized`). `step` chooses an earlier
    checkpoint that the store still has. Raises `UserError` where what is asked for is not there.
    """
    from raysweep.corpora.loader import open_corpus
    from raysweep.corpora.shared import obtain

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: choose another --output")
    if cell.shape.block != "sequential":
        raise UserError(f"{cell.id} has {cell.shape.block} blocks, which no model of transformers has in this form")
    fingerprint = store.corpora().get(cell.corpus.key)
    # What was trained on, which is not built anew for its tokenizer; `installed` can always be.
    built = fingerprint is not None and cell.corpus.name != "installed"
    corpus = obtain(cell.corpus, str(fingerprint), store) if built else open_corpus(cell.corpus)
    weights, reached = _weights(space, store, cell, corpus, form, step)
    model = to_llama(cell, weights, int(corpus.manifest["end_of_text"]))
    try:
        model.save_pretrained(folder)
        _tokenizer(cell, corpus).save_pretrained(folder)
        (folder / "README.md").write_text(_card(space, store, cell, form, reached), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None


def to_llama(cell: Cell, weights: dict[str, torch.Tensor], end_of_text: int) -> LlamaForCausalLM:
    """`weights` under OLMo's names as a `LlamaForCausalLM` with the same logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = cell.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        max_position_embeddings=cell.sequence_length,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_of_text,
        pad_token_id=None,
    )
    renamed = {
        "model.embed_tokens.weight": weights["transformer.wte.weight"],
        "model.norm.weight": weights["transformer.ln_f.weight"],
        "lm_head.weight": weights["transformer.ff_out.weight"],
    }
    for i in range(shape.depth):
        ours, theirs = f"transformer.blocks.{i}", f"model.layers.{i}"
        attention = weights[f"{ours}.att_proj.weight"].chunk(3)
        up, gate = weights[f"{ours}.ff_proj.weight"].chunk(2)
        renamed |= {
            **{f"{theirs}.self_attn.{n}_proj.weight": part for n, part in zip("qkv", attention, strict=True)},
            f"{theirs}.self_attn.o_proj.weight": weights[f"{ours}.attn_out.weight"],
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.down_proj.weight": weights[f"{ours}.ff_out.weight"],
            f"{theirs}.input_layernorm.weight": weights[f"{ours}.attn_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": weights[f"{ours}.ff_norm.weight"],
        }
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in renamed.items()})
    return model


def _weights(
    space: Space, store: Store, cell: Cell, corpus: TokenizedCorpus, form: str, step: int | None
) -> tuple[dict[str, torch.Tensor], int]:
    """The weights, and the step of their training that they are of."""
    from raysweep.evaluation import finetune
    from raysweep.evaluation import quantized as quantized_task
    from raysweep.evaluation import task as evaluate
    from raysweep.model import olmo as model
    from raysweep.training.run import LanguageModel

    directory = store.run_directory(cell.id)
    if form.startswith("finetune_"):
        evaluation = _evaluation(space, form, form)
        directory = store.evaluation_directory(cell.id, form, evaluation.model_dump())
        steps = finetune.finetuning(cell, evaluation).steps
        found = _checkpoint(store, directory, step, steps, f"{form} of {cell.id}")
        return found.model, found.position.step
    quantized = re.fullmatch(r"quantized_([2-8])bit", form)
    if form != "trained" and quantized is None:
        raise UserError(
            f"no form {form!r}: there are trained, finetune_python, finetune_math, quantized_<b>bit with 2 to 8 bits"
        )
    found = _checkpoint(store, directory, step, cell.steps, cell.id)
    if quantized is None:
        return found.model, found.position.step
    evaluation = _evaluation(space, "quantized", form)
    olmo = model.build(cell.shape, cell.sequence_length, cell.seed)
    olmo.load_state_dict(found.model)
    subject: Subject = evaluate.Subject(cell, LanguageModel(olmo), corpus, store, "")
    quantized_task.gptq(subject, int(quantized[1]), evaluation)
    return {name: tensor.detach() for name, tensor in olmo.state_dict().items()}, found.position.step


def _evaluation(space: Space, task: str, form: str) -> Any:
    for evaluation in space.evaluations:
        if evaluation.task == task:
            return evaluation
    raise UserError(f"the form {form!r} needs the evaluation {task}, which {space.name} does not have")


def _checkpoint(store: Store, directory: str, step: int | None, steps: int, what: str) -> Checkpoint:
    """That of a step, or of the end of a training of `steps`."""
    from raysweep.training import checkpoint

    names = checkpoint.names(store, directory)
    kept = sorted({checkpoint.step_of(name) for name in names})
    if not names:
        raise UserError(f"{store.location} holds no weights of {what}: run the sweep first")
    if step is not None and step not in kept:
        there = ", ".join(map(str, kept))
        raise UserError(
            f"{store.location} holds {what} at step {there}, not {step}; resources.train.keep_checkpoints: all keeps more"
        )
    damaged = ""
    for name in names:
        # Never an older one unasked.
        if checkpoint.step_of(name) == step or (step is None and not damaged):
            try:
                found = checkpoint.read(store, f"{directory}/{name}", optimizer=False)
                if step is None and not found.position.ends(steps):
                    raise UserError(
                        f"{what} is at step {found.position.step} of {steps}: `raysweep run` goes on with it; "
                        f"--step {found.position.step} exports it as it is"
                    )
                return found
            except checkpoint.Unfinished:
                continue
            except checkpoint.Damaged as error:
                damaged = f"{store.location}/{directory}/{name}: {error}"
    raise UserError(f"{damaged or f'{store.location} holds no whole checkpoint of {what}'}; run the sweep again")


def _tokenizer(cell: Cell, corpus: TokenizedCorpus) -> Any:
    from transformers import PreTrainedTokenizerFast

    from raysweep.corpora.tokenizer import END_OF_TEXT

    return PreTrainedTokenizerFast(
        tokenizer_file=str(corpus.folder / "tokenizer.json"),
        eos_token=END_OF_TEXT,
        model_max_length=cell.sequence_length,
        clean_up_tokenization_spaces=False,
    )


def _card(space: Space, store: Store, cell: Cell, form: str, step: int) -> str:
    """A model card: what the model is, how it was trained, what was measured of it."""
    from raysweep.store.index import results
    from raysweep.version import __version__

    row = results(store, [cell], space.evaluations).to_pylist()
    settings = cell.describe()
    measured = {k: v for k, v in row[0].items() if k not in settings and v is not None} if row else {}

    def table(values: dict[str, Any]) -> list[str]:
        return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]

    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {cell.id}",
        "",
        f"A language model of the sweep `{space.name}`, trained and exported by raysweep {__version__}"
        f" ({form}, step {step}). It is the object of a study, not made for use.",
        "",
        "## Configuration",
        "",
        *table(settings),
        "",
        "## Results of the trained cell",
        "",
        *(table(measured) if measured else ["The cell is not finished."]),
        "",
    ]
    return "\n".join(lines)
