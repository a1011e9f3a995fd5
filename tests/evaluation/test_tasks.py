"""Each task on a cell that was really trained: against other ways to the same number."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny import make_cell
from torch import nn

from raysweep.corpora import installed
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation import by_domain, finetune, in_distribution, out_of_distribution, quantized, representation
from raysweep.evaluation.run import run
from raysweep.evaluation.task import Subject
from raysweep.model import geometry, kernels
from raysweep.model import olmo as model
from raysweep.model.language_model import LanguageModel
from raysweep.space.cell import Cell
from raysweep.space.evaluations import evaluation, task_module
from raysweep.store import Store
from raysweep.store.checkpoints import names
from raysweep.store.sessions import processor
from raysweep.store.store import settings_text
from raysweep.training import checkpoint
from raysweep.training.run import Run


class Trained:
    """A cell with its final weights."""

    def __init__(self, corpus: TokenizedCorpus, width: int) -> None:
        self.cell: Cell = make_cell(size={"width": width}, tokens=65_536, learning_rate=0.03)
        run = Run(self.cell, corpus, reports=())
        list(run.rows())
        self.weights = {name: tensor.clone() for name, tensor in run.checkpoint().model.items()}

    def subject(self, corpus: TokenizedCorpus, folder: Path, directory: str = "train/x/own") -> Subject:
        olmo = model.build(self.cell.shape, 32, 0)
        olmo.load_state_dict(self.weights)
        return Subject(self.cell, LanguageModel(olmo), corpus, Store(str(folder)), directory)


@pytest.fixture(scope="module")
def trained(corpus: TokenizedCorpus) -> Trained:
    return Trained(corpus, 16)


def metrics(subject: Subject, settings: Any) -> dict[str, float]:
    found = task_module(settings.task).evaluate(subject, settings)
    return {metric.name: metric.value for metric in found}


def plain_loss(language_model: LanguageModel, tokens: Any, sequences: int) -> float:
    """The mean loss of the first sequences of 32, by the materialised logits."""
    total = 0.0
    for i in range(sequences):
        part = torch.from_numpy(np.asarray(tokens[32 * i : 32 * i + 33]).astype(np.int64))[None]
        logits = language_model.hidden(part[:, :-1]) @ language_model.unembedding.T
        total += float(F.cross_entropy(logits[0], part[0, 1:]).detach())
    return total / sequences


def test_in_distribution(trained: Trained, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    subject = trained.subject(corpus, tmp_path)
    found = metrics(subject, in_distribution.Settings(sequences=7))
    expected = plain_loss(subject.language_model, corpus.tokens("pretraining/test"), 7)
    assert found == {"in_distribution_loss": pytest.approx(expected, abs=1e-5)}
    assert found["in_distribution_loss"] < math.log(512) - 0.5  # it has learnt something


def test_out_of_distribution(trained: Trained, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    subject = trained.subject(corpus, tmp_path)
    found = metrics(subject, out_of_distribution.Settings(sequences=5))
    domains = ["cpp", "cython", "exams"]
    for domain in domains:
        expected = plain_loss(subject.language_model, corpus.tokens(f"out_of_distribution/{domain}"), 5)
        assert found[f"out_of_distribution_loss_{domain}"] == pytest.approx(expected, abs=1e-5)
    mean = sum(found[f"out_of_distribution_loss_{domain}"] for domain in domains) / 3
    assert found["out_of_distribution_loss"] == pytest.approx(mean)


def test_bits_per_byte_from_the_bytes_of_the_documents(
    trained: Trained, corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """Over a whole domain: total nats by the plain loop, over the bytes of the documents themselves."""
    shard = "out_of_distribution/cython"
    sequences = len(corpus.sequences(shard, 32))
    subject = trained.subject(corpus, tmp_path)
    _, bits = by_domain.losses(subject, corpus, by_domain.PREFIX, sequences)["cython"]
    nats = plain_loss(subject.language_model, corpus.tokens(shard), sequences) * 32 * sequences
    covered = corpus.tokens(shard)[1 : 32 * sequences + 1]
    end = corpus.manifest["end_of_text"]
    documents = np.split(covered, np.flatnonzero(covered == end))
    text = "".join(corpus.tokenizer.decode(part[part != end].tolist(), skip_special_tokens=False) for part in documents)
    # The first and the last document are cut at a token, which may be part of a character of two bytes or more.
    assert bits == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-4)


def test_bytes_of_tokens_add_up_to_the_documents(corpus: TokenizedCorpus) -> None:
    for shard, entry in corpus.manifest["shards"].items():
        assert int(corpus.token_bytes[corpus.tokens(shard)].sum()) == entry["bytes"]


def test_representation(trained: Trained, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    subject = trained.subject(corpus, tmp_path)
    found = metrics(subject, representation.Settings(sequences=40))
    tokens = corpus.tokens("pretraining/test")
    states = []
    for i in range(40):
        part = torch.from_numpy(np.asarray(tokens[32 * i : 32 * i + 32]).astype(np.int64))[None]
        states.append(subject.language_model.hidden(part)[0, -1].detach())
    expected = geometry.measure(torch.stack(states))
    assert found["effective_rank_H"] == pytest.approx(expected["effective_rank"], rel=1e-5)
    assert found["cosine_H"] == pytest.approx(expected["cosine"], abs=1e-5)


# Quantization.


@pytest.mark.parametrize("width", [16, 32], ids=["the smallest demo width", "the largest"])
@pytest.mark.parametrize("bits", [4, 3])
def test_gptq_leaves_less_error_in_each_layer_than_rounding(
    corpus: TokenizedCorpus, tmp_path: Path, width: int, bits: int, trained: Trained
) -> None:
    """|| W X - Q X || on real calibration inputs, for every linear layer of every block."""
    subject = (trained if width == 16 else Trained(corpus, width)).subject(corpus, tmp_path)
    layers = 0
    for layer, inputs in quantized._calibrated_layers(subject, 32):
        given = torch.cat([x.flatten(0, 1) for x in inputs])
        before = layer.weight.detach().clone()
        errors = []
        for quantize in (lambda x: quantized.round_layer(x, bits), lambda x: quantized.solve(x, inputs, bits, 0.01)):  # noqa: B023
            changed = nn.Linear(before.shape[1], before.shape[0], bias=False)
            changed.weight.data = before.clone()
            quantize(changed)
            assert all(len(set(row)) <= 2**bits for row in changed.weight.tolist())
            errors.append(float((given @ (changed.weight - before).T).norm().detach()))
        assert errors[1] < errors[0]
        layers += 1
    assert layers == 4 * 6


def test_the_unembedding_is_quantized_where_that_is_asked_for(
    trained: Trained, corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """|| H (W - Q)^T || on the final states of calibration text, and nothing of W's own changes otherwise."""
    settings = quantized.Settings(bits=(3,), calibration_sequences=32, sequences=8, layers="blocks+unembedding")
    before = trained.weights["transformer.ff_out.weight"]
    after = {}
    for name, quantize in (("gptq", quantized.gptq), ("rounded", quantized.round_to_nearest)):
        for layers in ("blocks", "blocks+unembedding"):
            subject = trained.subject(corpus, tmp_path)
            quantize(subject, 3, settings.model_copy(update={"layers": layers}))
            after[name, layers] = subject.language_model.unembedding.detach()
    assert torch.equal(after["gptq", "blocks"], before)
    assert torch.equal(after["rounded", "blocks"], before)
    for name in ("gptq", "rounded"):
        assert all(len(set(row)) <= 2**3 for row in after[name, "blocks+unembedding"].tolist())
    subject = trained.subject(corpus, tmp_path)
    (*_, (_, inputs)) = quantized._calibrated_layers(subject, 32, True)
    states = torch.cat([h.flatten(0, 1) for h in inputs])
    assert torch.allclose(states[:32], subject.language_model.hidden(shard_start(corpus))[0], atol=1e-5)
    errors = {name: float((states @ (q - before).T).norm()) for (name, layers), q in after.items() if "+" in layers}
    assert errors["gptq"] < errors["rounded"]
    found = metrics(trained.subject(corpus, tmp_path), settings)
    assert found["quantized_3bit_in_distribution_loss"] < found["round_to_nearest_3bit_in_distribution_loss"]


def shard_start(corpus: TokenizedCorpus) -> torch.Tensor:
    """The inputs of the first calibration sequence."""
    shard = corpus.sequences("pretraining/train", 32)
    return torch.from_numpy(shard.read(shard.sample(32)[:1])[:, :-1])


def test_results_of_the_blocks_alone_are_found_as_before() -> None:
    assert "layers" not in quantized.Settings().model_dump()
    assert quantized.Settings(layers="blocks+unembedding").model_dump()["layers"] == "blocks+unembedding"


@pytest.mark.parametrize("kind", ["dead columns", "all dead", "constant", "one token"])
def test_gptq_of_inputs_that_say_little(kind: str) -> None:
    """With the usual damping the weights stay within a step of the grid, or, where an input is always 0, do not matter."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, bias=False)
    before = layer.weight.detach().clone()
    inputs = torch.randn(64, 16)
    if kind == "dead columns":
        inputs[:, ::4] = 0
    elif kind == "all dead":
        inputs[:] = 0
    elif kind == "constant":
        inputs[:] = 1.0
    else:
        inputs = inputs[:1]
    with torch.no_grad():
        quantized.solve(layer, [inputs], 8, 0.01)
    assert layer.weight.isfinite().all()
    step = (before.amax(1).clamp(min=0) - before.amin(1).clamp(max=0)) / 255
    error = (inputs @ (layer.weight - before).T).abs().max(0).values
    assert (error <= step * 16 * inputs.abs().max()).all()


def test_gptq_says_what_to_raise_where_the_hessian_is_not_positive_definite() -> None:
    layer = nn.Linear(16, 8, bias=False)
    before = layer.weight.detach().clone()
    with pytest.raises(ArithmeticError, match=r"16 inputs .* from 2 tokens .* 1e-12: raise calibration_sequences"):
        quantized.solve(layer, [torch.ones(1, 2, 16)], 4, 1e-12)
    assert torch.equal(layer.weight, before)


def test_quantized(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    # At width 16 the two methods differ by less than two trainings whose sums were rounded in another order.
    subject = Trained(corpus, 32).subject(corpus, tmp_path)
    before = {name: tensor.clone() for name, tensor in subject.language_model.olmo.state_dict().items()}
    settings = quantized.Settings(bits=(8, 2), calibration_sequences=16, sequences=16)
    found = metrics(subject, settings)
    unquantized = plain_loss(subject.language_model, corpus.tokens("pretraining/test"), 16)
    assert found["quantized_8bit_in_distribution_loss"] == pytest.approx(unquantized, abs=5e-4)
    # Two bits hurt far more than eight, and by GPTQ less than by rounding.
    finest = abs(found["round_to_nearest_8bit_in_distribution_loss_change"])
    assert found["round_to_nearest_2bit_in_distribution_loss_change"] > 10 * finest
    assert found["quantized_2bit_in_distribution_loss"] < found["round_to_nearest_2bit_in_distribution_loss"]
    for place in ("in", "out_of"):
        for name in ("quantized_8bit", "quantized_2bit", "round_to_nearest_8bit", "round_to_nearest_2bit"):
            assert f"{name}_{place}_distribution_loss_change" in found
    # The model is what it was.
    after = subject.language_model.olmo.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_quantized_without_domains_out_of_distribution(
    trained: Trained, corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = quantized.Settings(bits=(4,), calibration_sequences=8, sequences=4)
    every = metrics(trained.subject(corpus, tmp_path), settings)
    monkeypatch.setattr(by_domain, "PREFIX", "no such domain/")
    found = metrics(trained.subject(corpus, tmp_path), settings)
    assert found == {name: value for name, value in every.items() if "out_of" not in name}
    assert len(found) == 4


def test_each_layer_sees_its_quantized_predecessors(trained: Trained, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    subject = trained.subject(corpus, tmp_path)
    untouched = [inputs for _, inputs in quantized._calibrated_layers(subject, 4)]
    changed = []
    for layer, inputs in quantized._calibrated_layers(subject, 4):
        changed.append(inputs)
        layer.weight.data *= 0.9
    assert torch.equal(untouched[0][0], changed[0][0])
    assert all(not torch.equal(a[0], b[0]) for a, b in zip(untouched[1:], changed[1:], strict=True))


# Fine-tuning.


@pytest.mark.parametrize("subject_name", ["python", "math"])
def test_finetune(trained: Trained, corpus: TokenizedCorpus, tmp_path: Path, subject_name: str) -> None:
    subject = trained.subject(corpus, tmp_path)
    settings = finetune.Settings(task=f"finetune_{subject_name}", tokens=16_384, batch_size=4, sequences=16)
    test = corpus.tokens(f"finetune_{subject_name}/test")
    before = plain_loss(subject.language_model, test, 16)
    remembered = plain_loss(subject.language_model, corpus.tokens("pretraining/test"), 16)
    found = metrics(subject, settings)
    # The subject's model is now the fine-tuned one.
    after = plain_loss(subject.language_model, test, 16)
    forgotten = plain_loss(subject.language_model, corpus.tokens("pretraining/test"), 16)
    name = subject_name
    assert found[f"finetune_{name}_loss_before"] == pytest.approx(before, abs=1e-5)
    assert found[f"finetune_{name}_loss"] == pytest.approx(after, abs=1e-5)
    assert found[f"finetune_{name}_loss_change"] == pytest.approx(after - before, abs=2e-5)
    assert found[f"forgetting_{name}_loss"] == pytest.approx(forgotten, abs=1e-5)
    assert found[f"forgetting_{name}_loss_change"] == pytest.approx(forgotten - remembered, abs=2e-5)
    # Eleven modules of one package are too little to do better on others; the mathematics is learnt.
    assert after < before or (name == "python" and after != before)
    expected = geometry.effective_rank(subject.language_model.unembedding)
    assert found[f"finetune_{name}_effective_rank_W"] == pytest.approx(expected)


def test_a_finetuning_of_other_weights_is_not_gone_on_with(
    trained: Trained, corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """The cell was trained again since, to weights that differ by rounding and here by more."""
    settings = finetune.Settings(task="finetune_math", tokens=2048, batch_size=4, sequences=8)
    metrics(trained.subject(corpus, tmp_path / "store"), settings)

    def other(folder: str) -> dict[str, float]:
        subject = trained.subject(corpus, tmp_path / folder)
        with torch.no_grad():
            subject.language_model.unembedding.mul_(1.5)
        return metrics(subject, settings)

    assert other("store") == other("clean")


def test_the_finetuning_s_schedule(trained: Trained) -> None:
    settings = finetune.Settings(task="finetune_math", tokens=32 * 32 * 20)
    cell = finetune.finetuning(trained.cell, settings)
    assert (cell.steps, cell.batch_size) == (20, 32)
    # A tenth of the rule, 0.0047 (N / 108e6)^(-1/3), whatever the cell's own rate was.
    rule = 0.0047 * (trained.cell.shape.parameters / 108e6) ** (-1 / 3)
    assert cell.peak_learning_rate == pytest.approx(0.1 * rule)
    assert (cell.final_learning_rate_fraction, cell.warmup_fraction) == (0.0, 0.1)
    for factor, decay in ((10.0, 0.5), (0.1, 0.01)):
        other = trained.cell.model_copy(update={"learning_rate_factor": factor, "weight_decay": decay})
        same = finetune.finetuning(other, settings)
        assert (same.peak_learning_rate, same.weight_decay) == (cell.peak_learning_rate, 0.1)
        own = finetune.finetuning(other, settings.model_copy(update={"relative_to": "cell"}))
        assert own.peak_learning_rate == pytest.approx(0.1 * other.peak_learning_rate)
        assert own.weight_decay == decay


def test_what_a_finetuning_has_too_little_of_is_said(corpus: TokenizedCorpus) -> None:
    settings = finetune.Settings(task="finetune_math", tokens=10**7, sequences=10**6)
    test, known = (len(corpus.sequences(shard, 32)) for shard in ("finetune_math/test", "pretraining/test"))
    times = 10**7 / 32 / len(corpus.sequences("finetune_math/train", 32))
    assert settings.shortfalls(corpus, 32) == [
        f"finetune_math reads {test:,} sequences of finetune_math/test and not 1,000,000: there are no more of 32 tokens",
        f"finetune_math reads {known:,} sequences of pretraining/test and not 1,000,000: there are no more of 32 tokens",
        f"finetune_math reads its text {times:.1f} times: more text would end that, or fewer tokens",
    ]
    assert finetune.Settings(task="finetune_math", tokens=4096, sequences=2).shortfalls(corpus, 32) == []


def test_results_of_before_a_setting_was_there_are_found() -> None:
    """Their settings as text, out of results/mini/evaluations.parquet; the hash of that is part of their files' names."""
    first_written = {
        '{"batch_size": 32, "learning_rate_fraction": 0.1, "sequences": 256, "task": "finetune_math", "tokens": 131072}':
            {"task": "finetune_math", "tokens": 131072, "sequences": 256, "relative_to": "cell"},
        '{"sequences": 128, "task": "out_of_distribution"}': {"task": "out_of_distribution", "sequences": 128},
        '{"bits": [4, 3], "calibration_sequences": 128, "damping": 0.01, "sequences": 128, "task": "quantized"}':
            {"task": "quantized", "sequences": 128},
    }  # fmt: skip
    published = pq.read_table(Path(__file__).parents[2] / "results" / "mini" / "evaluations.parquet")
    stored = set(published["settings"].to_pylist())
    for text, given in first_written.items():
        assert text in stored
        assert settings_text(evaluation(given).model_dump()) == text
    for given in ({"task": "finetune_math"}, {"task": "out_of_distribution", "average": "collections"}):
        assert settings_text(evaluation(given).model_dump()) not in stored
    with pytest.raises(ValidationError, match="takes the cell's own weight_decay: leave it out"):
        evaluation({"task": "finetune_math", "relative_to": "cell", "weight_decay": 0.1})


def test_a_mean_over_collections_counts_each_once_and_leaves_out_what_is_excluded() -> None:
    losses_of = {"a": (1.0, 10.0), "many.x": (2.0, 20.0), "many.y": (4.0, 40.0), "near": (9.0, 90.0)}
    settings = out_of_distribution.Settings(average="collections", exclude=("near",))
    assert by_domain.averaged(losses_of, settings) == losses_of | {"": (2.0, 20.0), "many": (3.0, 30.0)}
    one_language = out_of_distribution.Settings(average="collections", exclude=("many.x", "near"))
    assert by_domain.averaged(losses_of, one_language)[""] == (2.5, 25.0)
    usual = by_domain.averaged(losses_of, out_of_distribution.Settings())
    assert usual == losses_of | {"": (4.0, 40.0)}


def test_what_is_excluded_must_be_there(corpus: TokenizedCorpus) -> None:
    for task in (out_of_distribution.Settings, quantized.Settings):
        task(exclude=("exams", "cpp")).check_corpus(corpus, 32)
        with pytest.raises(UserError, match=r"excludes exam, of which .* has no sequence; .*did you mean 'exams'"):
            task(exclude=("exam",)).check_corpus(corpus, 32)
        with pytest.raises(UserError, match="excludes every domain"):
            task(exclude=("exams", "cpp", "cython")).check_corpus(corpus, 32)


def test_a_killed_finetuning_goes_on_and_ends_the_same(
    trained: Trained, corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = finetune.Settings(task="finetune_math", tokens=16_384, batch_size=4, sequences=4)
    reference = metrics(trained.subject(corpus, tmp_path / "a"), settings)

    monkeypatch.setattr(finetune, "CHECKPOINT_INTERVAL", 0.0)
    subject = trained.subject(corpus, tmp_path / "b")
    written = 0
    real = checkpoint.write

    def dies(made: checkpoint.Checkpoint, store: Store, folder: str) -> None:
        nonlocal written
        real(made, store, folder)
        written += 1
        if written == 20:
            # A disk's share in a kill: the newest checkpoint's optimizer never reached it whole.
            (Path(store.root) / folder / "optimizer.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        metrics(subject, settings)
    monkeypatch.setattr(checkpoint, "write", real)
    again = trained.subject(corpus, tmp_path / "b")
    found = checkpoint.latest(again.store, again.directory)
    assert found is not None
    assert 0 < found[1].state.step < 128
    assert metrics(again, settings) == reference
    # The final weights stay, for export.
    assert len(names(again.store, again.directory)) == 1


def test_subjects_share_no_document_with_pretraining() -> None:
    """Of the whole recipe: no text of the fine-tuning sections is among those that pretraining may read first."""
    held_out = {
        document.text
        for i, entry in enumerate(installed.RECIPE)
        if entry.role == "finetune_python"
        for document in installed.documents(i)
    }
    assert len(held_out) > 300
    packages = {entry.distribution for entry in installed.RECIPE if entry.role == "pretraining"}
    assert not packages & {entry.distribution for entry in installed.RECIPE if entry.role.startswith("finetune")}


def test_built_shards_share_no_document(corpus: TokenizedCorpus) -> None:
    end = corpus.manifest["end_of_text"]
    documents = {}
    for shard in corpus.shards:
        tokens = np.asarray(corpus.tokens(shard))
        documents[shard] = {part.tobytes() for part in np.split(tokens, np.flatnonzero(tokens == end) + 1) if len(part)}
    trained_on = documents["pretraining/train"]
    for shard, found in documents.items():
        if shard != "pretraining/train":
            assert not trained_on & found, shard


def test_rows_carry_the_settings(trained: Trained, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    settings = in_distribution.Settings(sequences=3)
    store = Store(str(tmp_path))
    rows, by = run(trained.cell, settings, trained.weights, corpus, store, torch.device("cpu"))
    assert [(row["cell"], row["task"], row["metric"]) for row in rows] == [
        (trained.cell.id, "in_distribution", "in_distribution_loss")
    ]
    assert '"sequences": 3' in rows[0]["settings"]
    assert (by["device"], by["device_name"], by["precision"], by["compiled"]) == ("cpu", processor(), "float32", "no")
    assert by["kernels"] == ("raysweep" if kernels.available() else "ai2-olmo")
