"""Exported folders, loaded by plain transformers code, against the models they came from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import make_cell
from transformers import AutoModelForCausalLM, AutoTokenizer

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation import finetune, in_distribution, quantized
from raysweep.evaluation.run import run as run_evaluation
from raysweep.evaluation.task import Subject
from raysweep.exchange import export
from raysweep.model.language_model import LanguageModel
from raysweep.space.cell import Cell
from raysweep.space.space import Space, find_cell
from raysweep.store import Store, corpora_record
from raysweep.training import checkpoint
from raysweep.training.run import Run

EVALUATIONS = (
    quantized.Settings(bits=(3,), calibration_sequences=8, sequences=4),
    finetune.Settings(task="finetune_math", tokens=2048, batch_size=4, sequences=4),
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> tuple[Space, Store, Cell, Run]:
    """A store with every checkpoint of one cell, as its trial leaves them, and one fine-tuning."""
    store = Store(str(tmp_path_factory.mktemp("export")))
    cell = make_cell(size={"width": 16}, learning_rate=0.03)
    run = Run(cell, corpus)
    for _ in run.rows():
        checkpoint.append(run.checkpoint(), store, store.run_directory(cell.id), [])
    run_evaluation(cell, EVALUATIONS[1], run.checkpoint().model, corpus, store, torch.device("cpu"))
    return Space(name="tiny", cells=(cell,), evaluations=EVALUATIONS), store, cell, run


def tokens_of(corpus: TokenizedCorpus) -> torch.Tensor:
    return torch.from_numpy(np.asarray(corpus.tokens("pretraining/test")[: 32 * 6]).astype(np.int64)).view(6, 32)


def test_logits_equal_the_trained_model_s(
    swept: tuple[Space, Store, Cell, Run], corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    space, store, cell, run = swept
    export.export(space, store, cell, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = tokens_of(corpus)
    with torch.no_grad():
        expected = run.model.hidden(tokens) @ run.model.unembedding.T
        torch.testing.assert_close(loaded(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "def mean(values):\n    return sum(values) / len(values)  # naïve"
    assert tokenizer(text)["input_ids"] == corpus.tokenizer.encode(text).ids
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == loaded.config.eos_token_id == corpus.manifest["end_of_text"]
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert cell.id in card
    assert "| weight_decay | 0.1 |" in card


def test_its_loss_by_plain_transformers_code_is_the_evaluation_s(
    swept: tuple[Space, Store, Cell, Run], corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    space, store, cell, run = swept
    settings = in_distribution.Settings(sequences=8)
    rows, _ = run_evaluation(cell, settings, run.checkpoint().model, corpus, store, torch.device("cpu"))
    export.export(space, store, cell, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = torch.from_numpy(np.asarray(corpus.tokens("pretraining/test")[: 8 * 32 + 1]).astype(np.int64))
    with torch.no_grad():
        logits = loaded(tokens[:-1].view(8, 32)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[1:])
    assert rows[0]["value"] == pytest.approx(float(loss), abs=1e-4)


def test_a_step_a_finetuning_and_a_quantization(
    swept: tuple[Space, Store, Cell, Run], corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    space, store, cell, run = swept
    tokens = tokens_of(corpus)

    def logits(name: str) -> torch.Tensor:
        with torch.no_grad():
            return AutoModelForCausalLM.from_pretrained(tmp_path / name)(tokens).logits  # type: ignore[no-any-return]

    export.export(space, store, cell, tmp_path / "first", step=0)
    fresh = Run(cell, corpus)
    with torch.no_grad():
        expected = fresh.model.hidden(tokens) @ fresh.model.unembedding.T
    torch.testing.assert_close(logits("first"), expected, atol=1e-5, rtol=1e-5)

    export.export(space, store, cell, tmp_path / "tuned", form="finetune_math")
    directory = store.evaluation_directory(cell.id, "finetune_math", EVALUATIONS[1].model_dump())
    found = checkpoint.latest(store, directory)
    assert found is not None
    tuned = LanguageModel.of(cell, weights=found[1].model)
    with torch.no_grad():
        torch.testing.assert_close(logits("tuned"), tuned.hidden(tokens) @ tuned.unembedding.T, atol=1e-5, rtol=1e-5)

    export.export(space, store, cell, tmp_path / "small", form="quantized_3bit")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert all(len(set(row)) <= 8 for row in model.model.layers[3].mlp.down_proj.weight.tolist())
    subject = Subject(
        cell, LanguageModel(LanguageModel.of(cell, weights=run.checkpoint().model).olmo), corpus, store, ""
    )
    quantized.gptq(subject, 3, EVALUATIONS[0])
    with torch.no_grad():
        expected = subject.language_model.hidden(tokens) @ subject.language_model.unembedding.T
    torch.testing.assert_close(logits("small"), expected, atol=1e-5, rtol=1e-5)


def test_what_is_not_there_is_named(swept: tuple[Space, Store, Cell, Run], tmp_path: Path) -> None:
    space, store, cell, _ = swept
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for message, arguments in {
        "full is not an empty folder": (tmp_path / "full",),
        "file is not an empty folder": (tmp_path / "full" / "file",),
        r"holds .* at step 0, 1, .*32, not 6": (tmp_path / "a", "trained", 6),
        "needs the evaluation finetune_python": (tmp_path / "b", "finetune_python"),
        "no form 'tuned'": (tmp_path / "c", "tuned"),
        "no form 'quantized_1bit'": (tmp_path / "c", "quantized_1bit"),
    }.items():
        with pytest.raises(UserError, match=message):
            export.export(space, store, cell, *arguments)  # type: ignore[arg-type]
    other = make_cell(seed=7)
    with pytest.raises(UserError, match="holds no weights of"):
        export.export(space, store, other, tmp_path / "d")
    with pytest.raises(UserError, match="has no cell with 'nonsense'"):
        find_cell(space, "nonsense")
    assert find_cell(space, cell.id[-8:]) == cell
    parallel = make_cell(block="parallel")
    with pytest.raises(UserError, match="has parallel blocks"):  # Whether it was trained or not.
        export.export(space, store, parallel, tmp_path / "e")


def test_a_tokenizer_of_other_packages_is_not_written_beside_the_weights(
    swept: tuple[Space, Store, Cell, Run], corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    space, store, cell, _ = swept
    copy = Store(str(tmp_path / "store"))
    shutil.copytree(store.root, copy.root)
    corpora_record.record(copy, {cell.corpus.key: corpus.fingerprint})
    export.export(space, copy, cell, tmp_path / "a")
    (Path(copy.root) / corpora_record.FILE).unlink()
    corpora_record.record(copy, {cell.corpus.key: "0123456789abcdef"})
    with pytest.raises(UserError, match=r"built of other packages \(0123456789abcdef, here .*constraints.txt"):
        export.export(space, copy, cell, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_model_that_is_not_finished_is_exported_only_when_asked_for(
    swept: tuple[Space, Store, Cell, Run], corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    space, _, cell, _ = swept
    store = Store(str(tmp_path / "store"))
    run = Run(cell, corpus)
    rows = run.rows()
    while run.state.step == 0:
        next(rows)
    checkpoint.append(run.checkpoint(), store, store.run_directory(cell.id), [])
    step = run.state.step
    assert 0 < step < cell.steps
    with pytest.raises(UserError, match=f"is at step {step} of {cell.steps}.*--step {step} exports it"):
        export.export(space, store, cell, tmp_path / "a")
    export.export(space, store, cell, tmp_path / "b", step=step)
    assert f"(trained, step {step})" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_geometry_and_loss_of_an_exported_folder(
    swept: tuple[Space, Store, Cell, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: TokenizedCorpus
) -> None:
    """`raysweep geometry DIR` gives the final row's geometry; with a corpus, the loss of the same text by its tokenizer."""
    from raysweep.exchange import pretrained, text_loss

    space, store, cell, run = swept
    export.export(space, store, cell, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.cli", "geometry", str(tmp_path / "model"), "--json"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(done.stdout)
    assert measured["effective_rank"] == pytest.approx(run.state.rows[-1]["effective_rank_W"], rel=1e-9)

    # The command's corpus is the whole one; here the small one stands for it, to save its minute.
    monkeypatch.setattr(pretrained, "Corpus", lambda **_: cell.corpus)
    monkeypatch.setattr(text_loss, "SEQUENCES", 50)
    answer = pretrained.geometry(str(tmp_path / "model"), corpus="installed")
    # To the end of the first document past 50 sequences, in pieces of 32.
    tokens = torch.from_numpy(np.asarray(corpus.tokens("pretraining/test")).astype(np.int64))
    ends = (tokens == corpus.manifest["end_of_text"]).nonzero().flatten()
    read = tokens[: int(ends[ends >= 50 * 32][0]) + 1]
    total = 0.0
    for start in range(0, len(read) - 1, 32):
        part = read[start : start + 33]
        with torch.no_grad():
            logits = run.model.hidden(part[None, :-1])[0] @ run.model.unembedding.T
            total += float(F.cross_entropy(logits, part[1:], reduction="sum"))
    assert answer["loss"] == pytest.approx(total / (len(read) - 1), abs=1e-4)
    content = int(corpus.token_bytes[read].sum())
    assert answer["bits_per_byte"] == pytest.approx(total / np.log(2) / content, rel=1e-4)
