"""The columns of results that the paper names, and what columns are called in a sentence."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from raysweep.space.measure import column as measured_column
from raysweep.space.metrics import METRICS
from raysweep.text import abbreviate

RANK, COSINE, ISOTROPY = "effective_rank_W", "cosine_W", "isotropy_W"

PAPER_TASKS = {
    "in_distribution_loss": "in_distribution",
    "out_of_distribution_loss": "out_of_distribution",
    "quantized_4bit_in_distribution_loss": "quantized_in_distribution",
    "quantized_4bit_out_of_distribution_loss": "quantized_out_of_distribution",
    "finetune_python_loss": "finetune_starcoder_python",
    "finetune_math_loss": "finetune_open_web_math",
    "forgetting_python_loss": "forgetting_starcoder_python",
    "forgetting_math_loss": "forgetting_open_web_math",
}
"""Column -> the task's name in the paper's Tables 2-9, in their order. GPTQ's bits are open in the paper; 4 is taken."""

PAPER_METRICS = ("effective_rank_W", "cosine_W", "isotropy_W", "effective_rank_H", "cosine_H")

INTERVENTIONS = ("effective_rank_target", "effective_rank_penalty", "spectral_norm_cap")
"""The settings that act on W directly."""

BASE_RATE = "base_learning_rate"
"""The peak learning rate before the factor: a function of the size unless the search space sets it."""


def column_of_setting(setting: str) -> str:
    """The column of a setting of a search space: that of its learning rate is the one before the factor."""
    return BASE_RATE if setting == "learning_rate" else setting


def of_domain(column: str) -> bool:
    """Whether a column is of one domain of a task, whose name may be anything."""
    if column.startswith(("out_of_distribution_loss_", "out_of_distribution_bits_per_byte_")):
        return True
    return re.search(r"_(loss|bits_per_byte|accuracy|overlap)_(?!(change|before)$)", column) is not None


_LAYER = re.compile(r"(?P<before>(?:gradients\.)?(?:blocks|hidden))\.(?P<layer>\d+|final)(?P<after>.*)")


def place(matrix: str) -> tuple[str, str] | None:
    """The part of a model that a matrix is of, and its layer: `blocks.3.mlp.up` -> (`blocks.*.mlp.up`, `3`).

    None where it is of the whole model, such as the unembedding.
    """
    found = _LAYER.fullmatch(matrix)
    return None if found is None else (f"{found['before']}.*{found['after']}", found["layer"])


def of_whole_model(measures: pd.DataFrame) -> list[str]:
    """The columns of results that are of no layer: they take part in regressions and figures as the paper's metrics do.

    The geometry of the unembedding is left out, which results have as `effective_rank_W` and its like.
    """
    pairs = measures[["metric", "matrix"]].drop_duplicates().itertuples(index=False)
    return [
        measured_column(metric, matrix)
        for metric, matrix in pairs
        if place(matrix) is None and not (matrix == "unembedding" and metric in METRICS)
    ]


def words(name: str) -> str:
    """`effective_rank_W` -> `effective rank of W`, `forgetting_math_loss` -> what was measured and when."""
    for suffix in ("W", "H"):
        if name.endswith(f"_{suffix}"):
            return f"{words(name[:-2])} of {suffix}"
    if tuned := re.fullmatch(r"(finetune|forgetting)_(\w+)_loss(_change)?", name):
        task, subject, change = tuned.groups()
        subject = {"python": "Python"}.get(subject, words(subject))
        loss = "in-distribution loss" if task == "forgetting" else f"{subject} loss"
        return f"change of {loss} by fine-tuning on {subject}" if change else f"{loss} after fine-tuning on {subject}"
    text = name.replace("in_distribution", "in-distribution").replace("out_of_distribution", "out-of-distribution")
    return re.sub(r"(\d)bit", r"\1-bit", text).replace("_", " ")


def column_of(task: str) -> str:
    """The column of a task, whether a sweep has it or not."""
    columns = {name: column for column, name in PAPER_TASKS.items()}
    return columns.get(task, task if task.endswith(("_accuracy", "_bits_per_byte")) else f"{task}_loss")


def outcome(task: str) -> str:
    """What a task's loss is called in a sentence: `quantized_in_distribution` -> `quantized 4-bit in-distribution loss`."""
    return words(column_of(task))


def capital(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def short(value: object) -> str:
    """A setting's value for a label: `32B`, `0.1`."""
    if not isinstance(value, int | float | np.number):
        return str(value)
    return abbreviate(float(value), letters="kMB", plain="g", least=1e4)
