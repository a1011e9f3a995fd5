"""What a task does for one checkpoint, without a cluster: its rows, what is missing afterwards, and what went wrong."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import suite_files
import torch
import torch.nn.functional as F
from published_layouts import Published, llama

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation import finetune, quantized
from raysweep.space.measure import Measurement
from raysweep.store.schemas import PLAN, REVISIONS
from raysweep.store.store import PLANNED, Store
from raysweep.suites.checkpoints import find
from raysweep.suites.model import load_model
from raysweep.suites.pins import check_asked, pin
from raysweep.suites.read import load_suite
from raysweep.suites.results import results
from raysweep.suites.runner import error_lines, survey
from raysweep.suites.task import Work, complete, lacking
from raysweep.suites.text import retokenized
from raysweep.sweep.same_code import code
from raysweep.training import checkpoint as checkpoints

MODEL = Published("one", "me/one", "llama", 16, 1, 3, (100,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama(tmp_path / "mirror" / "me" / "one" / "step100", 3, width=16, depth=1, heads=2, step=100)
    return tmp_path


def test_what_is_done_stays_done_and_what_failed_is_tried_again(folder: Path, corpus: TokenizedCorpus) -> None:
    file = suite_files.write(
        folder, [MODEL], mirror=str(folder / "mirror"), sequence_length=128,
        evaluations=["in_distribution", "out_of_distribution"],
    )  # fmt: skip
    loaded, store = load_suite(file), begun(folder / "store")
    (checkpoint,), errors = find(loaded, None, lambda *step: None, print)
    assert not errors
    assert checkpoint.id == "one@step100"
    pin(store, [checkpoint.row])
    check_asked(store, loaded.suite, [checkpoint.id])
    assert lacking(loaded.suite, checkpoint.id, store) == ["model", "measure", "in_distribution", "out_of_distribution"]
    # The model takes 128 tokens, and its begin-of-text is one of them.
    answer = complete(checkpoint, Work(loaded.suite, store.location, corpus.fingerprint, code()))
    assert set(answer["errors"]) == {"measure", "in_distribution", "out_of_distribution"}
    assert "lower sequence_length to 127" in answer["errors"]["in_distribution"]
    before = survey(loaded, store, [checkpoint])
    assert list(before.left) == [checkpoint.id]
    assert len(error_lines(before)) == 3
    assert results(loaded, store).to_pylist()[0]["status"] == "partly"

    (folder / "store" / "suite.json").unlink()  # That nothing was measured at another length, the store does not know.
    shorter = load_suite(suite_files.write(folder, [MODEL], mirror=str(folder / "mirror"), sequence_length=64,
                                           evaluations=["in_distribution", "out_of_distribution"]))  # fmt: skip
    check_asked(store, shorter.suite, [checkpoint.id])
    work = Work(shorter.suite, store.location, corpus.fingerprint, code())
    first = store.read_rows(store.revision_file(checkpoint.id), REVISIONS)
    assert complete(checkpoint, work)["errors"] == {}
    after = survey(shorter, store, [checkpoint])
    assert after.complete
    assert not after.errors
    assert store.read_rows(store.revision_file(checkpoint.id), REVISIONS) == first
    table = results(shorter, store)
    (row,) = table.to_pylist()
    assert row["status"] == "done"
    for name, unit in (
        ("in_distribution_loss", b"nats per token"),
        ("out_of_distribution_bits_per_byte", b"bits per byte"),
    ):
        assert table.schema.field(name).metadata[b"unit"] == unit
    assert row["tied"] is True
    assert 5 < row["in_distribution_bits_per_byte"] < 8
    # Another matrix is asked for: that alone is missing.
    more = replace(
        shorter, suite=shorter.suite.model_copy(update={"measure": (*shorter.suite.measure, _of("mlp.down"))})
    )
    assert lacking(more.suite, checkpoint.id, store) == ["measure"]
    # Fewer sequences are another number.
    fewer = shorter.suite.measure[0].model_copy(update={"sequences": 16})
    assert lacking(shorter.suite.model_copy(update={"measure": (fewer,)}), checkpoint.id, store) == ["measure"]
    # Other files under that name are another model.
    config = folder / "mirror" / "me" / "one" / "step100" / "config.json"
    config.write_text(config.read_text() + "\n")
    again = complete(checkpoint, replace(work, suite=more.suite))
    assert "the files of one@step100 are other ones than when it was measured" in again["errors"]["model"]
    assert survey(more, store, [checkpoint]).errors[checkpoint.id].keys() == {"model"}
    # Other code than the driver's measures nothing.
    with pytest.raises(ValueError, match="other code than the driver"):
        complete(checkpoint, replace(work, code={**code(), "torch": "0"}))


def begun(folder: Path) -> Store:
    """A store that a sweep has begun."""
    store = Store(str(folder))
    store.write_table(PLANNED, [], PLAN)
    return store


def _of(part: str) -> Measurement:
    return Measurement(of=(f"blocks.*.{part}",), metrics=("effective_rank",))


def test_an_earlier_checkpoint_never_stands_for_the_last(folder: Path, corpus: TokenizedCorpus) -> None:
    llama(folder / "mirror" / "me" / "one" / "step0", 3, width=16, depth=1, heads=2, step=0)
    model = MODEL._replace(steps=(0, 100))
    file = suite_files.write(
        folder, [model], mirror=str(folder / "mirror"), evaluations=["in_distribution"], measure=[]
    )
    loaded, store = load_suite(file), begun(folder / "store")
    checkpoints, _ = find(loaded, None, lambda *step: None, print)
    pin(store, [one.row for one in checkpoints])
    check_asked(store, loaded.suite, [one.id for one in checkpoints])
    work = Work(loaded.suite, store.location, corpus.fingerprint, code())
    assert [one.step for one in checkpoints] == [0, 100]
    assert complete(checkpoints[0], work)["errors"] == {}
    assert results(loaded, store).num_rows == 0
    assert complete(checkpoints[1], work)["errors"] == {}
    (row,) = results(loaded, store).to_pylist()
    assert (row["steps_trained"], row["checkpoints"]) == (100, 2)


def test_numbers_of_another_length_or_model_are_never_mixed(folder: Path, corpus: TokenizedCorpus) -> None:
    asked = {"mirror": str(folder / "mirror"), "evaluations": ["in_distribution"], "measure": []}
    loaded, store = load_suite(suite_files.write(folder, [MODEL], **asked)), begun(folder / "store")
    (checkpoint,), _ = find(loaded, None, lambda *step: None, print)
    check_asked(store, loaded.suite, [checkpoint.id])
    pin(store, [checkpoint.row])
    complete(checkpoint, Work(loaded.suite, store.location, corpus.fingerprint, code()))
    assert results(loaded, store).num_rows == 1
    for change in ({"sequence_length": 32}, {"text_bytes": 10_000}, {"corpus": "installed"}):
        other = load_suite(suite_files.write(folder, [MODEL], **asked | change))
        (name,) = change
        with pytest.raises(UserError, match=rf"has numbers of {name} .*, and tiny asks for .*: change that back"):
            results(other, store)
        with pytest.raises(UserError, match=f"has numbers of {name}"):
            survey(other, store, [checkpoint])
    with pytest.raises(UserError, match=r"one@step100 is from you/one, and .* has one of that name from me/one"):
        pin(store, [checkpoint.row | {"repository": "you/one"}])
    # A folder may be moved.
    pin(store, [checkpoint.row | {"id": "own@main", "repository": "/here/own"}])
    pin(store, [checkpoint.row | {"id": "own@main", "repository": "/there/own"}])
    store.write("suite.json", b"{}")
    with pytest.raises(UserError, match=r"suite\.json was damaged"):
        results(loaded, store)


def test_what_is_asked_now_decides_what_the_last_checkpoint_is(folder: Path, corpus: TokenizedCorpus) -> None:
    llama(folder / "mirror" / "me" / "one" / "step50", 3, width=16, depth=1, heads=2, step=50)
    asked = {"mirror": str(folder / "mirror"), "evaluations": ["in_distribution"], "measure": []}
    store = begun(folder / "store")
    for revisions, steps in (({"last": 1}, [100]), ({"steps": [50]}, [50])):
        loaded = load_suite(suite_files.write(folder, [MODEL], revisions=revisions, **asked))
        checkpoints, _ = find(loaded, store, lambda *step: None, print)
        assert [one.step for one in checkpoints] == steps
        check_asked(store, loaded.suite, [one.id for one in checkpoints])
        pin(store, [one.row for one in checkpoints])
        if steps == [50]:
            complete(checkpoints[0], Work(loaded.suite, store.location, corpus.fingerprint, code()))
    (row,) = results(loaded, store).to_pylist()
    # An earlier checkpoint has its own steps and tokens, and not those of the whole training.
    assert (row["steps_trained"], row["steps"], row["tokens"]) == (50, 50, 50 * 8 * 128)
    assert row["flops"] == 6 * row["parameters"] * row["tokens"]


def test_an_evaluation_never_sees_what_one_that_failed_left(
    folder: Path, corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = [{"task": "quantized", "bits": [2], "calibration_sequences": 4}, "in_distribution"]
    found = []
    for number, fails in enumerate((False, True)):
        loaded = load_suite(
            suite_files.write(folder, [MODEL], mirror=str(folder / "mirror"), measure=[], evaluations=evaluations)
        )
        store = begun(folder / f"store{number}")
        (checkpoint,), _ = find(loaded, None, lambda *step: None, print)
        if fails:
            # After layers were rounded, before they are put back.
            monkeypatch.setattr(quantized, "_losses", Losses(quantized._losses))
        answer = complete(checkpoint, Work(loaded.suite, store.location, corpus.fingerprint, code()))
        assert set(answer["errors"]) == ({"quantized"} if fails else set())
        one = next(one for one in loaded.suite.evaluations if one.task == "in_distribution")
        found.append(store.evaluation_rows(checkpoint.id, one.label, one.identity))
    assert found[0] == found[1]


def test_an_evaluation_never_sees_what_a_finetuning_made(folder: Path, corpus: TokenizedCorpus) -> None:
    tuned = {"task": "finetune_math", "tokens": 8 * 64 * 20, "batch_size": 8, "sequences": 20}
    loss = {"task": "in_distribution", "sequences": 20}
    found = []
    for number, evaluations in enumerate(([tuned, loss], [loss, tuned])):
        asked = {"sequence_length": 64, "measure": [], "evaluations": evaluations}
        loaded = load_suite(suite_files.write(folder, [MODEL], mirror=str(folder / "mirror"), **asked))
        store = begun(folder / f"store{number}")
        (checkpoint,), _ = find(loaded, None, lambda *step: None, print)
        assert complete(checkpoint, Work(loaded.suite, store.location, corpus.fingerprint, code()))["errors"] == {}
        one = next(one for one in loaded.suite.evaluations if one.task == "in_distribution")
        found.append(store.evaluation_rows(checkpoint.id, one.label, one.identity))
    assert found[0] == found[1]


def test_what_was_measured_under_other_settings_is_not_shown_for_what_is_asked(
    folder: Path, corpus: TokenizedCorpus
) -> None:
    store, columns = begun(folder / "store"), []
    for sequences in (32, 16):
        measure = [{"of": "hidden.0", "metrics": ["effective_rank"], "sequences": sequences}]
        asked = {"sequence_length": 64, "measure": measure, "evaluations": []}
        loaded = load_suite(suite_files.write(folder, [MODEL], mirror=str(folder / "mirror"), **asked))
        checkpoints, _ = find(loaded, store, lambda *step: None, print)
        check_asked(store, loaded.suite, [one.id for one in checkpoints])
        pin(store, [one.row for one in checkpoints])
        if sequences == 32:
            complete(checkpoints[0], Work(loaded.suite, store.location, corpus.fingerprint, code()))
        columns.append("effective_rank_hidden_0" in results(loaded, store).column_names)
    assert columns == [True, False]


def test_a_published_model_is_trained_on_as_torch_would(folder: Path, corpus: TokenizedCorpus) -> None:
    """Against a loop of one's own, with transformers' model and torch's AdamW."""
    asked = {"task": "finetune_math", "tokens": 8 * 64 * 20, "batch_size": 8, "sequences": 20}
    settings = {"mirror": str(folder / "mirror"), "sequence_length": 64, "measure": [], "evaluations": [asked]}
    loaded, store = load_suite(suite_files.write(folder, [MODEL], **settings)), begun(folder / "store")
    (checkpoint,), _ = find(loaded, None, lambda *step: None, print)
    work = Work(loaded.suite, store.location, corpus.fingerprint, code())
    assert complete(checkpoint, work)["errors"] == {}
    (one,) = loaded.suite.evaluations
    rows = store.evaluation_rows(checkpoint.id, one.label, one.identity)
    assert rows is not None
    found = {row["metric"]: row["value"] for row in rows}
    # What it was trained to is no result, and is not kept.
    assert not list((folder / "store").rglob("*.safetensors"))

    model, tokenizer = load_model("m", checkpoint.folder or folder, torch.device("cpu"))
    network, begin = model.loaded, tokenizer.bos_token_id
    assert tokenizer("x")["input_ids"][0] == begin
    own = retokenized(corpus, "m", tokenizer, network.get_input_embeddings().weight.shape[0], loaded.suite.text_bytes)

    def loss(sequences: Any) -> torch.Tensor:
        ids = torch.from_numpy(sequences)
        logits = network(torch.cat([torch.full((len(ids), 1), begin), ids[:, :-1]], dim=1)).logits[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def held_out(shard: str) -> float:
        of = own.sequences(shard, 64)
        with torch.no_grad():
            return float(loss(of.read(of.sample(20))))

    def bits(shard: str, value: float) -> float:
        of = own.sequences(shard, 64)
        targets = of.read(of.sample(20))[:, 1:]
        return float(value * targets.size / math.log(2) / own.token_bytes[targets].sum())

    before = {shard: held_out(shard) for shard in ("finetune_math/test", "pretraining/test")}
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    parameters = sum(parameter.numel() for parameter in network.parameters())  # Tied: its W is its embedding.
    peak = 0.1 * 0.0047 * (parameters / 108e6) ** (-1 / 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    train = own.sequences("finetune_math/train", 64)
    order = train.order(own.fingerprint, 6198)  # The default of a cell.
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = peak * ((step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 1) / 18)) / 2)
        optimizer.zero_grad()
        loss(train.read(order.at(np.arange(8 * step, 8 * step + 8)))).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    after = {shard: held_out(shard) for shard in before}
    for name, shard in (("finetune_math", "finetune_math/test"), ("forgetting_math", "pretraining/test")):
        assert found[f"{name}_loss"] == pytest.approx(after[shard], abs=2e-5)
        assert found[f"{name}_loss_change"] == pytest.approx(after[shard] - before[shard], abs=2e-5)
        assert found[f"{name}_bits_per_byte"] == pytest.approx(bits(shard, after[shard]), rel=1e-5)
    assert found["finetune_math_loss_change"] < -0.005
    assert found["finetune_math_bits_per_byte_before"] == pytest.approx(
        bits("finetune_math/test", before["finetune_math/test"]), rel=1e-5
    )
    assert found["finetune_math_spectral_norm_W"] == pytest.approx(
        float(torch.linalg.matrix_norm(network.get_output_embeddings().weight.detach(), 2)), rel=1e-4
    )


def test_a_killed_finetuning_of_a_published_model_resumes(
    folder: Path, corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"task": "finetune_math", "tokens": 8 * 64 * 20, "batch_size": 8, "sequences": 20}]
    settings = {"mirror": str(folder / "mirror"), "sequence_length": 64, "measure": [], "evaluations": asked}
    loaded = load_suite(suite_files.write(folder, [MODEL], **settings))
    (checkpoint,), _ = find(loaded, None, lambda *step: None, print)
    (one,) = loaded.suite.evaluations
    monkeypatch.setattr(finetune, "CHECKPOINT_INTERVAL", 0.0)
    real, found = checkpoints.write, []
    steps: list[int] = []
    dies_at = 9

    def write(made: checkpoints.Checkpoint, store: Store, directory: str) -> None:
        real(made, store, directory)
        steps.append(made.state.step)
        if made.state.step == dies_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write", write)
    for number in range(2):
        store = begun(folder / f"store{number}")
        work = Work(loaded.suite, store.location, corpus.fingerprint, code())
        if number == 0:
            with pytest.raises(KeyboardInterrupt):
                complete(checkpoint, work)
            dies_at = 0
            steps.clear()
        assert complete(checkpoint, work)["errors"] == {}
        if number == 0:
            assert steps[0] == 10
        found.append(store.evaluation_rows(checkpoint.id, one.label, one.identity))
    assert found[0] == found[1]


class Losses:
    """The first losses are had, and the next fail."""

    def __init__(self, real: Callable[..., dict[str, float]]) -> None:
        self.real, self.calls = real, 0

    def __call__(self, *arguments: Any) -> dict[str, float]:
        self.calls += 1
        if self.calls > 1:
            raise ArithmeticError("no memory left")
        return self.real(*arguments)
