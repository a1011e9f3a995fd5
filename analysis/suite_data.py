"""The tables of a suite of published models as what the analysis takes of a sweep."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from raysweep.analysis.sweep_data import SweepData, from_tables
from raysweep.errors import UserError
from raysweep.space.hypotheses import paper_hypotheses
from raysweep.space.metrics import per_byte
from raysweep.store import Store, declarations
from raysweep.store.schemas import PLAN
from raysweep.suites.read import LoadedSuite
from raysweep.suites.results import FROM_FILES, IN_BITS, results, trajectories


def load(store: Store, loaded: LoadedSuite) -> SweepData:
    """A suite from its store; models whose last checkpoint is not measured are left out.

    A setting that is not known of any model is no column. Raises `UserError` where no model is measured.
    """
    table = results(loaded, store)
    if not len(table):
        raise UserError(f"no model of {loaded.name} is measured in {store.location}: `raysweep run` measures them")
    cells = table.to_pandas()
    units = {f.name: f.metadata[b"unit"].decode() for f in table.schema if f.metadata and b"unit" in f.metadata}
    rows, measures = trajectories(loaded, store)
    of_task = {one.task: getattr(one, "sequences", 0) for one in loaded.suite.evaluations}
    same_text = of_task.get("quantized") == of_task.get("in_distribution")
    cells, protocol = _comparable(cells, units, same_text)
    units["validation_loss"] = "bits per byte" if protocol else "nats per token"
    if protocol:
        rows["validation_loss"] = rows[IN_BITS]
    rows = rows.drop(columns=IN_BITS)
    settings = [
        name
        for name in ("id", "size", *loaded.table.settings, *FROM_FILES, "tokens", "flops")
        if name in cells and cells[name].notna().any()
    ]
    cells = as_cells(cells)
    hypotheses = loaded.hypotheses or paper_hypotheses()
    declared = declarations.read(store, loaded.name)
    models = cells.reindex(columns=["id", "repository", "revision", "commit", "checkpoints", "status", "unknown"])
    models = models.assign(commit=models["commit"].str[:12]).rename(columns={"id": "model", "unknown": "not known"})
    facts = pd.DataFrame([{"setting": name} | fact.model_dump() for name, fact in loaded.table.facts.items()])
    stand_in = [loaded.suite.stand_in]
    steps = {one.label: one.training_steps(stand_in) for one in loaded.suite.evaluations}
    return from_tables(
        loaded.name,
        cells,
        rows,
        len(loaded.models),
        measures=measures,
        settings=tuple(dict.fromkeys(settings)),
        units=units,
        models=models,
        facts=facts,
        protocols=protocol | {one.label: one.protocol(stand_in) for one in loaded.suite.evaluations},
        fine_tuning_steps={task: count for task, count in steps.items() if count},
        hypotheses=hypotheses,
        declared=declarations.said(declared, hypotheses.digest) if declared or loaded.hypotheses else "",
    )


def as_cells(models: pd.DataFrame) -> pd.DataFrame:
    """Models with every column that the analysis may ask of a cell: empty where nobody published it."""
    known = models.drop(columns=[name for name in models if models[name].isna().all()])
    of_cells = {field.name: None if pa.types.is_string(field.type) else float("nan") for field in PLAN}
    lacking = {name: value for name, value in of_cells.items() if name not in known}
    return known.assign(**lacking, corpus_fingerprint="")


def _comparable(
    cells: pd.DataFrame, units: dict[str, str], same_text: bool = True
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The models with losses that compare, and what was done for that, in words.

    A loss for each token is of other tokens where tokenizers differ. There every loss is taken for each byte, under its
    usual name; those of which only the one for each token is known are left out. `same_text` says whether the quantized
    losses are of as many sequences as the in-distribution loss.
    """
    if cells["tokenizer_sha256"].nunique() <= 1:
        return cells, {}
    losses = [name for name in cells if per_byte(name) and units.get(name, "").startswith("nats per token")]
    kept, left_out = {}, []
    per_token, bits = (cells.get(f"in_distribution_{kind}") for kind in ("loss", "bits_per_byte"))
    for name in losses:
        by_byte = per_byte(name)
        if by_byte in cells:
            kept[name] = cells[by_byte]
        elif same_text and "_in_distribution_loss" in name and per_token is not None and bits is not None:
            # Of the same text: as many tokens for each byte.
            kept[name] = cells[name] * bits / per_token
        else:
            left_out.append(name)
    units |= dict.fromkeys(kept, "bits per byte")
    what = f"in bits per byte, since the models have {cells['tokenizer_sha256'].nunique()} tokenizers"
    if left_out:
        what += f"; left out, being known for each token only: {', '.join(left_out)}"
    return cells.drop(columns=left_out).assign(**kept), {"losses": what}
