"""Corpora that nobody would wish for: built and decoded to the same text, or refused by one line before anything starts."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import hostile
from tiny import TINY, make_cell

from raysweep.corpora.build import open_corpus
from raysweep.corpora.progress import ignore
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.corpora.tokenizer import encode, pieces, train_bpe
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus
from raysweep.space.evaluations import evaluation
from raysweep.store import Store
from raysweep.sweep.prepare_corpora import prepare_corpora
from raysweep.sweep.survey import CellState
from raysweep.training.run import Run


@pytest.fixture
def corpus(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A corpus of the kind of text that the case names."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    hostile.write(tmp_path / "hostile", request.param)
    return {"name": "odd", "tokenizer": "bpe", "vocabulary": 300, "pretraining": {"folder": str(tmp_path / "hostile")}}


@pytest.mark.parametrize(
    ("corpus", "refusal"),
    [
        ("empty", "the corpus odd has no document to train on"),
        (
            "one",
            r"has no pretraining/validation; it has pretraining/train. 2% of its documents are held .* as validation:",
        ),
        ("duplicates", r"the corpus odd-\w+ has no pretraining/validation; it has pretraining/train"),
        ("blank", "the corpus odd-.* has"),
        ("surrogate", r"^hostile: text\.jsonl, line 2: the field 'text' holds half a character"),
    ],
    indirect=["corpus"],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_starts(
    corpus: dict[str, Any], refusal: str, tmp_path: Path
) -> None:
    state = CellState(make_cell(corpus=corpus), "new")
    with pytest.raises(UserError, match=refusal) as refused:
        prepare_corpora([state], [evaluation("out_of_distribution")], Store(str(tmp_path / "store")), ignore)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("corpus", "kind"), [("nul", "nul"), ("odd", "odd")], indirect=["corpus"])
def test_odd_characters_come_back_and_can_be_trained_on(corpus: dict[str, Any], kind: str) -> None:
    built = open_corpus(Corpus.model_validate(corpus))
    texts = set(hostile.TEXTS[kind]())
    found = set()
    for shard in built.shards:
        tokens = built.tokens(shard)[:]
        ends = np.flatnonzero(tokens == built.manifest["end_of_text"])
        found |= {built.tokenizer.decode(part[part != tokens[ends[0]]].tolist()) for part in np.split(tokens, ends)}
    assert found - {""} == texts
    last = [row for row in Run(make_cell(corpus=corpus), built).rows() if row is not None][-1]
    assert 0 < last["validation_loss"] < np.log(300)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["long"], indirect=True)
def test_a_line_of_a_hundred_megabytes(corpus: dict[str, Any]) -> None:
    text = hostile.TEXTS["long"]()[-1]
    assert len(text) > 0.9e8
    # By Ray, whose environment is set before it is imported: in a process of its own.
    code = (
        "import sys; from raysweep.corpora.build import open_corpus; from raysweep.space.corpus import Corpus; "
        "print(open_corpus(Corpus.model_validate_json(sys.argv[1])).folder)"
    )
    specification = Corpus.model_validate(corpus).model_dump_json()
    done = subprocess.run([sys.executable, "-c", code, specification], capture_output=True, text=True, check=True)
    built = TokenizedCorpus(Path(done.stdout.strip()))
    assert sum(shard["documents"] for shard in built.manifest["shards"].values()) == 401
    assert sum(shard["bytes"] for shard in built.manifest["shards"].values()) > len(text)
    # The largest of all children, in KiB.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 8e6


def test_a_text_in_pieces_has_the_tokens_of_the_whole() -> None:
    """Real text, of which every document is long here; and a text without a space is cut anywhere, and all there."""
    corpus = open_corpus(Corpus(**TINY))
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
