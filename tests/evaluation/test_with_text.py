"""loss and finetune on documents of one's own: against other ways to the same number."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny import make_cell

from raysweep.corpora import installed
from raysweep.corpora.progress import ignore
from raysweep.corpora.texts import open_text
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation import finetune
from raysweep.evaluation.task import Subject
from raysweep.model import olmo
from raysweep.model.language_model import LanguageModel
from raysweep.space.evaluations import evaluation
from raysweep.space.size import peak_learning_rate
from raysweep.store import Store, corpora_record
from raysweep.sweep.prepare_texts import prepare_texts, prepared_text
from raysweep.sweep.survey import CellState
from raysweep.training.run import Run

LENGTH = 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Real text: the first section of the installed corpus."""
    return [document.text for document in installed.documents(0)][:200]


@pytest.fixture
def folder(tmp_path: Path, documents: list[str], corpus: TokenizedCorpus) -> dict[str, Any]:
    """Three domains: real text, what the corpus is trained on, and noise."""
    training = corpus.tokens("pretraining/train")
    ends = np.flatnonzero(training[:400_000] == corpus.manifest["end_of_text"])
    seen = [corpus.tokenizer.decode(training[a + 1 : b].tolist()) for a, b in pairwise(ends[:21])]
    rng = np.random.default_rng(0)
    noise = ["".join(rng.choice(list("qxzjkvw"), 300)) for _ in range(10)]
    rows = [
        {"text": text, "kind": kind}
        for kind, texts in (("real", documents), ("seen", seen), ("noise", noise))
        for text in texts
    ]
    (tmp_path / "law").mkdir()
    (tmp_path / "law/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["text"]))
    return {"folder": str(tmp_path / "law"), "domain": "kind"}


@pytest.fixture(scope="module")
def weights(corpus: TokenizedCorpus) -> dict[str, torch.Tensor]:
    run = Run(make_cell(size={"width": 16}, tokens=65_536, learning_rate=0.03), corpus, reports=())
    list(run.rows())
    return {name: tensor.clone() for name, tensor in run.checkpoint().model.items()}


def subject_of(settings: Any, corpus: TokenizedCorpus, weights: dict[str, torch.Tensor], folder: Path) -> Subject:
    cell = make_cell(size={"width": 16}, tokens=65_536, learning_rate=0.03)
    model = olmo.build(cell.shape, LENGTH, 0)
    model.load_state_dict(weights)
    text = open_text(settings.text, corpus, ignore)
    return Subject(cell, LanguageModel(model), corpus, Store(str(folder)), "train/x/own", text=text)


def test_losses_and_overlap(
    folder: dict[str, Any], corpus: TokenizedCorpus, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    settings = evaluation({"task": "loss", "name": "law", "on": folder, "sequences": 5})
    subject = subject_of(settings, corpus, weights, tmp_path)
    found = {metric.name: metric.value for metric in settings.evaluate(subject)}
    end = corpus.manifest["end_of_text"]
    training = np.asarray(corpus.tokens("pretraining/train")).tolist()
    known = {tuple(training[i : i + 13]) for i in range(len(training) - 12)}
    for domain in ("real", "seen", "noise"):
        tokens = np.asarray(subject.text.tokens(f"evaluation/{domain}")[:]).astype(np.int64)
        indices = subject.text.sequences(f"evaluation/{domain}", LENGTH).sample(5)
        losses = []
        for i in indices.tolist():
            part = torch.from_numpy(tokens[LENGTH * i : LENGTH * i + LENGTH + 1])[None]
            logits = subject.language_model.hidden(part[:, :-1]) @ subject.language_model.unembedding.T
            losses.append(float(F.cross_entropy(logits[0], part[0, 1:]).detach()))
        assert found[f"law_loss_{domain}"] == pytest.approx(np.mean(losses), abs=1e-5)
        covered = np.zeros(len(tokens), dtype=bool)
        for i in range(len(tokens) - 12):
            if end not in tokens[i : i + 13] and tuple(tokens[i : i + 13].tolist()) in known:
                covered[i : i + 13] = True
        assert found[f"law_overlap_{domain}"] == pytest.approx(covered[tokens != end].mean(), abs=1e-12)
    assert found["law_overlap_noise"] == 0
    assert found["law_overlap_seen"] > 0.8
    for kind in ("loss", "bits_per_byte", "overlap"):
        assert found[f"law_{kind}"] == pytest.approx(
            np.mean([found[f"law_{kind}_{d}"] for d in ("real", "seen", "noise")])
        )
    assert settings.text_shortfalls(subject.text, LENGTH)[-1].startswith(
        "loss_law: training text has much of its tokens, in runs of 13 (seen "
    )
    # Noise of seven letters: no token stands for many bytes, and no model of text expects it.
    assert found["law_bits_per_byte_noise"] > math.log2(7)


def test_a_finetuning_is_that_of_a_subject(
    folder: dict[str, Any], corpus: TokenizedCorpus, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Its steps are those of a `Run` on that text from these weights."""
    asked = {"task": "finetune", "name": "law", "on": folder, "tokens": 2048, "batch_size": 4, "sequences": 6}
    settings = evaluation(asked | {"learning_rate": 0.02})
    subject = subject_of(settings, corpus, weights, tmp_path)
    found = {metric.name: metric.value for metric in settings.evaluate(subject)}
    cell = finetune.finetuning(subject.cell, settings)
    assert (cell.peak_learning_rate, cell.steps, cell.weight_decay) == (0.02, 16, 0.1)
    model = LanguageModel.of(cell, weights=weights)
    run = Run(cell, corpus, text=subject.text, shard="finetune/train", model=model, reports=())
    list(run.rows())
    held_out = subject.text.sequences("finetune/test", LENGTH)
    part = torch.from_numpy(held_out.read(held_out.sample(6)))
    with torch.no_grad():
        logits = run.model.hidden(part[:, :-1]) @ run.model.unembedding.T
    expected = float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()))
    assert found["finetune_law_loss"] == pytest.approx(expected, abs=1e-5)
    assert found["finetune_law_loss_change"] < -0.01
    assert found["finetune_law_loss"] - found["finetune_law_loss_before"] == found["finetune_law_loss_change"]
    assert 0 < found["finetune_law_overlap"] < 1
    # Without a rate of its own it has the rule's, as finetune_python has.
    by_rule = finetune.finetuning(subject.cell, evaluation(asked))
    assert by_rule.peak_learning_rate == pytest.approx(0.1 * peak_learning_rate(subject.cell.shape.parameters))
    tenth = subject.text.manifest["shards"]["finetune/test"]["documents"]
    assert 0.03 < tenth / (tenth + subject.text.manifest["shards"]["finetune/train"]["documents"]) < 0.2


def test_where_the_folder_is_changes_nothing_and_what_is_in_it_does(
    folder: dict[str, Any], corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    store, cell = Store(str(tmp_path / "store")), make_cell()
    settings = evaluation({"task": "loss", "name": "law", "on": folder})
    left, corpora = [CellState(cell, "new", {"loss_law": "new"})], {cell.corpus: corpus}
    ((_, (built,)),) = prepare_texts(left, (settings,), corpora, store, ignore).items()
    moved = tmp_path / "elsewhere/law"
    moved.parent.mkdir()
    Path(folder["folder"]).rename(moved)
    # The copy that was built is used where the folder is gone.
    ((_, (again,)),) = prepare_texts(left, (settings,), corpora, store, ignore).items()
    assert again.fingerprint == built.fingerprint
    other = evaluation({"task": "loss", "name": "law", "on": folder | {"folder": str(moved)}})
    assert other.identity == settings.identity
    ((_, (same,)),) = prepare_texts(left, (other,), corpora, store, ignore).items()
    assert same.fingerprint == built.fingerprint
    found = prepared_text(other, cell.corpus, store)
    assert found is not None
    assert found.fingerprint == built.fingerprint
    with (moved / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more", "kind": "real"}) + "\n")
    with pytest.raises(
        UserError, match=rf"^loss_law: its text was {built.fingerprint} when the store .* or give this evaluation"
    ):
        prepare_texts(left, (other,), corpora, store, ignore)
    assert set(corpora_record.fingerprints(store).values()) == {built.fingerprint}
    # Under another name it is another evaluation.
    renamed = evaluation({"task": "loss", "name": "law2", "on": folder | {"folder": str(moved)}})
    assert len(prepare_texts([CellState(cell, "done")], (renamed,), corpora, Store(str(tmp_path / "s2")), ignore)) == 1
    # What is done needs no text.
    done = [CellState(cell, "done", {"loss_law": "done"})]
    assert prepare_texts(done, (other,), corpora, store, ignore) == {}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"name": "validation"}, "raysweep has columns of the name validation: choose another"),
        ({"name": "my_loss"}, "columns are told apart by the word loss: choose a name without it"),
        ({"name": "My-text"}, "match pattern"),
        ({"on": []}, "at least 1 item"),
        ({"on": {"folder": "/x", "weight": 2}}, "weights are for what is trained on: remove them"),
        ({"task": "finetune", "name": "python"}, "raysweep has columns of the name python"),
        ({"task": "finetune", "learning_rate": 0.1, "learning_rate_fraction": 0.5}, "leave learning_rate_fraction out"),
    ],
)
def test_what_cannot_be_asked_for(item: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        evaluation({"task": "loss", "name": "x", "on": {"folder": "/x"}} | item)


def test_text_that_is_too_short_ends_it_before_it_starts(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short/a.txt").write_text("few words")
    cell, store = make_cell(), Store(str(tmp_path / "store"))
    for task, said in (("loss", "has no domain of more than 32 tokens"), ("finetune", "finetune/t.*")):
        settings = evaluation({"task": task, "name": "x", "on": {"folder": str(tmp_path / "short")}})
        with pytest.raises(UserError, match=said):
            prepare_texts([CellState(cell, "new")], (settings,), {cell.corpus: corpus}, store, ignore)


def test_a_single_step_is_refused_since_its_rate_is_zero() -> None:
    asked = {"task": "finetune", "name": "x", "on": {"folder": "/x"}, "batch_size": 4}
    evaluation(asked | {"tokens": 8 * LENGTH}).check_cells([make_cell()])
    with pytest.raises(ValueError, match=r"^tokens 128 is one step of batch_size 4 x sequence_length 32, .*: give 256"):
        evaluation(asked | {"tokens": 4 * LENGTH}).check_cells([make_cell()])
