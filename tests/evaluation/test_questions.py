"""Questions and benchmarks: against lm-evaluation-harness and ai2-olmo's own classes, and against counting by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from olmo.eval.downstream import ICLMetric, OEEvalTask
from tiny import make_cell
from transformers import PreTrainedTokenizerFast

from raysweep.corpora.progress import ignore
from raysweep.corpora.questions import COLUMNS, benchmark, requests
from raysweep.corpora.texts import open_text
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation import answers, benchmarks
from raysweep.evaluation.task import Subject
from raysweep.exchange.llama import to_llama
from raysweep.model import olmo
from raysweep.model.language_model import LanguageModel
from raysweep.space.benchmarks import BENCHMARKS
from raysweep.space.evaluations import evaluation
from raysweep.store import Store
from raysweep.training.run import Run

LENGTH = 64


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path_factory.getbasetemp() / "questions"))


class Trained:
    """A cell that has learnt something, and its weights."""

    def __init__(self, corpus: TokenizedCorpus) -> None:
        self.corpus = corpus
        self.cell = make_cell(size={"width": 16}, tokens=65_536, learning_rate=0.03, sequence_length=LENGTH)
        run = Run(self.cell, corpus, reports=())
        list(run.rows())
        self.weights = run.checkpoint().model

    def subject(self, settings: Any) -> Subject:
        built = olmo.build(self.cell.shape, LENGTH, 0)
        built.load_state_dict(self.weights)
        text = open_text(settings.text, self.corpus, ignore)
        return Subject(self.cell, LanguageModel(built), self.corpus, Store("unused"), "", text=text)


@pytest.fixture(scope="module")
def trained(corpus: TokenizedCorpus) -> Trained:
    return Trained(corpus)


def values(subject: Subject, settings: Any) -> dict[str, float]:
    return {metric.name: metric.value for metric in settings.evaluate(subject)}


def harness(trained: Trained) -> HFLM:
    """lm-evaluation-harness with the same weights, as a transformers model."""
    model = to_llama(trained.cell, trained.weights, trained.corpus.manifest["end_of_text"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(trained.corpus.folder / "tokenizer.json"), eos_token="<|endoftext|>",
        model_max_length=LENGTH, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, max_length=LENGTH, device="cpu")


@pytest.mark.parametrize("name", ["copa", "boolq", "winogrande", "arc_challenge"])
def test_each_answer_has_the_probability_that_the_harness_gives_it(trained: Trained, name: str) -> None:
    """`boolq`'s passages are longer than the sequences: both cut their beginning."""
    subject = trained.subject(evaluation({"task": "benchmarks", "of": [name]}))
    rows = answers.chosen(requests(subject.text, name), 40)
    mine = answers.log_likelihoods(subject, subject.text, name, rows)
    asked = list(benchmark(name))
    pairs = [request for number in np.unique(rows[:, 0]) for request in asked[number].requests]
    theirs = harness(trained).loglikelihood(
        [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)], disable_tqdm=True
    )
    assert len(theirs) == len(mine) >= 80
    np.testing.assert_allclose(mine, [value for value, _ in theirs], atol=1e-4, rtol=0)
    assert answers.cut(rows, LENGTH).mean() > 0.9 if name == "boolq" else answers.cut(rows, LENGTH).mean() < 0.8
    # Which differ, so that an order that got mixed up would show.
    assert np.ptp(mine) > 1


def test_accuracy_is_that_of_ai2_olmos_own_metric(trained: Trained) -> None:
    """On COPA, whose contexts and answers fit and meet at a blank, where both tokenize alike."""
    subject = trained.subject(evaluation({"task": "benchmarks", "of": ["copa"]}))
    ours = values(subject, benchmarks.Settings(of=("copa",)))

    class Tokenizer:
        eos_token_id = pad_token_id = trained.corpus.manifest["end_of_text"]

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return list(trained.corpus.tokenizer.encode(text, add_special_tokens=False).ids)

    class Task(OEEvalTask):
        def doc_to_domain_conditional(self, doc: Any) -> str:
            return " "

    model = to_llama(trained.cell, trained.weights, trained.corpus.manifest["end_of_text"])
    fits = {"acc": "accuracy", "bpb": "bits_per_byte"}
    for metric_type, kind in fits.items():
        task = Task(Tokenizer(), "copa", "rc_0shot", model_ctx_len=LENGTH, metric_type=metric_type)
        metric = ICLMetric(metric_type)
        for start in range(0, len(task), 32):
            batch = task.collate_fn([task[i] for i in range(start, min(start + 32, len(task)))])
            with torch.no_grad():
                metric.update(batch, model(batch["input_ids"].clamp(min=0)).logits)
        assert ours[f"copa_{kind}"] == pytest.approx(float(metric.compute()), abs=2e-3 if kind == "accuracy" else 1e-4)
    assert ours["copa_chance"] == 0.5
    assert ours["copa_cut"] < 0.05


# The sizes of the validation splits, as their publishers have them.
SIZES = {
    "arc_challenge": 299, "arc_easy": 570, "boolq": 3270, "copa": 100, "csqa": 1221, "hellaswag": 10042, "openbookqa": 500,
    "piqa": 1838, "sciq": 1000, "socialiqa": 1954, "winogrande": 1267,
}  # fmt: skip


def test_every_benchmark_has_its_questions() -> None:
    """HellaSwag's file and some others also hold each answer without its question, which is none."""
    assert SIZES.keys() == BENCHMARKS.keys()
    for name, size in SIZES.items():
        asked = list(benchmark(name))
        assert len(asked) == size
        assert f"{size:,} " in BENCHMARKS[name]
        assert all(0 <= question.right < len(question.requests) for question in asked)


# Questions of one's own.


def write(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"folder": str(folder)}


def test_pairs_of_sentences(trained: Trained, tmp_path: Path) -> None:
    """Real sentences against the same words backwards; where the good one stands in the file changes nothing."""
    text = trained.corpus.tokenizer.decode(trained.corpus.tokens("pretraining/test")[2000:6000].tolist())
    words = [word for word in text.split() if word.isascii()]
    pieces = [words[i : i + 6] for i in range(0, 240, 6)]
    pieces = [piece for piece in pieces if len(" ".join(piece)) < LENGTH][:20]
    rows = [
        {"sentence_good": " ".join(piece), "sentence_bad": " ".join(reversed(piece)), "UID": f"part {i % 2}"}
        for i, piece in enumerate(pieces)
    ]
    on = write(tmp_path / "pairs", rows) | {"domain": "UID"}
    settings = evaluation({"task": "questions", "name": "order", "on": on})
    subject = trained.subject(settings)
    found = values(subject, settings)

    def probability(sentence: str) -> float:
        ids = [trained.corpus.manifest["end_of_text"], *trained.corpus.tokenizer.encode(sentence).ids][-LENGTH - 1 :]
        tokens = torch.tensor([ids])
        logits = (subject.language_model.hidden(tokens[:, :-1]) @ subject.language_model.unembedding.T).detach()
        return float(logits.log_softmax(-1)[0].gather(1, tokens[0, 1:, None]).sum())

    correct = [probability(row["sentence_good"]) > probability(row["sentence_bad"]) for row in rows]
    by_set = [np.mean(correct[part::2]) for part in (0, 1)]
    assert found["order_accuracy_part_0"] == pytest.approx(by_set[0])
    assert found["order_accuracy"] == pytest.approx(np.mean(by_set))
    assert len(set(correct)) == 2
    assert found["order_chance"] == 0.5
    bits = [-probability(row["sentence_good"]) / len(row["sentence_good"].encode()) / math.log(2) for row in rows]
    assert found["order_bits_per_byte"] == pytest.approx(np.mean([np.mean(bits[0::2]), np.mean(bits[1::2])]), abs=1e-5)

    turned = [{"choices": [row["sentence_bad"], row["sentence_good"]], "answer": 1, "UID": row["UID"]} for row in rows]
    again = evaluation(
        {"task": "questions", "name": "turned", "on": write(tmp_path / "turned", turned) | {"domain": "UID"}}
    )
    same = values(trained.subject(again), again)
    assert {name.replace("turned", "order"): value for name, value in same.items()} == pytest.approx(found)


def test_equal_answers_count_their_share() -> None:
    answers_of = np.array([2, 3, 2])
    starts, right = np.array([0, 2, 5]), np.array([0, 4, 5])
    found = answers._best(np.array([-1.0, -1, -2, -1, -1, -3, -2]), starts, answers_of, right)
    assert found.tolist() == [0.5, 0.5, 0.0]


def test_what_training_has_seen_is_said(trained: Trained, tmp_path: Path) -> None:
    """Questions out of the training text, questions of random words, and one too short to tell."""
    corpus = trained.corpus
    training = corpus.tokens("pretraining/train")
    end = corpus.manifest["end_of_text"]
    ends = np.flatnonzero(training[:200_000] == end)
    rng = np.random.default_rng(0)
    rows = []
    while len(rows) < 6:
        start = int(ends[len(rows)]) + 1
        text = corpus.tokenizer.decode(training[start : start + 40].tolist())
        if end not in training[start : start + 40] and text.isascii() and text.strip() == text:
            rows.append({"good": text, "bad": text[::-1]})
        else:
            ends = np.delete(ends, len(rows))
    noise = ["".join(rng.choice(list("qxzjkvw"), 60)) for _ in range(12)]
    rows += [{"good": noise[i], "bad": noise[i + 6]} for i in range(6)] + [{"good": "ab", "bad": "ba"}]
    settings = evaluation({"task": "questions", "name": "seen", "on": write(tmp_path / "q", rows)})
    subject = trained.subject(settings)
    table = requests(subject.text, "all")
    by_question = {int(row[0]): (row[COLUMNS.index("seen")], row[COLUMNS.index("long_enough")]) for row in table}
    assert [by_question[i] for i in range(13)] == [(1, 1)] * 6 + [(0, 1)] * 6 + [(0, 0)]
    found = values(subject, settings)
    assert found["seen_overlap"] == 0.5
    assert settings.text_shortfalls(subject.text, LENGTH) == [
        "questions_seen: training text has 13 tokens in a row of many questions (all 50%): see accuracy_without_overlap"
    ]
    assert subject.text.manifest["seen"] == {"questions/all": 0.5}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"good": "a"}, "no fields good and bad, and none choices and answer; there is good"),
        ({"good": "a", "bad": "a"}, "two answers are the same"),
        ({"good": "a", "bad": 3}, "two or more answers are needed, each a text"),
        ({"choices": ["a", "b"], "answer": 2}, "the right answer is 2: its number is needed, from 0 to 1"),
        ({"choices": ["a", "b"], "answer": "b"}, "the right answer is 'b': its number is needed"),
        ({"choices": ["a", "b"], "answer": 0, "context": 1}, "the context is no text"),
    ],
)
def test_a_bad_row_is_named(corpus: TokenizedCorpus, tmp_path: Path, row: dict[str, Any], said: str) -> None:
    on = write(tmp_path / "bad", [{"good": "one", "bad": "two"}, row])
    settings = evaluation({"task": "questions", "name": "mine", "on": on})
    with pytest.raises(UserError, match=r"^questions_mine: bad: pairs\.jsonl, line 2: ") as error:
        open_text(settings.text, corpus, ignore)
    assert said in str(error.value)
    skipping = evaluation({"task": "questions", "name": "mine", "on": on | {"skip_malformed": True}})
    text = open_text(skipping.text, corpus, ignore)
    assert text.manifest["malformed"]["documents"] == 1
    assert text.manifest["malformed"]["first"][0]["place"] == 2
    assert len(np.unique(requests(text, "all")[:, 0])) == 1


def test_answers_that_do_not_fit_are_left_out(trained: Trained, tmp_path: Path) -> None:
    long = "".join(np.random.default_rng(1).choice(list("qxzjkvw"), 400))
    on = write(tmp_path / "long", [{"good": "one", "bad": "two"}, {"good": "three", "bad": long}])
    settings = evaluation({"task": "questions", "name": "mine", "on": on})
    subject = trained.subject(settings)
    assert values(subject, settings)["mine_left_out"] == 0.5
    assert settings.text_shortfalls(subject.text, LENGTH) == [
        f"questions_mine leaves out 1 of 2 questions of all: answers over {LENGTH} tokens"
    ]
    settings = evaluation(
        {"task": "questions", "name": "mine", "on": write(tmp_path / "no", [{"good": "a", "bad": long}])}
    )
    with pytest.raises(UserError, match="every question of the set all has an answer of more than 64 tokens"):
        settings.check_text(trained.subject(settings).text, LENGTH)
