"""Corpora that nobody would wish for: built and decoded to the same text, or refused by one line before anything starts."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from corpora import hostile
from tiny import make_cell

from raysweep import sweep
from raysweep.corpora import SOURCES, Corpus
from raysweep.corpora.build import encode, pieces, train_bpe
from raysweep.corpora.loader import TokenizedCorpus, open_corpus
from raysweep.errors import UserError
from raysweep.store import Store
from raysweep.train import Run

CORPUS = {"name": "pile", "tokenizer": "bpe", "vocabulary": 300}


@pytest.fixture(autouse=True)
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of the case, as what the corpus of that name is made of."""
    monkeypatch.setitem(SOURCES, "pile", "corpora.hostile")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # Read in this process, whose environment says what.
    kind: str = getattr(request, "param", "nul")
    monkeypatch.setenv("HOSTILE", kind)
    return kind


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        ("empty", "the corpus pile has no document to train on"),
        ("one", r"the corpus pile-\w+ has no pretraining/validation; it has pretraining/train"),
        ("duplicates", r"the corpus pile-\w+ has no pretraining/validation; it has pretraining/train"),
        ("blank", "the corpus pile-.* has"),
        ("surrogate", r"a document of hostile that starts 'half a pair: \\ud800' is not valid Unicode"),
    ],
    indirect=["source"],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_starts(source: str, refusal: str, tmp_path: Path) -> None:
    state = sweep.CellState(make_cell(corpus=CORPUS), "new")
    with pytest.raises(UserError, match=refusal) as refused:
        sweep._corpora([state], Store(str(tmp_path / "store")))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("source", ["nul", "odd"], indirect=True)
def test_odd_characters_come_back_and_can_be_trained_on(source: str) -> None:
    corpus = open_corpus(Corpus(**CORPUS))
    texts = set(hostile.TEXTS[source]())
    found = set()
    for shard in corpus.shards:
        tokens = np.array(corpus.tokens(shard))
        ends = np.flatnonzero(tokens == corpus.manifest["end_of_text"])
        found |= {corpus.tokenizer.decode(part[part != tokens[ends[0]]].tolist()) for part in np.split(tokens, ends)}
    assert found - {""} == texts
    last = [row for row in Run(make_cell(corpus=CORPUS), corpus).rows() if row is not None][-1]
    assert 0 < last["validation_loss"] < np.log(300)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["long"], indirect=True)
def test_a_line_of_a_hundred_megabytes(source: str) -> None:
    process = psutil.Process()
    text = hostile.TEXTS["long"]()[-1]
    assert len(text) > 0.9e8
    corpus = TokenizedCorpus(open_corpus(Corpus(**CORPUS)).folder)
    assert sum(shard["documents"] for shard in corpus.manifest["shards"].values()) == 401
    assert sum(shard["bytes"] for shard in corpus.manifest["shards"].values()) > len(text)
    assert process.memory_info().rss < 8e9


def test_a_text_in_pieces_has_the_tokens_of_the_whole(corpus: TokenizedCorpus) -> None:
    """Real text, of which every document is long here; and a text without a space is cut anywhere, and all there."""
    tokens = np.array(corpus.tokens("pretraining/test")[:200_000])
    ends = np.flatnonzero(tokens == corpus.manifest["end_of_text"])
    texts = [corpus.tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, ends)[1:-1]]
    assert len(texts) > 50
    assert max(map(len, texts)) > 2000
    whole = [list(ids) for ids in encode(texts, corpus.tokenizer)]
    for longest in (40, 333):
        cut = list(encode(texts, corpus.tokenizer, longest))
        spaced = [all(" " in text[i : i + longest] for i in range(0, len(text), longest)) for text in texts]
        assert sum(spaced) > 20 or longest == 40
        for text, one, other in zip(texts, whole, cut, strict=True):
            parts = list(pieces(text, longest))
            assert "".join(parts) == text
            assert all(0 < len(part) <= longest for part in parts)
            if all(part[0] == " " and part[1:2].isalnum() for part in parts[1:]):
                assert one == other
    assert sum(one == other for one, other in zip(whole, cut, strict=True)) > len(texts) / 2
    assert list(pieces("x" * 10, 4)) == ["xxxx", "xxxx", "xx"]


def test_the_smallest_tokenizer_takes_any_text() -> None:
    tokenizer = train_bpe(["a"], 257)
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    (ids,) = encode([text], tokenizer)
    assert tokenizer.decode(ids) == text
