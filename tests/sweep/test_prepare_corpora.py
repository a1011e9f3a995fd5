"""What the text has less of than a sweep asks for is said before anything starts."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_cell

from raysweep.errors import UserError
from raysweep.evaluation import in_distribution, out_of_distribution
from raysweep.space.read import load
from raysweep.store import Store
from raysweep.sweep.evaluate_cell import missing_evaluations
from raysweep.sweep.prepare_corpora import prepare_corpora
from raysweep.sweep.survey import CellState, survey


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words(first: int, count: int) -> str:
    """So many words of one token or more each."""
    return " ".join(f"w{first + i}" for i in range(count))


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "train" / "a.jsonl", [{"text": words(100 * i, 40)} for i in range(1000)])
    domains = {"short": 2, "medium": 30, "long": 4000}
    ood = [{"text": words(10**6 + 10**4 * i, n), "domain": name} for i, (name, n) in enumerate(domains.items())]
    write(tmp_path / "ood" / "a.jsonl", ood)
    return {
        "name": "mine", "tokenizer": "bpe", "vocabulary": 300, "pretraining": {"folder": str(tmp_path / "train")},
        "out_of_distribution": {"folder": str(tmp_path / "ood"), "domain": "domain"},
    }  # fmt: skip


def states(store: Store, *cells: Any) -> list[CellState]:
    from raysweep.space.space import Space

    return list(survey(store, Space(name="x", cells=cells)).states)


def test_what_is_short_is_said(text: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(tmp_path / "store"))
    evaluations = [in_distribution.Settings(sequences=1000), out_of_distribution.Settings(sequences=3)]
    domains, tokens_of = ("long", "medium", "short"), {}
    for length in (16, 256):
        cell = make_cell(corpus=text, tokens=length * 4, sequence_length=length, validation_sequences=1)
        with caplog.at_level(logging.WARNING, "raysweep"):
            built = prepare_corpora(states(store, cell), evaluations, store, lambda progress: None)
        (opened,) = built.values()
        tokens_of[length] = opened
        said = caplog.text
        caplog.clear()
        held = len(opened.sequences("pretraining/test", length))
        assert (
            f"in_distribution reads {held} sequences of pretraining/test and not 1,000: there are no more of {length} tokens"
            in said
        )
        tokens = {name: shard["tokens"] for name, shard in opened.manifest["shards"].items()}
        short = [name for name in domains if tokens[f"out_of_distribution/{name}"] <= length]
        assert short == {16: ["short"], 256: ["medium", "short"]}[length]
        assert (
            f"leaves out {len(short)} of 3 domains, which have no sequence of {length} tokens ({', '.join(short)})"
            in said
        )
        assert "more than once" not in said
    # 1,000 documents of some 200 tokens each.
    train = len(tokens_of[16].sequences("pretraining/train", 16))
    longer = make_cell(
        corpus=text, tokens=16 * 2 * train * 3, sequence_length=16, batch_size=2, validation_sequences=10**6
    )
    with caplog.at_level(logging.WARNING, "raysweep"):
        prepare_corpora(states(store, longer), [], store, lambda progress: None)
    assert "1 of 1 cells read training text more than once, up to 6.0 times" in caplog.text
    assert "sequences and not 1,000,000: there are no more of" in caplog.text


def test_malformed_documents_that_were_skipped_are_said_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "texts" / "a.jsonl", [{"text": words(60 * i, 60)} for i in range(1000)])
    with (tmp_path / "texts" / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write("no JSON\n")
    source = {"folder": str(tmp_path / "texts"), "skip_malformed": True}
    corpus = {"name": "mine", "tokenizer": "bpe", "vocabulary": 300, "pretraining": source}
    store = Store(str(tmp_path / "store"))
    with caplog.at_level(logging.WARNING, "raysweep"):
        prepare_corpora(states(store, make_cell(corpus=corpus)), [], store, lambda progress: None)
    assert "corpus mine is without 1 malformed documents (skip_malformed), the first in a.jsonl at 1,001" in caplog.text


def test_two_corpora_in_one_sweep_each_with_what_fits(
    text: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cells of the corpus without domains go without that evaluation: said, not planned, not missing."""
    from raysweep.space.space import Space

    write(tmp_path / "other" / "a.jsonl", [{"text": words(300 * i, 60)} for i in range(1000)])
    plain = {"name": "plain", "tokenizer": "bpe", "vocabulary": 300, "pretraining": {"folder": str(tmp_path / "other")}}
    evaluations = (in_distribution.Settings(sequences=2), out_of_distribution.Settings(sequences=2))
    cells = tuple(make_cell(corpus=corpus, validation_sequences=1) for corpus in (text, plain))
    space = Space(name="x", cells=cells, evaluations=evaluations)
    store = Store(str(tmp_path / "store"))
    planned = survey(store, space)
    assert [list(state.evaluations) for state in planned.states] == [
        ["in_distribution", "out_of_distribution"], ["in_distribution"],
    ]  # fmt: skip
    assert planned.counts()["evaluations"]["planned"] == 3
    assert [one.label for one in missing_evaluations(cells[1], space, store)] == ["in_distribution"]
    with caplog.at_level(logging.WARNING, "raysweep"):
        built = prepare_corpora(list(planned.states), evaluations, store, lambda progress: None)
    assert "corpus plain has no out_of_distribution: out_of_distribution is left out for its cells" in caplog.text
    assert len({opened.fingerprint for opened in built.values()}) == 2
    # Alone it is refused, before anything is built.
    file = tmp_path / "space.yaml"
    base = {"size": {"width": 16}, "corpus": plain, "tokens": 4096, "batch_size": 4, "sequence_length": 32}
    file.write_text(
        yaml.safe_dump({"name": "y", "base": base, "evaluations": ["out_of_distribution"]}), encoding="utf-8"
    )
    with pytest.raises(
        UserError, match="the corpus plain has no out_of_distribution: give it sources, or drop the task"
    ):
        load(file)
    file.write_text(yaml.safe_dump({
        "name": "y", "base": base, "cross": {"corpus": [plain, text]}, "evaluations": ["out_of_distribution"],
    }), encoding="utf-8")  # fmt: skip
    assert len(load(file).cells) == 2
