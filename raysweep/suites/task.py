"""What is done for one checkpoint of a published model: have it, measure it, evaluate it, write its rows. A Ray task."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.cache import cache
from raysweep.errors import StoreError, UserError
from raysweep.evaluation.finetune import FineTuning
from raysweep.space.cell import Cell
from raysweep.space.evaluations import TASKS, Evaluation
from raysweep.space.measure import HIDDEN, UNEMBEDDING
from raysweep.space.metrics import METRICS, OF_ONE, per_byte
from raysweep.store import Store
from raysweep.store import measures as measures_table
from raysweep.store.schemas import EVALUATIONS, REVISIONS
from raysweep.suites import hub
from raysweep.suites.checkpoints import Checkpoint, digest
from raysweep.suites.read import MEASURE, Suite
from raysweep.sweep.failures import describe, innermost_cause, record_failure
from raysweep.sweep.prepare_texts import prepared_text
from raysweep.sweep.same_code import check_same_code

if TYPE_CHECKING:
    import torch

    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.suites.model import LoadedModel

# The share by which a table's parameters may differ from those that were counted before that is said.
_PARAMETERS = 0.01

LOAD = "model"
"""What may fail beside the evaluations and `measure`: to have the model."""


def lacking(suite: Suite, checkpoint: str, store: Store) -> list[str]:
    """What the store lacks of a checkpoint: `model`, `measure`, and the labels of evaluations."""
    found = [] if store.read_rows(store.revision_file(checkpoint), REVISIONS) else [LOAD]
    stages = suite.stages.items()
    return found + [stage for stage, asked in stages if store.evaluation_rows(checkpoint, stage, asked) is None]


@dataclass(frozen=True)
class Work:
    """What a task is given."""

    suite: Suite
    location: str
    fingerprint: str
    """Of the suite's corpus."""
    code: dict[str, str]


def complete(checkpoint: Checkpoint, work: Work, board: Any = None) -> dict[str, Any]:
    """Do what the store lacks of a checkpoint. What came of it: `errors` by stage, and the `bytes` that came.

    What it waits for it tells the actor `board`.

    Raises `StoreError` where the store is at fault.
    """
    import torch

    check_same_code(work.code)
    torch.set_num_threads(work.suite.resources.cpus)
    store = Store(work.location, running=True)
    errors: dict[str, str] = {}
    todo = lacking(work.suite, checkpoint.id, store)
    came = 0

    def attempt(stage: str, do: Callable[[], None]) -> None:
        try:
            do()
            if stage not in errors:
                store.delete(store.failure_file(checkpoint.id, stage))
        except StoreError:
            raise
        except Exception as error:
            cause = innermost_cause(error)
            if isinstance(cause, StoreError):
                raise cause from None
            errors[stage] = describe(cause)
            store.probe()
            record_failure(store, checkpoint.id, stage, errors[stage])

    def waiting(line: str) -> None:
        if board is not None:
            board.tell.remote(line)

    def work_on(folder: Path) -> None:
        files_sha256 = digest(folder)
        for before in store.read_rows(store.revision_file(checkpoint.id), REVISIONS) or []:
            if before["files_sha256"] != files_sha256:
                raise UserError(
                    f"the files of {checkpoint.id} are other ones than when it was measured: bring those back, give the "
                    "model another id, or use another --store"
                )
        for stage, do in _stages(checkpoint, work, store, folder, files_sha256, todo, waiting):
            attempt(stage, do)

    def whole() -> None:
        nonlocal came

        if checkpoint.folder is not None:
            work_on(checkpoint.folder)
            return
        from raysweep.suites.room import Room

        repository, commit = checkpoint.model.repository, checkpoint.commit
        files = hub.files(repository, commit, waiting)
        size = sum(file.size for file in files)
        room = Room(cache() / "models", int(work.suite.resources.disk * 1e9))
        with room.holding(f"{checkpoint.id}-{commit[:12]}", size, waiting) as folder:
            hub.download(repository, commit, files, folder, waiting)
            came = size
            work_on(folder)

    if todo:
        attempt(LOAD, whole)
    return {"checkpoint": checkpoint.id, "errors": errors, "bytes": came}


def _stages(
    checkpoint: Checkpoint,
    work: Work,
    store: Store,
    folder: Path,
    files_sha256: str,
    todo: list[str],
    waiting: Callable[[str], None],
) -> list[tuple[str, Callable[[], None]]]:
    """What is to be done with a model that is there, each by itself. Raises `UserError` where it cannot be loaded."""
    import torch

    from raysweep.corpora.shared import obtain
    from raysweep.model.language_model import gpu
    from raysweep.suites.model import load_model
    from raysweep.suites.text import plain, retokenized, sha256
    from raysweep.sweep.cell_tables import write_timing

    suite = work.suite
    gpus = suite.resources.gpus
    device = gpu(gpus, "resources.gpus") if gpus > 0 else torch.device("cpu")
    begun = time.monotonic()
    model, tokenizer = load_model(checkpoint.id, folder, device)
    rows = model.loaded.get_input_embeddings().weight.shape[0]
    _check_table(checkpoint, model, waiting)
    cell = _as_cell(model, suite)
    seconds_to_load = time.monotonic() - begun

    def own(built: TokenizedCorpus) -> TokenizedCorpus:
        return retokenized(built, checkpoint.id, tokenizer, rows, suite.text_bytes)

    by = [model.computed_by()]

    def timed(stage: str, seconds: float) -> None:
        write_timing(store, checkpoint.id, stage, seconds, None, 1, by, gpus)

    def short(lines: list[str]) -> None:
        for line in lines:
            waiting(f"under the tokenizer of {checkpoint.model.id} and its like, {line}")

    def geometry() -> None:
        row, spectrum = _geometry(checkpoint, held["model"], len(tokenizer))
        row["files_sha256"] = files_sha256
        with suppress(UserError):  # Its W can be measured all the same; its evaluations say what is missing.
            row["tokenizer_sha256"] = sha256(*plain(tokenizer, checkpoint.id))
        measures_table.write(store, checkpoint.id, [], [_spectrum_row(checkpoint.step, spectrum)], add=True)
        store.write_table(store.revision_file(checkpoint.id), [row], REVISIONS)
        timed(LOAD, seconds_to_load)

    def measure() -> None:
        started = time.monotonic()
        corpus = own(obtain(suite.corpus.name, work.fingerprint, store))
        rows_of_measure = _measured(checkpoint, held["model"], corpus, suite)
        # Of what was asked for before nothing stays, and the singular values of W do.
        store.delete(store.measures_file(checkpoint.id))
        measures_table.write(store, checkpoint.id, rows_of_measure, [], add=True)
        store.write_table(store.evaluation_file(checkpoint.id, MEASURE, suite.measure_identity), [], EVALUATIONS)
        timed(MEASURE, time.monotonic() - started)

    # A task may change the model: fine-tuning does, and so may one's own and one that fails. The next has another.
    held = {"model": model}

    def evaluate(one: Evaluation) -> None:
        if "model" not in held:
            held["model"] = load_model(checkpoint.id, folder, device)[0]
        model = held.pop("model")
        _evaluate(one, model)
        if one.task in TASKS and not isinstance(one, FineTuning):
            held["model"] = model

    def _evaluate(one: Evaluation, model: LoadedModel) -> None:
        from raysweep.evaluation.run import rows as rows_of
        from raysweep.evaluation.task import Subject

        started = time.monotonic()
        _check_length(model, suite.sequence_length)
        if getattr(one, "layers", "blocks") != "blocks" and model.tied:
            raise UserError(f"{checkpoint.id}: its unembedding is its embedding too: only blocks can be quantized")
        corpus = own(obtain(suite.corpus.name, work.fingerprint, store))
        short(one.shortfalls(corpus, suite.sequence_length))
        built = prepared_text(one, suite.corpus, store)
        text = None if built is None else own(built)
        if text is not None:
            one.check_text(text, suite.sequence_length)
            short(one.text_shortfalls(text, suite.sequence_length))
        directory = store.evaluation_directory(checkpoint.id, one.label, one.identity)
        subject = Subject(cell, model, corpus, store, directory, gpus or 1.0, text, model.shape["parameters"])
        found = rows_of(checkpoint.id, one, subject)
        found += _in_bits(found, one, corpus, text, suite.sequence_length)
        timed(one.label, time.monotonic() - started)
        store.write_table(store.evaluation_file(checkpoint.id, one.label, one.identity), found, EVALUATIONS)
        if isinstance(one, FineTuning):
            # Three times the model: of a thousand checkpoints nobody has room for that.
            store.delete_directory(directory)

    stages: list[tuple[str, Callable[[], None]]] = []
    if LOAD in todo:
        stages.append((LOAD, geometry))
    if MEASURE in todo:
        stages.append((MEASURE, measure))
    for one in suite.evaluations:
        if one.label in todo:
            stages.append((one.label, lambda one=one: evaluate(one)))  # type: ignore[misc]
    return stages


def _check_table(checkpoint: Checkpoint, model: LoadedModel, say: Callable[[str], None]) -> None:
    """Raise `UserError` where the suite's table says of a model what its files do not; of its parameters say so."""
    given = checkpoint.model.settings
    shape = {**model.shape, "vocabulary": len(model.unembedding)}
    for name in ("width", "depth", "heads", "vocabulary"):
        said, there = given.get(name), shape[name]
        if said is not None and there and said != there:
            raise UserError(
                f"the table says of {checkpoint.model.id} {name} {said:g}, and {checkpoint.model.repository} at "
                f"{checkpoint.revision} has {there:,}: correct the table, or name another repository"
            )
    said = given.get("parameters")
    if isinstance(said, int | float) and abs(said / model.shape["parameters"] - 1) > _PARAMETERS:
        say(
            f"{checkpoint.model.id}: the table says {said:,.0f} parameters, and {model.shape['parameters']:,} were counted "
            "(without the input embedding, where it is not W too); the table's number is used"
        )


def _as_cell(model: LoadedModel, suite: Suite) -> Cell:
    """The suite's stand-in cell with the model's width and depth, from which follows how much fits in one pass."""
    config = model.loaded.config.get_text_config()
    width = model.shape["width"]
    # What has an odd width, or heads that do not divide it, fits as well.
    size = {"width": width + width % 2, "depth": model.shape["depth"] or 1, "heads": 1}
    inner = int(getattr(config, "intermediate_size", 0) or getattr(config, "mlp_hidden_size", 0) or 4 * width)
    mlp_ratio = max(1, min(64, 2 * inner // width))
    fields = suite.stand_in.model_dump() | {
        "size": size, "batch_size": 256, "tokens": 256 * suite.sequence_length, "mlp_ratio": mlp_ratio,
    }  # fmt: skip
    return Cell.model_validate(fields)


def _check_length(model: LoadedModel, length: int) -> None:
    """Raise `UserError` where a model does not take so many tokens at once."""
    from raysweep.exchange.text_loss import positions

    most = positions(model.loaded)
    needs = length + (model.begin is not None)
    if most is not None and needs > most:
        raise UserError(
            f"{model.name} takes {most:,} tokens at once, its begin-of-text among them, and sequence_length {length:,} asks "
            f"for {needs:,}: lower sequence_length to {most - (model.begin is not None):,} for all models, or leave this "
            "one out"
        )


def _geometry(checkpoint: Checkpoint, model: LoadedModel, entries: int) -> tuple[dict[str, Any], torch.Tensor]:
    """The row of a checkpoint, and the singular values of its W."""
    from importlib.metadata import version

    from raysweep.model.geometry import measure, measure_with_spectrum

    weight = model.unembedding
    values, spectrum = measure_with_spectrum(weight)
    # Rows behind the tokenizer's entries are never a target, and stay near where they began.
    of_entries = measure(weight[:entries]) if entries < len(weight) else values
    about = {
        "id": checkpoint.id, "model": checkpoint.model.id, "repository": checkpoint.model.repository,
        "revision": checkpoint.revision, "commit": checkpoint.commit, "step": checkpoint.step,
        "tokens": checkpoint.model.tokens(checkpoint.step), "architecture": type(model.loaded).__name__,
        **model.shape, "rows_W": weight.shape[0], "entries": entries,
        "tied": model.tied, "product": model.product,
        **{f"{name}_W": values[name] for name in METRICS}, **{f"{name}_entries": of_entries[name] for name in METRICS},
        **{f"{name}_version": version(name) for name in ("raysweep", "torch", "transformers")},
    }  # fmt: skip
    return about, spectrum


def _spectrum_row(step: int, spectrum: torch.Tensor) -> dict[str, Any]:
    return {"step": step, "matrix": UNEMBEDDING, "settings": "", "singular_values": spectrum.cpu().tolist()}


def _measured(checkpoint: Checkpoint, model: LoadedModel, corpus: Any, suite: Suite) -> list[dict[str, Any]]:
    """The rows of what `measure` asks for, under `schemas.MEASURES` without the cell."""
    import torch

    from raysweep.evaluation.in_distribution import SHARD
    from raysweep.exchange.hidden_states import states_of
    from raysweep.exchange.model_matrices import measured

    states = {}
    if sequences := suite.hidden_sequences:
        _check_length(model, suite.sequence_length)
        shard = corpus.sequences(SHARD, suite.sequence_length)
        if len(shard) < sequences:
            raise UserError(
                f"measure asks for hidden states of {sequences:,} sequences of {suite.sequence_length:,} tokens, and the "
                f"text has {len(shard):,} under this tokenizer: raise text_bytes, or set sequences to no more"
            )
        ids = torch.from_numpy(shard.read(shard.sample(sequences))[:, :-1])
        states = states_of(checkpoint.id, model.loaded, ids, model.begin)
    return [
        {
            "step": checkpoint.step, "matrix": row["matrix"], "metric": row["metric"], "value": row["value"],
            "unit": OF_ONE[row["metric"]], "reason": None,
            "settings": f"{sequences} sequences" if row["matrix"].startswith(HIDDEN) else "",
        }
        for row in measured(checkpoint.id, model.loaded, states, suite.measure)
    ]  # fmt: skip


def _in_bits(
    rows: list[dict[str, Any]], one: Evaluation, corpus: TokenizedCorpus, text: TokenizedCorpus | None, length: int
) -> list[dict[str, Any]]:
    """The losses of tasks that have them for each token alone, for each byte of text. (Cells share a tokenizer.)"""
    import math

    from raysweep.evaluation.in_distribution import SHARD, Settings

    if not isinstance(one, Settings | FineTuning):
        return []

    def bits_per_nat(of: TokenizedCorpus, shard: str) -> float:
        sequences = of.sequences(shard, length)
        targets = sequences.read(sequences.sample(one.sequences))[:, 1:]
        return targets.size / (math.log(2) * int(of.token_bytes[targets].sum()))

    factors = {name: bits_per_nat(corpus, SHARD) for name in ("in_distribution", "forgetting")}
    if isinstance(one, FineTuning):
        factors["finetune"] = bits_per_nat(text or corpus, f"{one.subject_shards}/test")
    return [
        row | {"metric": name, "value": row["value"] * factor, "unit": "bits per byte"}
        for row in rows
        if (name := per_byte(row["metric"]))
        for of, factor in factors.items()
        if name.startswith(of)
    ]
