"""A rehearsal: one small cell goes through every step with a few hundred tokens, before money is spent.

Small files in the same layout replace the published data sets; folders and other data sets give their first documents;
the model, the tokenizer, the fields that are read and the evaluations are the search space's own. Nothing is kept.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysweep.cluster.environment import preserved_environment
from raysweep.corpora import layouts, own_source
from raysweep.corpora.blocks import complaint
from raysweep.corpora.files import Document, read
from raysweep.corpora.source_files import MIRROR, opened, reading, resolve
from raysweep.errors import UserError
from raysweep.space.cell import Cell
from raysweep.space.corpus import Corpus, Source
from raysweep.space.measure import HIDDEN, Measurement
from raysweep.space.resources import Resources
from raysweep.space.space import Space
from raysweep.sweep.events import Event
from raysweep.sweep.runner import SweepResult, run

SEQUENCE, BATCH, STEPS = 64, 2, 4
DOCUMENTS = 300


def rehearse(
    space: Space, on_event: Callable[[Event], None] | None = None, stop: threading.Event | None = None
) -> SweepResult:
    """Go through the smallest cell of `space` in a store that is thrown away. Raises what `run` raises."""
    with tempfile.TemporaryDirectory(prefix="raysweep-rehearsal-") as name, preserved_environment():
        folder = Path(name)
        cell = smallest_cell(space)
        short = _short(space, cell, folder)
        layouts.write(folder / "hub")
        os.environ |= {MIRROR: str(folder / "hub"), "RAYSWEEP_CACHE": str(folder / "cache"), "RAY_ADDRESS": "local"}
        result = run(short, folder / "store", on_event, stop)
        _ = result.table  # While the store is there.
        return result


def smallest_cell(space: Space) -> Cell:
    """The cell that takes the fewest FLOP."""
    return min(space.cells, key=lambda cell: cell.flops)


def _short(space: Space, cell: Cell, folder: Path) -> Space:
    """The space with that one cell, everything in it as short as can be; the folder gets excerpts of its text."""
    changes = {
        "corpus": _corpus(cell.corpus, folder), "sequence_length": SEQUENCE, "batch_size": BATCH,
        "tokens": STEPS * BATCH * SEQUENCE,
        "validation_sequences": 2,
    }  # fmt: skip
    few = {
        "sequences": 2, "calibration_sequences": 2, "tokens": STEPS * BATCH * SEQUENCE, "batch_size": BATCH, "questions": 2,
    }  # fmt: skip
    evaluations = []
    for evaluation in space.evaluations_of(cell):
        shorter: dict[str, Any] = {name: value for name, value in few.items() if name in type(evaluation).model_fields}
        text = evaluation.text
        if text is not None and text.role != "questions":
            shorter["on"] = _excerpts(text.on, folder, text.name)
        evaluations.append(evaluation.model_copy(update=shorter))
    return Space(
        name=f"{space.name[:80]}-rehearsal",  # Of 100 characters at most.
        cells=(cell.model_copy(update=changes),),
        evaluations=tuple(evaluations),
        measure=tuple(_shorter(one, cell) for one in space.measure),
        code=space.code,
        resources=Resources(),
    )


def _shorter(measurement: Measurement, cell: Cell) -> Measurement:
    """The same matrices, of two sequences."""
    hidden = any(name.startswith(HIDDEN) for name in measurement.names(cell.size))
    return measurement.model_copy(update={"sequences": 2} if hidden else {})


def _corpus(corpus: Corpus, folder: Path) -> Corpus:
    """The corpus with its first documents for all but the published data sets, which have their stand-ins."""
    if corpus.name == "installed":
        return corpus.model_copy(update={"fraction": 0.02})
    sources = {role: _excerpts(each, folder, role) for role, each in corpus.sources().items()}
    return corpus.model_copy(update={"fraction": 1.0, **sources})


def _excerpts(sources: tuple[Source, ...], folder: Path, name: str) -> tuple[Source, ...]:
    return tuple(
        # Of the files that it chooses there are no stand-ins, but of the split.
        source.model_copy(update={"files": ()}) if source.preset else _excerpt(source, folder / f"{name}-{i}")
        for i, source in enumerate(sources)
    )


def _excerpt(source: Source, folder: Path) -> Source:
    """The first documents of a source as a folder with the same fields."""
    folder.mkdir()
    if source.function is not None:
        lines = itertools.islice(own_source.documents(source.function), DOCUMENTS)
        (folder / "documents.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return source.model_copy(update={"function": None, "folder": str(folder)})
    resolved = resolve(source)
    rows: list[str] = []
    for file in resolved.files:
        with reading(resolved.name, file.name), opened(file, stream=True) as content:
            documents = read(content, file.name, resolved.text, resolved.domain)
            for document in itertools.islice(documents, DOCUMENTS - len(rows)):
                if isinstance(document, Document):
                    rows.append(json.dumps({"text": document.text, "domain": document.domain}))
                elif not source.skip_malformed:
                    raise UserError(complaint(resolved.name, file.name, document.place, document.reason))
        if len(rows) >= DOCUMENTS:
            break
    (folder / f"{source.name.replace('/', '-')}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return source.model_copy(
        update={
            "hub": None, "revision": None, "folder": str(folder), "files": (), "text": None,
            "domain": "domain" if resolved.domain else None,
        }
    )  # fmt: skip
