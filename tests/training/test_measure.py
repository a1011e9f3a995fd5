"""What is measured while a model trains: against another reading of the same model, and the same after any stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.evaluation import representation
from raysweep.evaluation.run import run as evaluate
from raysweep.exchange.llama import to_llama
from raysweep.model import geometry, matrices
from raysweep.model.metrics import Matrix
from raysweep.space.measure import Measurement, matrix_names, wanted
from raysweep.store import Store
from raysweep.store.schemas import MEASURES, SPECTRA, TRAJECTORIES
from raysweep.sweep.cell_tables import write_cell_tables
from raysweep.training import checkpoint
from raysweep.training.measure import Measures, _Moment
from raysweep.training.resume import train_to_end
from raysweep.training.run import Run

EVERYTHING = [
    Measurement(of=("*embedding", "blocks.*"), metrics=("stable_rank", "gini")),
    Measurement(of=("hidden.*",), metrics=("effective_rank", "cka"), against="hidden.final", sequences=16),
    Measurement(of=("hidden.1",), positions="all", metrics=("isoscore",), sequences=4, when=(0.5, 1.0)),
    Measurement(of=("gradients.unembedding", "gradients.blocks.2.*"), metrics=("frobenius_norm",)),
    Measurement(of=("unembedding",), tokens="rare", metrics=("cosine",)),
    Measurement(of=("blocks.0.heads.*",), metrics=("stable_rank",), when=(1.0,)),
]


@pytest.fixture(scope="module")
def run(corpus: TokenizedCorpus) -> Run:
    run = Run(make_cell(tokens=1024, reports=2), corpus, measure=EVERYTHING)
    list(run.rows())
    return run


def moment(run: Run, corpus: TokenizedCorpus) -> _Moment:
    measures = Measures(run.cell, corpus, [], 4)
    return _Moment(measures, run.state.step, run.model, Matrix(run.model.unembedding))


def test_weights_are_those_that_transformers_has(run: Run) -> None:
    """The exported Llama is another reading of the same weights."""
    size = run.cell.size
    parameters = {name: parameter.detach() for name, parameter in run.parameters.items()}
    llama = to_llama(run.cell, parameters, end_of_text=0)
    head = size.width // size.heads
    seen = 0
    for name in matrix_names(size):
        if not name.startswith("blocks."):
            continue
        seen += 1
        _, block, *part = name.split(".")
        layer = llama.model.layers[int(block)]
        attention = {
            "query": layer.self_attn.q_proj.weight, "key": layer.self_attn.k_proj.weight,
            "value": layer.self_attn.v_proj.weight, "output": layer.self_attn.o_proj.weight.T,
        }  # fmt: skip
        if part[0] == "mlp":
            kept = getattr(layer.mlp, f"{part[1]}_proj").weight
            theirs = kept.T if part[1] == "down" else kept
        elif part[0] == "attention":
            theirs = attention[part[1]]
        else:
            rows = slice(int(part[1]) * head, (int(part[1]) + 1) * head)
            # What a head writes for each unit vector that it reads, and how two of them attend.
            products = {
                "ov": lambda rows=rows, a=attention: (torch.eye(size.width) @ a["value"][rows].T) @ a["output"][rows],
                "qk": lambda rows=rows, a=attention: (
                    (torch.eye(size.width) @ a["query"][rows].T) @ (torch.eye(size.width) @ a["key"][rows].T).T
                ),
            }
            theirs = products[part[2]]() if part[2] in products else attention[part[2]][rows]
        ours = matrices.weight(name, parameters, size)
        assert ours.shape[1] == size.width
        assert torch.allclose(ours, theirs.to(ours.dtype), atol=1e-6), name
        if name.endswith((".ov", ".qk")):
            # The other singular values are 0, and not what float32 rounds them to.
            values = torch.linalg.svdvals(ours)
            assert int((values > 1e-10 * values[0]).sum()) == head
    assert seen == size.depth * (7 + 6 * size.heads)


def test_hidden_states_are_those_that_transformers_has(run: Run, corpus: TokenizedCorpus) -> None:
    llama = to_llama(run.cell, {n: p.detach() for n, p in run.parameters.items()}, end_of_text=0)
    shard = corpus.sequences("pretraining/test", run.cell.sequence_length)
    tokens = torch.from_numpy(shard.read(shard.sample(16))[:, :-1])
    with torch.no_grad():
        theirs = llama(tokens, output_hidden_states=True).hidden_states
    ours = moment(run, corpus)._states(16, "last")
    depth = run.cell.size.depth
    assert list(ours) == [*map(str, range(depth + 1)), "final"]
    # transformers has the last one after its norm.
    for name, states in zip([*map(str, range(depth)), "final"], theirs, strict=True):
        assert torch.allclose(ours[name], states[:, -1], atol=1e-5), name
    everywhere = moment(run, corpus)._states(16, "all")
    assert torch.allclose(everywhere["3"], theirs[3].flatten(0, 1), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(llama.model.norm(ours[str(depth)]), ours["final"], atol=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_states_end_in_what_the_loss_reads(corpus: TokenizedCorpus, compile: bool) -> None:
    run = Run(make_cell(block="parallel"), corpus)
    if compile:
        run.model.olmo.compile(backend="eager")
    tokens = torch.from_numpy(run._read(0)[:, :-1])
    with torch.no_grad():
        states = run.model.states(tokens)
        assert len(states) == run.cell.size.depth + 2
        assert torch.allclose(states[-1], run.model.hidden(tokens), atol=1e-6)


def test_a_gradient_is_that_of_the_next_step(run: Run, corpus: TokenizedCorpus) -> None:
    longer = make_cell(tokens=2048, gradient_clipping=1e9)
    other = Run(longer, corpus)
    for step in range(3):
        other._step(step)
    other.state.step = 3
    expected = moment(other, corpus)._gradients
    kept = other.optimizer.zero_grad
    other.optimizer.zero_grad = lambda *_, **__: None  # type: ignore[method-assign]
    other._step(3)
    for name, parameter in other.parameters.items():
        assert parameter.grad is not None
        assert torch.allclose(expected[name], parameter.grad, atol=1e-6), name
    other.optimizer.zero_grad = kept  # type: ignore[method-assign]


def test_rows_of_tokens_by_how_often_they_occur(run: Run, corpus: TokenizedCorpus) -> None:
    counts = np.bincount(np.asarray(corpus.tokens("pretraining/train")), minlength=run.cell.shape.vocabulary)
    measures = moment(run, corpus)._measures
    parts = {
        name: measures.rows_of_tokens(name, torch.device("cpu")).numpy() for name in ("frequent", "rare", "unseen")
    }
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(run.cell.shape.vocabulary))
    assert (counts[parts["unseen"]] == 0).all()
    assert counts[parts["frequent"]].min() >= counts[parts["rare"]].max() >= counts[parts["rare"]].min() > 0
    assert len(parts["frequent"]) == -(-int((counts > 0).sum()) // 10)


def test_the_tables(run: Run, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    again = Run(run.cell, corpus, measure=EVERYTHING)
    train_to_end(again, store, store.run_directory(run.cell.id), None, 2, 300.0)
    write_cell_tables(run.cell, store, 0)
    measured = store.read_rows(store.measures_file(run.cell.id), MEASURES) or []

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["step"], row["matrix"], row["metric"]

    found = [{k: v for k, v in row.items() if k != "cell"} for row in measured]
    assert found == sorted(run.state.measures, key=key)
    assert {row["cell"] for row in measured} == {run.cell.id}
    of_steps = {one.label: one.spectrum for one in wanted(EVERYTHING, run.cell)}
    assert {(row["matrix"], row["step"]) for row in measured} <= {
        (m, s) for m, steps in of_steps.items() for s in steps
    }
    assert {row["step"] for row in measured if row["matrix"] == "hidden.1[all]"} == {4, 8}
    assert {row["step"] for row in measured if ".heads." in row["matrix"]} == {8}
    assert next(row["settings"] for row in measured if row["matrix"] == "hidden.2") == "16 sequences"
    # Whatever one thinks of later follows from the spectra.
    spectra = store.read_rows(store.spectra_file(run.cell.id), SPECTRA) or []
    of_w = {row["step"]: np.array(row["singular_values"]) for row in spectra if row["matrix"] == "unembedding"}
    for row in store.read_rows(store.trajectory_file(run.cell.id), TRAJECTORIES) or []:
        shares = of_w[row["step"]] / of_w[row["step"]].sum()
        assert np.exp(-(shares * np.log(shares)).sum()) / len(shares) == pytest.approx(
            row["effective_rank_W"], rel=1e-9
        )
    by_step = {(row["matrix"], row["step"]): np.array(row["singular_values"]) for row in spectra}
    for row in measured:
        if row["metric"] == "stable_rank":
            values = by_step[row["matrix"], row["step"]]
            assert (values**2).sum() / values[0] ** 2 == pytest.approx(row["value"], rel=1e-9)


def test_without_measure_the_singular_values_of_the_unembedding_are_kept(
    corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    cell, store = make_cell(tokens=1024, reports=2), Store(str(tmp_path))
    train_to_end(Run(cell, corpus), store, store.run_directory(cell.id), None, 2, 300.0)
    write_cell_tables(cell, store, 0)
    assert store.read(store.measures_file(cell.id)) is None
    spectra = store.read_rows(store.spectra_file(cell.id), SPECTRA) or []
    assert [(row["matrix"], row["step"]) for row in spectra] == [("unembedding", step) for step in cell.report_steps]


def test_interrupted_anywhere_it_is_the_same_to_the_last_bit(run: Run, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    for stop in run.cell.report_steps:
        first = Run(run.cell, corpus, measure=EVERYTHING)
        for _ in first.rows():
            if first.state.step == stop:
                break
        store = Store(str(tmp_path))
        checkpoint.write(first.checkpoint(), store, str(stop))
        second = Run(run.cell, corpus, measure=EVERYTHING, checkpoint=checkpoint.read(store, str(stop)))
        list(second.rows())
        assert second.state.measures == run.state.measures
        assert second.state.rows == run.state.rows
        assert second.spectra.keys() == run.spectra.keys()
        assert all(torch.equal(values, run.spectra[key]) for key, values in second.spectra.items())


def test_measuring_changes_nothing_of_the_training(run: Run, corpus: TokenizedCorpus) -> None:
    plain = Run(run.cell, corpus)
    list(plain.rows())
    assert plain.state.rows == run.state.rows
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters.values(), run.parameters.values(), strict=True))


def test_the_last_hidden_state_is_that_of_the_evaluation(run: Run, corpus: TokenizedCorpus, tmp_path: Path) -> None:
    rows, _ = evaluate(
        run.cell, representation.Settings(task="representation", sequences=16), run.checkpoint().model, corpus,
        Store(str(tmp_path)), torch.device("cpu"),
    )  # fmt: skip
    theirs = next(row["value"] for row in rows if row["metric"] == "effective_rank_H")
    ours = [r["value"] for r in run.state.measures if (r["matrix"], r["metric"]) == ("hidden.final", "effective_rank")]
    assert ours[-1] == pytest.approx(theirs, rel=1e-6)


def test_a_model_that_diverged_has_no_numbers(corpus: TokenizedCorpus) -> None:
    run = Run(make_cell(learning_rate=1e30, tokens=8192), corpus, measure=EVERYTHING)
    list(run.rows())
    assert run.state.diverged


def test_an_older_checkpoint_has_no_spectra(run: Run, tmp_path: Path) -> None:
    """As versions before this wrote them: two files and a state without `measures`."""
    made = checkpoint.copied(run.checkpoint())
    made.spectra, made.state.measures = {}, []
    store = Store(str(tmp_path))
    checkpoint.write(made, store, "old")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == [
        "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    assert b"measures" not in (tmp_path / "old/state.json").read_bytes()
    assert checkpoint.read(store, "old").spectra == {}


def test_geometry_of_the_unembedding_is_computed_once(run: Run) -> None:
    values = {r["metric"]: r["value"] for r in run.state.measures if r["matrix"] == "unembedding" and r["step"] == 8}
    assert values["stable_rank"] == pytest.approx(
        float((geometry.singular_values(run.model.unembedding) ** 2).sum())
        / geometry.spectral_norm(run.model.unembedding) ** 2
    )
