"""A search-space file -> a validated `Space`; its cells are read by `raysweep.space.read_cells`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from raysweep.errors import UserError, allowed
from raysweep.space.cell import Cell
from raysweep.space.evaluations import OWN, Evaluation, settings_class
from raysweep.space.explain import show
from raysweep.space.hypotheses import Hypotheses, load_hypotheses
from raysweep.space.measure import END, Measurement, check_metric, wanted
from raysweep.space.plugins import add_path
from raysweep.space.read_cells import CellsReader, Reader
from raysweep.space.resources import Resources
from raysweep.space.space import Space
from raysweep.space.yaml_file import YamlFile

log = logging.getLogger("raysweep")

_KEYS = (
    "name", "base", "cross", "ablate", "sample", "over", "where", "evaluations", "code", "measure", "resources", "loggers",
    "hypotheses",
)  # fmt: skip

# Of a file that is no search space (`raysweep.suites`).
SUITE = "suite"

_Path = tuple[str | int, ...]


def load(path: str | Path) -> Space:
    """Read and validate a search-space file.

    Parameters
    ----------
    path
        A YAML file; README.md shows one, `raysweep.Cell` has every field.

    Returns
    -------
    Space
        The name, the cells in the file's order, the evaluations, the resources and the loggers.

    Raises
    ------
    UserError
        One line with the file, the line, the key, what was found and what is allowed.

    Examples
    --------
    >>> space = load("search_spaces/demo.yaml")
    >>> space.name, len(space.cells)
    ('demo', 16)
    """
    return SpaceReader(YamlFile(Path(path))).space()


def load_to_read(path: Path) -> Space:
    """As `load`, for what only reads results: functions of one's own that are not here are left out, with a word."""
    return SpaceReader(YamlFile(path), tolerant=True).space()


def load_with_count(path: Path, count: int, code: bool = True) -> Space:
    """As `load_to_read`, or `load_published` without `code`, with another number of sampled points."""
    file = YamlFile(path)
    file.content["sample"]["count"] = count
    return SpaceReader(file, tolerant=True, code=code).space()


def load_published(path: Path) -> Space:
    """The search space of published results, as `load_to_read` has it; code that lies beside it is not imported."""
    return SpaceReader(YamlFile(path), tolerant=True, code=False).space()


def hypotheses_file(space_file: Path) -> Path | None:
    """The file of hypotheses that a search-space file names, which has been read before; None where it names none."""
    name = YamlFile(space_file).content.get("hypotheses")
    return None if name is None else space_file.parent / name


class SpaceReader(Reader):
    """Turns the content of one file into a space, and what is wrong with it into an error with its place."""

    def __init__(self, file: YamlFile, tolerant: bool = False, code: bool = True) -> None:
        super().__init__(file)
        self._tolerant, self._with_code = tolerant, code

    def space(self) -> Space:
        content = self.mapping(self.file.content, ())
        if SUITE in content:
            raise self.file.error(
                (SUITE,),
                "this file asks about models that others have trained: plan, run, stop, status, results and analyze take "
                "it, and this command does not (docs/published-models.md)",
            )
        for key in content:
            if key not in _KEYS:
                raise self.file.error((key,), f"unknown key; {allowed(key, _KEYS)}")
        for key in ("name", "base"):
            if key not in content:
                raise self.file.error((key,), "missing")
        values = {key: content[key] for key in ("name", "loggers") if content.get(key) is not None}
        # Before what may name a function in it.
        try:
            values["code"] = self.code(content.get("code")) if self._with_code else ()
        except UserError as error:
            if not self._tolerant:
                raise
            log.warning("%s", error)
        cells, values["design"] = CellsReader(self.file).cells(content)
        evaluations = self.evaluations(content.get("evaluations"))
        resources = self.validated(
            Resources, {} if (given := content.get("resources")) is None else given, ("resources",)
        )
        measure = content.get("measure")
        values["measure"] = self._measure(self._importable(measure) if self._tolerant else measure, cells)
        values["hypotheses"] = self._hypotheses(content.get("hypotheses"))
        whole = {**values, "cells": cells, "evaluations": evaluations, "resources": resources}
        space: Space = self.validated(Space, whole, ())
        self._check_workers(space)
        self._check_kept(space)
        self.check_evaluations(space.evaluations, space.cells)
        return space

    def evaluations(self, content: Any) -> tuple[Evaluation, ...]:
        if content is None:
            return ()
        if not isinstance(content, list):
            raise self.file.error(("evaluations",), f"a list is needed, not {show(content)}")
        evaluations = []
        for i, item in enumerate(content):
            try:
                kind = settings_class(item)
            except ValueError as error:
                raise self.file.error(("evaluations", i), str(error)) from None
            values = {"task": item} if isinstance(item, str) else item
            try:
                evaluations.append(self.validated(kind, values, ("evaluations", i)))
            except UserError as error:
                if not self._tolerant or kind.__module__ != OWN:
                    raise
                log.warning("%s; its numbers are left out", error)
        return tuple(evaluations)

    def code(self, content: Any) -> tuple[str, ...]:
        """The folders that `code` names, which this process can import from here on."""
        if content is None:
            return ()
        if not isinstance(content, list) or not all(isinstance(name, str) and name for name in content):
            raise self.file.error(("code",), f"a list of folders beside this file is needed, not {show(content)}")
        folders = [(self.file.path.parent / name).resolve() for name in content]
        for i, folder in enumerate(folders):
            if not folder.is_dir() or not folder.name.isidentifier():
                raise self.file.error(("code", i), f"{folder} is not a folder that Python can import as a package")
            add_path(folder.parent)
        return tuple(map(str, folders))

    def _importable(self, content: Any) -> Any:
        """`measure` without its author's own functions that are not here; each is named."""

        def usable(name: Any) -> bool:
            if not isinstance(name, str):
                return True  # For the check of types to refuse.
            try:
                check_metric(name)
            except ValueError as error:
                log.warning("%s: measure: %s; its numbers are left out", self.file.path, error)
                return False
            return True

        kept = []
        for item in content if isinstance(content, list) else ():
            metrics = item.get("metrics") if isinstance(item, dict) else None
            if not isinstance(metrics, list) or not metrics:
                kept.append(item)
            elif left := [name for name in metrics if usable(name)]:
                kept.append(item | {"metrics": left})
        return kept if isinstance(content, list) else content

    def _measure(self, content: Any, cells: tuple[Cell, ...]) -> tuple[Measurement, ...]:
        if content is None:
            return ()
        if not isinstance(content, list):
            raise self.file.error(("measure",), f"a list of {{of: ..., metrics: [...]}} is needed, not {show(content)}")
        measure: list[Measurement] = []
        for i, item in enumerate(content):
            measure.append(self.validated(Measurement, item, ("measure", i)))
            # Of each size, MLP and length one cell: nothing else counts.
            for cell in {(cell.size, cell.sequence_length, cell.mlp_ratio): cell for cell in cells}.values():
                try:
                    wanted(measure, cell)
                except ValueError as error:
                    name, _, message = str(error).partition(": ")
                    raise self.file.error(("measure", i, name), message) from None
        return tuple(measure)

    def _hypotheses(self, name: Any) -> Hypotheses | None:
        if name is None:
            return None
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".yaml", ".yml")):
            raise self.file.error(
                ("hypotheses",),
                f"the name of a .yaml file beside this one is needed, not {show(name)}: it is published too",
            )
        if name in ("space.yaml", self.file.path.name):
            raise self.file.error(
                ("hypotheses",), f"{name} is what a search space is called: call the hypotheses otherwise"
            )
        return load_hypotheses(self.file.path.parent / name)

    def _check_workers(self, space: Space) -> None:
        workers = space.resources.train.workers
        for cell in space.cells:
            if cell.batch_size % workers:
                raise self.file.error(
                    ("resources", "train", "workers"),
                    f"batch_size {cell.batch_size} of cell {cell.id} cannot be split evenly over {workers} workers",
                )

    def _check_kept(self, space: Space) -> None:
        """What is held against the end of training needs the checkpoints of before."""
        for i, one in enumerate(space.measure):
            early = one.when is None or min(one.when) < 1
            if one.against == END and early and space.resources.train.keep_checkpoints != "all":
                raise self.file.error(
                    ("measure", i, "against"),
                    f"{END} is known at the end only, and is measured from checkpoints by `raysweep measure`: set "
                    "resources.train.keep_checkpoints: all",
                )

    def check_evaluations(self, evaluations: tuple[Evaluation, ...], cells: tuple[Cell, ...]) -> None:
        """Raise `UserError` where two evaluations share a name, or one does not fit the cells."""
        for i, evaluation in enumerate(evaluations):
            where = ("evaluations", i)
            if evaluation.label in [earlier.label for earlier in evaluations[:i]]:
                raise self.file.error(
                    (*where, "task"), f"{evaluation.label} is listed twice: give one another name, if it has one"
                )
            earlier_columns = [name for earlier in evaluations[:i] for name in earlier.columns]
            if twice := next((name for name in evaluation.columns if name in earlier_columns), None):
                raise self.file.error(
                    where, f"an earlier evaluation has columns that begin with {twice}: give one another name"
                )
            fitting = [cell for cell in cells if evaluation.fits(cell)]
            if not fitting:
                names = " and ".join(dict.fromkeys(cell.corpus.name for cell in cells))
                raise self.file.error(
                    where, f"the corpus {names} has no {evaluation.corpus_role}: give it sources, or drop the task"
                )
            try:
                evaluation.check_cells(fitting)
            except ValueError as error:
                name, _, message = str(error).partition(" ")
                raise self.file.error((*where, name), f"{message}") from None
