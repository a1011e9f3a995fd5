"""Repeated text: counted against a plain loop over words, and gone from what is held out of `installed`."""

import random
import re

import numpy as np
import pytest

from raysweep.corpora import build_installed, installed, near_duplicates
from raysweep.corpora.installed import Document
from raysweep.corpora.progress import ignore
from raysweep.space.corpus import Corpus

N = 5


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def plain_runs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + N]) for i in range(len(found) - N + 1)}


def plain_covered(text: str, known: set[tuple[str, ...]]) -> int:
    found = words(text)
    marked = [False] * len(found)
    for i in range(len(found) - N + 1):
        if tuple(found[i : i + N]) in known:
            marked[i : i + N] = [True] * N
    return sum(marked)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Docstrings, which repeat one another."""
    docstrings = next(i for i, entry in enumerate(installed.RECIPE) if entry.domain == "docstrings")
    return list(dict.fromkeys(document.text for document in installed.documents(docstrings)))[:1500]


def test_words_in_common_against_a_loop(texts: list[str]) -> None:
    train, held_out = texts[:1000], texts[1000:]
    known = np.unique(np.concatenate([near_duplicates.runs(text, N) for text in train]))
    plain = set().union(*map(plain_runs, train))
    some = 0
    for text in held_out:
        repeated, count = near_duplicates.covered(near_duplicates.runs(text, N), known, N)
        assert repeated == plain_covered(text, plain)
        assert count == (len(words(text)) if len(words(text)) >= N else 0)
        some += repeated > 0
    assert some > 20


def test_near_duplicates_are_one_group_and_others_are_not() -> None:
    rng = random.Random(3)
    text = [f"w{rng.randrange(10**6)}" for _ in range(400)]
    near, far, short = text.copy(), text.copy(), text[: N - 1]
    near[200:210] = ["other"] * 10
    for i in range(0, 400, 10):  # Hardly a run of five is left whole.
        far[i] = far[i + 5] = f"x{i}"
    documents = [text, far, near, short, short, [f"y{i}" for i in range(400)]]
    runs = [near_duplicates.runs(" ".join(document), N) for document in documents]
    assert near_duplicates.groups(runs, [near_duplicates.signature(run) for run in runs]) == [[0, 2]]


def test_what_is_held_out_of_installed_is_not_in_its_training_text(texts: list[str]) -> None:
    """Real docstrings, half of them once more with another last word, some of them for another purpose."""
    edited = [f"{text.rstrip()} indeed" for text in texts[::2] if len(words(text)) > 30]
    roles = {text: "finetune_math" if i % 3 == 0 else "pretraining" for i, text in enumerate(edited)}
    everything = [Document(roles.get(text, "pretraining"), "docstrings", text) for text in [*texts, *edited]]
    distinct = build_installed._distinct(everything, 1.0)
    corpus = Corpus(name="installed", decontaminate=N)
    found = build_installed._runs(distinct, corpus, ignore)
    split = build_installed._split(build_installed._together(distinct, found))
    shards, said = build_installed._without_overlap(split, found, N)
    where = {document.text: shard.name for shard in split for document in shard.documents}
    for text in edited:
        original = text.removesuffix(" indeed")
        twins = [where[one] for one in (original, text) if one in where]
        if len(twins) == 2:
            assert twins[0] == twins[1]
            assert twins[0].startswith("finetune_math/") or roles[text] == "pretraining"
    kept = {shard.name: [document.text for document in shard.documents] for shard in shards}
    assert sum(map(len, kept.values())) + sum(s["documents_left_out"] for s in said["shards"].values()) == len(distinct)
    for shard, counts in said["shards"].items():
        trained = [text for name, texts in kept.items() if name.endswith("/train") for text in texts]
        known = set().union(*map(plain_runs, trained))
        repeated = {text: plain_covered(text, known) for text in kept[shard]}
        assert all(count <= 0.1 * len(words(text)) for text, count in repeated.items())
        assert counts["repeated"] == sum(repeated.values())
        # Which was otherwise before.
        assert sum(plain_covered(text, known) for text, name in where.items() if name == shard) > counts["repeated"]


def test_by_default_installed_is_clean_and_null_is_what_it_was() -> None:
    assert Corpus(name="installed").decontaminate == 13
    assert Corpus(name="installed", decontaminate=None).decontaminate is None
    assert Corpus(name="installed", decontaminate=None).model_dump(exclude_defaults=True) == {"name": "installed"}
    assert Corpus.model_validate(Corpus(name="installed", decontaminate=None).model_dump()).decontaminate is None
