"""Measures what a search space asks for of cells that are trained, from their checkpoints; trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.cluster.capacity import autoscaler_limits, autoscaling_configuration, max_concurrent_cells, nodes
from raysweep.cluster.connection import connected
from raysweep.cluster.environment import preserved_environment
from raysweep.corpora.progress import CorpusProgress
from raysweep.corpora.shared import upload
from raysweep.errors import UserError
from raysweep.space.cell import Cell
from raysweep.space.corpus import Corpus
from raysweep.space.measure import END, Measurement, wanted
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store import measures as table
from raysweep.store.checkpoints import names, step_of
from raysweep.store.lock import Lock
from raysweep.store.results import finished
from raysweep.store.schemas import TIMINGS
from raysweep.store.store import TRAIN
from raysweep.sweep.failures import describe, innermost_cause
from raysweep.sweep.prepare_corpora import opened_corpus

if TYPE_CHECKING:
    import torch

    from raysweep.model.language_model import LanguageModel

Progress = Callable[[str, float, float, str], None]


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    cells: int
    """How many are trained."""
    values: int
    """Numbers that were measured now."""
    missing: dict[str, int]
    """Cell -> reports of which something is still missing, since the store has no checkpoint of them, or a damaged one."""
    errors: dict[str, str]
    """Cell -> why it could not be measured."""
    failures: dict[str, str] = field(default_factory=dict)
    """The user's own metrics that failed -> the first failure of each."""


def measure(
    space: Space,
    store: str | Path | Store,
    measurements: Iterable[Measurement] | None = None,
    progress: Progress = lambda part, done, total, detail: None,
) -> Measured:
    """Measure what the store lacks of `measure`, from the checkpoints that it has, as Ray tasks.

    The numbers are those that training would have written (on CPUs to the last bit), under `resources.train`. A store keeps
    the last two checkpoints of a cell unless `keep_checkpoints` there says otherwise, so that most reports of a cell trained
    before cannot be measured any more: `missing` counts them.

    Parameters
    ----------
    space
        Which cells, and by default what.
    store
        The folder or URI of the results.
    measurements
        What, in place of the search space's own.
    progress
        Called with what is done, how much of it, of how much, and a detail.

    Returns
    -------
    Measured
        How many numbers were measured, and what is missing.

    Raises
    ------
    UserError
        Where no cell is trained, nothing is asked for, or a measurement does not fit the cells.
    KeyboardInterrupt
        On Ctrl-C. The cells that were measured stay so.

    Examples
    --------
    >>> space = raysweep.load("search_spaces/demo.yaml")
    >>> wanted = raysweep.Measurement(of="blocks.*.mlp.up", metrics=["stable_rank"])
    >>> raysweep.measure(space, "runs/demo", [wanted]).errors          # doctest: +SKIP
    {}
    """
    chosen = list(space.measure if measurements is None else measurements)
    store = Store(store.location if isinstance(store, Store) else str(store))
    rows = finished(store)
    cells = [cell for cell in space.cells if cell.id in rows and rows[cell.id]["status"] == "done"]
    if not cells:
        raise UserError(f"no cell of {space.name} is trained in {store.location}: `raysweep run` trains them")
    if not chosen:
        raise UserError(
            f"{space.name} has no `measure`: add it to the search space, or say what: --of 'blocks.*.mlp.up'"
        )
    missing: dict[str, int] = {}
    jobs: list[tuple[Cell, list[int]]] = []
    corpora: set[Corpus] = set()
    with Lock(store, dict):
        for done, cell in enumerate(cells):
            progress("looking for what is missing", done, len(cells), "")
            try:
                lacking = table.lacking(cell, wanted(chosen, cell), store)
            except ValueError as error:
                raise UserError(f"{cell.id}: {error}") from None
            steps = table.steps_of(lacking)
            kept = {step_of(name) for name in names(store, store.run_directory(cell.id))}
            if steps & kept:
                jobs.append((cell, sorted(steps & kept)))
                if any(one.needs_text for one in lacking):
                    corpora.add(cell.corpus)
            if steps - kept:
                missing[cell.id] = len(steps - kept)
        progress("looking for what is missing", len(cells), len(cells), "")
        values = 0
        errors: dict[str, str] = {}
        failures: dict[str, str] = {}
        if jobs:
            opened = [opened_corpus(corpus, store, _shown(progress)) for corpus in corpora]
            fingerprints = {cell: str(row["corpus_fingerprint"]) for cell, row in rows.items()}
            with preserved_environment(), connected(code=space.code) as connection:
                if connection.shared:
                    for corpus in opened:
                        upload(corpus, store, _shown(progress))
                _check_capacity(space, connection.shared)
                values, unreadable, errors, failures = _by_ray(jobs, chosen, space, store, fingerprints, progress)
            for cell_id, damaged in unreadable.items():
                missing[cell_id] = missing.get(cell_id, 0) + len(damaged)
    return Measured(len(cells), values, missing, errors, failures)


def _shown(progress: Progress) -> Callable[[CorpusProgress], None]:
    return lambda of_corpus: progress(of_corpus.phase, of_corpus.done, of_corpus.total, of_corpus.corpus)


def _check_capacity(space: Space, shared: bool) -> None:
    """Raise `UserError` where the cluster can never hold a task."""
    limits = autoscaler_limits(autoscaling_configuration()) if shared else None
    capacity = max_concurrent_cells(space, list(nodes().values()), limits)
    if capacity.why_none and not capacity.grows:
        raise UserError(f"{capacity.why_none}: add nodes, or lower resources.train in the search space")


def _by_ray(
    jobs: list[tuple[Cell, list[int]]], measurements: list[Measurement], space: Space, store: Store,
    fingerprints: dict[str, str], progress: Progress,
) -> tuple[int, dict[str, list[int]], dict[str, str], dict[str, str]]:  # fmt: skip
    """Run a task for each cell: how many numbers there are, damaged checkpoints, errors, and metrics that failed."""
    import ray

    from raysweep.sweep.same_code import code

    # As in training, so that the numbers are those of training.
    resources = space.resources.train
    task = ray.remote(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0, max_calls=1 if resources.gpus else 0
    )(measure_cell)
    settings, here = resources.model_dump(), code(measurements)
    left = {
        task.remote(cell, steps, measurements, store.location, fingerprints[cell.id], here, settings): cell.id
        for cell, steps in jobs
    }
    values, unreadable, errors = 0, {}, {}
    failures: dict[str, str] = {}
    while left:
        progress("measuring", len(jobs) - len(left), len(jobs), f"{values:,} numbers")
        for answer in ray.wait(list(left), timeout=1.0)[0]:
            cell = left.pop(answer)
            try:
                measured, damaged, failed = ray.get(answer)
                values += measured
                failures = failed | failures
                if damaged:
                    unreadable[cell] = damaged
            except Exception as error:
                errors[cell] = describe(innermost_cause(error))
    progress("measuring", len(jobs) - len(left), len(jobs), f"{values:,} numbers")
    return values, unreadable, errors, failures


def measure_cell(
    cell: Cell, steps: list[int], measurements: list[Measurement], location: str, fingerprint: str,
    code: dict[str, str], resources: dict[str, Any],
) -> tuple[int, list[int], dict[str, str]]:  # fmt: skip
    """The Ray task: what one cell lacks at these steps, from its checkpoints to its tables.

    How many numbers that is, the steps whose checkpoints are damaged, and the first failure of each metric. Raises
    `UserError` where the cell was trained on another kind of device, and hidden states or gradients would be of another
    precision.
    """
    import torch

    from raysweep.corpora.shared import obtain
    from raysweep.model.language_model import LanguageModel, gpu
    from raysweep.model.metrics import Matrix
    from raysweep.sweep.cell_tables import spectra_rows
    from raysweep.sweep.same_code import check_same_code
    from raysweep.training import checkpoint, own_metrics
    from raysweep.training.losses import fitting_micro_batch
    from raysweep.training.measure import Measures

    check_same_code(code)
    own_metrics.forget()  # Of another cell, in this process.
    torch.set_num_threads(resources["cpus"])
    store = Store(location, running=True)
    gpus = resources["gpus"]
    device = gpu(gpus, "resources.train.gpus") if gpus > 0 else torch.device("cpu")
    lacking = table.lacking(cell, wanted(measurements, cell), store)
    needs_text = any(one.needs_text for one in lacking)
    if needs_text:
        _check_device(cell, device.type, store)
    corpus = obtain(cell.corpus.name, fingerprint, store) if needs_text else None
    size = resources["micro_batch_size"] or fitting_micro_batch(cell, device, gpus or 1.0)
    end = _at_the_end(cell, store, device) if any(other == END for one in lacking for _, other in one.metrics) else None
    measures = Measures(cell, corpus, lacking, size, end)
    language_model = LanguageModel.of(cell, device)
    rows: list[dict[str, Any]] = []
    spectra: dict[str, torch.Tensor] = {}
    damaged, read = set(), set()
    for name in names(store, store.run_directory(cell.id)):
        step = step_of(name)
        if step not in steps:
            continue
        try:
            kept = checkpoint.read(store, f"{store.run_directory(cell.id)}/{name}", optimizer=False)
        except checkpoint.Damaged:
            damaged.add(step)
            continue
        read.add(step)
        language_model.olmo.load_state_dict(kept.model)
        more, singular_values = measures.at(step, language_model, Matrix(language_model.measured_unembedding))
        rows += more
        spectra |= singular_values
    table.write(store, cell.id, rows, spectra_rows(spectra), add=True)
    # A checkpoint that was cut off while it was written may lie beside a whole one of the same step.
    return sum(not table.failed(row) for row in rows), sorted(damaged - read), measures.failures


def _at_the_end(cell: Cell, store: Store, device: torch.device) -> LanguageModel:
    """The model that training ended with. Raises `UserError` where its weights are gone."""
    from raysweep.model.language_model import LanguageModel
    from raysweep.sweep.cell_tables import final_checkpoint

    final = final_checkpoint(cell, store)
    if final is None:
        raise UserError(
            f"its final weights are damaged or gone: `raysweep run` trains it again, or leave out against: {END}"
        )
    return LanguageModel.of(cell, device, final.model)


def _check_device(cell: Cell, device: str, store: Store) -> None:
    if cell.precision is not None:
        return
    timing = store.read_rows(store.timing_file(cell.id, TRAIN), TIMINGS)
    trained_on = timing[0]["device"] if timing else None
    if trained_on is not None and trained_on != device:
        raise UserError(
            f"it was trained on {trained_on}, and would be measured on {device}, in another precision, since it sets "
            f"none: set resources.train.gpus {'above 0' if trained_on == 'cuda' else 'to 0'}, or measure weights alone"
        )
