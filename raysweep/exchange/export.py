"""A trained cell as a folder that transformers loads, with its tokenizer and a model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from raysweep.corpora.build import open_corpus
from raysweep.corpora.shared import obtain
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.corpora.tokenizer import END_OF_TEXT
from raysweep.errors import UserError, reason
from raysweep.evaluation import finetune, quantized
from raysweep.evaluation.task import Subject
from raysweep.exchange.llama import to_llama
from raysweep.exchange.model_card import model_card
from raysweep.files import local_path
from raysweep.model.language_model import LanguageModel
from raysweep.space.cell import Cell
from raysweep.space.space import Space, find_cell
from raysweep.store import Store, corpora_record
from raysweep.store.checkpoints import names, step_of
from raysweep.training import checkpoint
from raysweep.training.checkpoint import Checkpoint


def export(
    space: Space,
    store: str | Path | Store,
    cell: str | Cell,
    output: str | Path,
    form: str = "trained",
    step: int | None = None,
) -> Cell:
    """Write the model of a cell to a folder, as a transformers `LlamaForCausalLM` with its tokenizer and a model card.

    Parameters
    ----------
    space
        The search space of the cell.
    store
        The folder or URI of its results.
    cell
        A cell, its id, or a part of its id that no other cell's has.
    output
        An empty or new folder.
    form
        `trained`; `finetune_python` and its like, as the space's evaluation of that name left it; or
        `quantized_<b>bit`: GPTQ, recomputed, with the settings of the space's `quantized`.
    step
        An earlier checkpoint that the store still has.

    Returns
    -------
    Cell
        The cell that was written.

    Raises
    ------
    UserError
        If the requested model does not exist, does not fit that class, or cannot be written.

    Examples
    --------
    >>> space = raysweep.load("search_spaces/demo.yaml")
    >>> raysweep.export(space, "runs/demo", "d16-524.3K-b8-wd0.1-lr0.2-f0.1", "model")     # doctest: +SKIP
    """
    store = Store.at(store)
    cell = cell if isinstance(cell, Cell) else find_cell(space, cell)
    folder = local_path(output, "--output")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: choose another --output")
    if cell.shape.block != "sequential":
        raise UserError(f"{cell.id} has {cell.shape.block} blocks: only sequential blocks can be exported")
    if cell.qk_norm:
        raise UserError(f"{cell.id} has qk_norm: no transformers class has it beside norms before attention and MLP")
    corpus = _trained_on(cell, store)
    weights, reached = _weights(space, store, cell, corpus, form, step)
    model = to_llama(cell, weights, int(corpus.manifest["end_of_text"]))
    try:
        model.save_pretrained(folder)
        _tokenizer(cell, corpus).save_pretrained(folder)
        (folder / "README.md").write_text(model_card(space, store, cell, form, reached), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {reason(error)}") from None
    return cell


def _trained_on(cell: Cell, store: Store) -> TokenizedCorpus:
    """The corpus that a cell was trained on, with its tokenizer. Raises `UserError` where there is only another."""
    fingerprint = corpora_record.fingerprints(store).get(cell.corpus.key)
    if fingerprint is None:
        return open_corpus(cell.corpus)
    try:
        return obtain(cell.corpus.name, fingerprint, store)
    except UserError:
        if cell.corpus.name != "installed":
            raise
    # It can be built wherever the same packages are.
    corpus = open_corpus(cell.corpus)
    if corpus.fingerprint != fingerprint:
        raise UserError(
            f"{cell.id} was trained on the corpus installed, built of other packages ({fingerprint}, here "
            f"{corpus.fingerprint}), and its tokenizer is not here: install the versions of constraints.txt, or export "
            "where it was trained"
        )
    return corpus


def _weights(
    space: Space, store: Store, cell: Cell, corpus: TokenizedCorpus, form: str, step: int | None
) -> tuple[dict[str, torch.Tensor], int]:
    """The weights, and the step of their training that they are of."""
    directory = store.run_directory(cell.id)
    if form.startswith("finetune_"):
        evaluation = _evaluation(space, form, form)
        directory = store.evaluation_directory(cell.id, form, evaluation.identity)
        steps = finetune.finetuning(cell, evaluation).steps
        tuned = _checkpoint(store, directory, step, steps, f"{form} of {cell.id}")
        return tuned.model, tuned.state.step
    bits = re.fullmatch(r"quantized_([2-8])bit", form)
    if form != "trained" and bits is None:
        raise UserError(
            f"no form {form!r}: there are trained, finetune_python and its like, quantized_<b>bit with 2 to 8 bits"
        )
    trained = _checkpoint(store, directory, step, cell.steps, cell.id)
    if bits is None:
        return trained.model, trained.state.step
    evaluation = _evaluation(space, "quantized", form)
    model = LanguageModel.of(cell, weights=trained.model)
    quantized.gptq(Subject(cell, model, corpus, store, ""), int(bits[1]), evaluation)
    return {name: tensor.detach() for name, tensor in model.olmo.state_dict().items()}, trained.state.step


def _evaluation(space: Space, task: str, form: str) -> Any:
    for evaluation in space.evaluations:
        if evaluation.label == task:
            return evaluation
    raise UserError(f"the form {form!r} needs the evaluation {task}, which {space.name} does not have")


def _checkpoint(store: Store, directory: str, step: int | None, steps: int, what: str) -> Checkpoint:
    """That of a step, or of the end of a training of `steps`."""
    checkpoints = names(store, directory)
    kept = sorted({step_of(name) for name in checkpoints})
    if not checkpoints:
        raise UserError(f"{store.location} holds no weights of {what}: run the sweep first")
    if step is not None and step not in kept:
        raise UserError(
            f"{store.location} holds {what} at step {', '.join(map(str, kept))}, not {step}; "
            "set resources.train.keep_checkpoints: all to keep one for each report"
        )
    damaged = ""
    for name in checkpoints:
        # Never an older one unasked.
        if step_of(name) == step or (step is None and not damaged):
            try:
                read = checkpoint.read(store, f"{directory}/{name}", optimizer=False)
                if step is None and not read.state.ends(steps):
                    raise UserError(
                        f"{what} is at step {read.state.step} of {steps}: `raysweep run` resumes it; "
                        f"--step {read.state.step} exports it as it is"
                    )
                return read
            except checkpoint.Unfinished:
                continue
            except checkpoint.Damaged as error:
                damaged = f"{store.location}/{directory}/{name}: {error}"
    raise UserError(f"{damaged or f'{store.location} has no complete checkpoint of {what}'}; run the sweep again")


def _tokenizer(cell: Cell, corpus: TokenizedCorpus) -> Any:
    from transformers import PreTrainedTokenizerFast  # transformers takes seconds to import.

    return PreTrainedTokenizerFast(
        tokenizer_file=str(corpus.folder / "tokenizer.json"),
        eos_token=END_OF_TEXT,
        model_max_length=cell.sequence_length,
        clean_up_tokenization_spaces=False,
    )
