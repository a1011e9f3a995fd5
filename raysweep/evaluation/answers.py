"""Which answer of a question a model gives the most probability: what benchmarks and questions share.

The probability of an answer is that of its tokens after the context (zero-shot). What does not fit in the cell's sequence
length loses the beginning of its context, as in lm-evaluation-harness; a question with an answer that does not fit is left
out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.questions import COLUMNS, PREFIX, requests, sets
from raysweep.errors import UserError
from raysweep.evaluation.task import Metric
from raysweep.evaluation.with_text import MUCH
from raysweep.space.evaluations import Evaluation
from raysweep.space.fields import Count

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject

Rows = NDArray[np.int64]


class Asking(Evaluation):
    """A task that asks questions."""

    questions: Count | None = None
    """Questions of each set, from all over it; all by default."""

    def sets(self, text: TokenizedCorpus) -> list[str]:
        """The sets of questions that are asked, in their order."""
        return sets(text)

    def check_text(self, text: TokenizedCorpus, sequence_length: int) -> None:
        check(self.label, text, self.sets(text), sequence_length)

    def text_shortfalls(self, text: TokenizedCorpus, sequence_length: int) -> list[str]:
        return shortfalls(self.label, text, self.sets(text), sequence_length, self.questions)

    def _number(self) -> str:
        """How many questions, for people."""
        return "all" if self.questions is None else f"{self.questions:,}"


def column(rows: Rows, name: str) -> Rows:
    """One of `raysweep.corpora.questions.COLUMNS`."""
    return np.asarray(rows[:, COLUMNS.index(name)])


def chosen(rows: Rows, questions: int | None) -> Rows:
    """The requests of so many questions from all over the set; of all, where it has fewer."""
    number = int(column(rows, "question")[-1]) + 1
    if questions is None or questions >= number:
        return rows
    return rows[np.isin(column(rows, "question"), np.arange(questions) * number // questions)]


def fitting(rows: Rows, length: int) -> Rows:
    """The requests of the questions all of whose answers fit in sequences of `length`."""
    too_long = column(rows, "question")[column(rows, "answer") > length]
    return rows[~np.isin(column(rows, "question"), too_long)]


def cut(rows: Rows, length: int) -> NDArray[np.bool_]:
    """(requests,) whether the context loses its beginning."""
    return np.asarray(column(rows, "context") + column(rows, "answer") > length + 1)


def log_likelihoods(subject: Subject, text: TokenizedCorpus, name: str, rows: Rows) -> NDArray[np.float64]:
    """(requests,) the log of the probability of each answer after its context, in nats."""
    import torch

    model, length = subject.language_model, subject.cell.sequence_length
    tokens = np.asarray(text.tokens(f"{PREFIX}{name}"))
    found = np.zeros(len(rows))
    with torch.no_grad(), subject.language_model.autocast():
        for batch in _batches(rows, length, subject.micro_batch_size * length):
            windows = [_window(rows[request], tokens, length) for request in batch]
            # Attention looks back only: what is put after the end changes nothing.
            padded = np.zeros((len(batch), max(map(len, windows))), dtype=np.int64)
            answered = np.zeros(padded.shape, dtype=bool)
            for i, (request, window) in enumerate(zip(batch, windows, strict=True)):
                padded[i, : len(window)] = window
                answered[i, len(window) - column(rows, "answer")[request] : len(window)] = True
            ids, scored = torch.from_numpy(padded).to(subject.device), torch.from_numpy(answered).to(subject.device)
            losses = model.token_losses(ids[:, :-1], ids[:, 1:], scored[:, 1:]).double().cpu().numpy()
            starts = np.cumsum([0, *(column(rows, "answer")[batch])[:-1]])
            found[batch] = -np.add.reduceat(losses, starts)
    return found


def _window(request: NDArray[np.int64], tokens: NDArray[Any], length: int) -> NDArray[Any]:
    """What of a request is read: the last `length` tokens and one more."""
    start, size = request[COLUMNS.index("start")], request[COLUMNS.index("context")] + request[COLUMNS.index("answer")]
    return tokens[start + max(0, size - length - 1) : start + size]


def _batches(rows: Rows, length: int, most_tokens: int) -> Iterator[NDArray[np.int64]]:
    """The numbers of the requests, those of like length together."""
    sizes = np.minimum(column(rows, "context") + column(rows, "answer"), length + 1)
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, most_tokens // int(sizes[order[start]]))
        yield order[start : start + count]
        start += count


def check(label: str, text: TokenizedCorpus, names: list[str], length: int) -> None:
    """Raise `UserError` where a set has no question that fits."""
    for name in names:
        if not len(fitting(requests(text, name), length)):
            raise UserError(
                f"{label}: every question of the set {name} has an answer of more than {length} tokens: leave the set out"
            )


def shortfalls(label: str, text: TokenizedCorpus, names: list[str], length: int, questions: int | None) -> list[str]:
    """Where some of so many questions are cut or left out, and which the training text has."""
    said = []
    asked = {name: chosen(requests(text, name), questions) for name in names}
    right = {name: rows[column(rows, "right") == 1] for name, rows in asked.items()}
    seen = {name: column(of, "seen").sum() / max(1, column(of, "long_enough").sum()) for name, of in right.items()}
    if known := {name: share for name, share in seen.items() if share > MUCH}:
        listed = ", ".join(f"{name} {share:.0%}" for name, share in sorted(known.items(), key=lambda item: -item[1]))
        said.append(
            f"{label}: training text has 13 tokens in a row of many questions ({listed}): see accuracy_without_overlap"
        )
    for name in names:
        rows = asked[name]
        number = len(np.unique(column(rows, "question")))
        left_out = number - len(np.unique(column(fitting(rows, length), "question")))
        shortened = len(np.unique(column(rows, "question")[cut(rows, length)])) - left_out
        if left_out:
            said.append(
                f"{label} leaves out {left_out:,} of {number:,} questions of {name}: answers over {length} tokens"
            )
        if shortened > number / 20:
            said.append(
                f"{label} cuts the beginning off {shortened:,} of {number:,} questions of {name}, which are longer than "
                f"sequences of {length} tokens: cells of other lengths read more or less of them"
            )
    return said


def measured(subject: Subject, name: str, questions: int | None) -> dict[str, float]:
    """Of one set of questions, by what columns end in:

    `accuracy`: share of questions whose right answer has the highest probability; `per_byte_accuracy`: the highest per byte
    (the log divided by the answer's bytes of UTF-8); of answers that are equal each counts its share. `bits_per_byte`: of
    the right answer, mean over questions. `chance`: the accuracy of guessing. `cut`, `left_out`: shares of questions. And
    `overlap`: share of the questions that share 13 tokens in a row with the training text, of those that have so many, and
    `accuracy_without_overlap`: accuracy over the questions that do not.
    """
    assert subject.text is not None
    length = subject.cell.sequence_length
    asked = chosen(requests(subject.text, name), questions)
    rows = fitting(asked, length)
    found = log_likelihoods(subject, subject.text, name, rows)
    _, starts, answers = np.unique(column(rows, "question"), return_index=True, return_counts=True)
    right = np.flatnonzero(column(rows, "right"))
    size = np.maximum(column(rows, "bytes"), 1)
    accurate = _best(found, starts, answers, right)
    seen, long_enough = (column(rows, name)[right].astype(bool) for name in ("seen", "long_enough"))
    clean = accurate[~seen]
    # Of a model that others have trained nobody knows.
    known_overlap = subject.text.manifest["seen"] is not None
    number = len(np.unique(column(asked, "question")))
    return {
        "accuracy": float(accurate.mean()),
        "per_byte_accuracy": float(_best(found / size, starts, answers, right).mean()),
        "bits_per_byte": float((-found[right] / size[right]).mean() / math.log(2)),
        "chance": float((1 / answers).mean()),
        "overlap": float(seen.sum() / long_enough.sum()) if long_enough.any() else math.nan,
        "accuracy_without_overlap": float(clean.mean()) if len(clean) and known_overlap else math.nan,
        "cut": float(np.logical_or.reduceat(cut(rows, length), starts).mean()),
        "left_out": 1 - len(starts) / number,
    }


def _best(values: NDArray[Any], starts: Rows, answers: Rows, right: Rows) -> NDArray[np.float64]:
    """(questions,) whether the right answer has the highest value; its share, where several have."""
    best = np.repeat(np.maximum.reduceat(values, starts), answers) == values
    return np.asarray(best[right] / np.add.reduceat(best.astype(int), starts), dtype=float)


UNITS = {
    "accuracy": "share of questions",
    "per_byte_accuracy": "share of questions",
    "bits_per_byte": "bits per byte of the right answer",
    "chance": "share of questions",
    "overlap": "share of questions",
    "accuracy_without_overlap": "share of questions",
    "cut": "share of questions",
    "left_out": "share of questions",
}


def metrics(values: dict[str, float], prefix: str, suffix: str = "") -> list[Metric]:
    """`measured` as columns; what does not exist is left out."""
    known = {kind: value for kind, value in values.items() if not math.isnan(value)}
    return [Metric(f"{prefix}_{kind}{suffix}", value, UNITS[kind]) for kind, value in known.items()]


def mean(of_sets: list[dict[str, float]]) -> dict[str, float]:
    """The mean over sets, each counting once; of what a set does not have, over the others."""
    kinds = {kind: [values[kind] for values in of_sets if not math.isnan(values[kind])] for kind in UNITS}
    return {kind: sum(values) / len(values) if values else math.nan for kind, values in kinds.items()}
