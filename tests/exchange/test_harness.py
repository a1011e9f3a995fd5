"""An exported cell in lm-evaluation-harness has the numbers of raysweep's own evaluations."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny import make_cell

from raysweep.corpora.progress import ignore
from raysweep.corpora.texts import open_text
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.evaluation import in_distribution
from raysweep.evaluation.run import run as evaluate
from raysweep.exchange import export
from raysweep.space.evaluations import evaluation
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.training import checkpoint
from raysweep.training.run import Run

LENGTH = 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> tuple[Run, Store, Path]:
    store = Store(str(tmp_path_factory.mktemp("store")))
    cell = make_cell(size={"width": 16}, tokens=32_768, learning_rate=0.03)
    run = Run(cell, corpus, reports=())
    list(run.rows())
    checkpoint.append(run.checkpoint(), store, store.run_directory(cell.id), [])
    folder = tmp_path_factory.mktemp("model")
    export.export(Space(name="tiny", cells=(cell,)), store, cell, folder / "m")
    return run, store, folder / "m"


def test_the_loss_on_a_held_out_shard_is_the_store_s(
    exported: tuple[Run, Store, Path], corpus: TokenizedCorpus
) -> None:
    run, store, folder = exported
    settings = in_distribution.Settings(sequences=24)
    rows, _ = evaluate(run.cell, settings, run.checkpoint().model, corpus, store, torch.device("cpu"))
    harness = HFLM(pretrained=str(folder), batch_size=8, max_length=LENGTH, device="cpu")
    held_out = corpus.sequences(in_distribution.SHARD, LENGTH)
    sequences = held_out.read(held_out.sample(24)).tolist()
    # The first token is the context, the others are what is predicted.
    scored = harness._loglikelihood_tokens([(("", ""), ids[:1], ids[1:]) for ids in sequences], disable_tqdm=True)
    loss = -sum(value for value, _ in scored) / (24 * LENGTH)
    assert rows[0]["value"] == pytest.approx(loss, abs=1e-5)


def test_its_tasks_have_the_accuracy_of_questions(
    exported: tuple[Run, Store, Path], corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command of docs/evaluations.md does, with a task on a file of one's own."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    run, store, folder = exported
    words = [
        w for w in corpus.tokenizer.decode(corpus.tokens("pretraining/test")[:3000].tolist()).split() if w.isascii()
    ]
    pieces = [words[i : i + 4] for i in range(0, 200, 4)]
    pairs = [{"good": " ".join(p), "bad": " ".join(reversed(p))} for p in pieces if len(" ".join(p)) < LENGTH]
    pairs = [pair for pair in pairs if pair["good"] != pair["bad"]]
    (tmp_path / "pairs").mkdir()
    file = tmp_path / "pairs/pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = evaluation({"task": "questions", "name": "order", "on": {"folder": str(file.parent)}})
    text = open_text(settings.text, corpus, ignore)
    rows, _ = evaluate(run.cell, settings, run.checkpoint().model, corpus, store, torch.device("cpu"), text=text)
    ours = {row["metric"]: row["value"] for row in rows}
    task = {
        "task": "order", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "", "doc_to_target": 0,
        "doc_to_choice": "{{[good, bad]}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "order.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    arguments = f"pretrained={folder},dtype=float32"
    found = simple_evaluate(
        "hf", arguments, ["order"], task_manager=tasks, device="cpu", batch_size=8, log_samples=False
    )
    assert found is not None
    theirs = found["results"]["order"]["acc,none"]
    assert len(pairs) > 20
    assert ours["order_accuracy"] == pytest.approx(theirs)
