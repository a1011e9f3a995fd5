"""One text under many tokenizers: the same documents, the same bytes, and losses that are transformers' own."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import published_layouts as layouts
import pytest
import torch
import torch.nn.functional as F
from tiny import make_cell
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raysweep.corpora import questions
from raysweep.corpora.texts import open_text
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.corpora.tokenizer import bytes_of_tokens
from raysweep.errors import UserError
from raysweep.evaluation import answers, by_domain, in_distribution
from raysweep.evaluation.loss import Settings as LossSettings
from raysweep.evaluation.loss import evaluate as evaluate_loss
from raysweep.evaluation.task import Subject
from raysweep.space.corpus import Source
from raysweep.space.text import Text
from raysweep.store import Store
from raysweep.suites.model import load_model
from raysweep.suites.text import documents, retokenized

CPU = torch.device("cpu")
SHARD = in_distribution.SHARD
LENGTH = 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: TokenizedCorpus) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


def texts_of(corpus: TokenizedCorpus, shard: str) -> list[str]:
    tokens = np.asarray(corpus.tokens(shard)[:])
    ends = np.flatnonzero(tokens == corpus.manifest["end_of_text"])
    parts = [part[:-1] for part in np.split(tokens, ends + 1) if len(part) > 1]
    return [corpus.tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in parts]


def metaspace() -> Any:
    """A tokenizer of words, as Llama's: a blank before the first, bytes for what it does not know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    spelled = json.loads(tokenizer.to_str())
    # Pieces as others, and not special: they are text.
    spelled["added_tokens"] = [one for one in spelled["added_tokens"] if one["content"] not in bytes_]
    made = Tokenizer.from_str(json.dumps(spelled))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def test_every_tokenizer_has_the_same_documents(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    found = {}
    for layout, write in layouts.LAYOUTS.items():
        write(tmp_path / layout, 1)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / layout)
        own = retokenized(corpus, layout, tokenizer, 50304, 30_000)
        assert own.shards == corpus.shards
        found[layout] = {shard: texts_of(own, shard) for shard in own.shards}
    one = found["gpt_neox"]
    # NFC is what the corpus is in already, so that nothing is lost on the way.
    assert all(other == one for other in found.values())
    for shard, texts in one.items():
        size = sum(len(text.encode()) for text in texts)
        whole = texts_of(corpus, shard)
        if sum(len(text.encode()) for text in whole) <= 30_000:
            assert texts == whole
        else:
            assert 15_000 < size < 45_000
            # Whole documents, or their beginnings as far as a blank.
            everything = "\n\0".join(["", *whole, ""])
            assert all(f"\n\0{text}" in everything for text in texts)


def test_documents_are_from_all_over_a_large_shard(corpus: TokenizedCorpus) -> None:
    whole = texts_of(corpus, "pretraining/train")
    place = {text[:60]: i / len(whole) for i, text in enumerate(whole)}
    places = [place[text[:60]] for text in documents(corpus, "pretraining/train", 60_000) if text[:60] in place]
    assert len(places) > 20
    assert min(places) < 0.1
    assert max(places) > 0.9
    assert 0.35 < float(np.mean(places)) < 0.65


class _Spelled:
    """A built corpus whose tokens are code points, with 0 between documents."""

    def __init__(self, texts: list[str]) -> None:
        said = {"bytes": sum(len(text.encode()) for text in texts), "documents": len(texts)}
        self.manifest = {"end_of_text": 0, "shards": {"s": said}}
        self._tokens = np.concatenate([np.array([*map(ord, text), 0]) for text in texts])
        self.tokenizer = self

    def tokens(self, shard: str) -> np.ndarray:
        return self._tokens

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


def test_text_of_several_bytes_a_character_is_from_all_over_too() -> None:
    texts = [f"{i:03} " + " ".join(["한국어로 쓴 글"] * 2_000) for i in range(128)]
    asked = 640_000
    found = list(documents(_Spelled(texts), "s", asked))  # type: ignore[arg-type]
    assert len({text[:3] for text in found}) == 64
    assert max(len(text.encode()) for text in found) <= asked / 64 + 30
    assert sum(len(text.encode()) for text in found) == pytest.approx(asked, rel=0.01)


def test_bytes_of_tokens_are_those_of_their_text(corpus: TokenizedCorpus) -> None:
    for tokenizer in (corpus.tokenizer, metaspace().backend_tokenizer):
        sizes = bytes_of_tokens(tokenizer, tokenizer.get_vocab_size())
        for text in ("one two  three", "naïve café", "日本語 \n\t x"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert int(sizes[ids].sum()) - len(text.encode()) in (0, 1), text


@pytest.mark.parametrize("layout", list(layouts.LAYOUTS))
def test_losses_are_those_of_transformers_on_the_same_tokens(
    layout: str, corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    layouts.LAYOUTS[layout](tmp_path / "m", 5, step=100)
    model, tokenizer = load_model("m", tmp_path / "m", CPU)
    rows = model.loaded.get_input_embeddings().weight.shape[0]
    own = retokenized(corpus, "m", tokenizer, rows, 20_000)
    cell = make_cell(sequence_length=LENGTH, tokens=4 * LENGTH)
    subject = Subject(cell, model, own, Store(str(tmp_path)), "x")
    found = in_distribution.loss(subject, 10_000)
    # All whole sequences of the shard, each with the token after it.
    tokens = np.asarray(own.tokens(SHARD)).astype(np.int64)
    count = (len(tokens) - 1) // LENGTH
    total = content = 0.0
    with torch.no_grad():
        for i in range(count):
            ids = torch.from_numpy(tokens[i * LENGTH : (i + 1) * LENGTH + 1])
            begin = [] if tokenizer("x")["input_ids"][0] != tokenizer.bos_token_id else [tokenizer.bos_token_id]
            logits = model.loaded(torch.tensor([[*begin, *ids[:-1].tolist()]])).logits[0, len(begin) :]
            total += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
            content += sum(
                len(tokenizer.decode([t]).encode()) if t != own.manifest["end_of_text"] else 0 for t in ids[1:]
            )
    assert found == pytest.approx(total / (count * LENGTH), rel=1e-5)
    bits = by_domain.losses(subject, own, "pretraining/test", 10_000)[""][1]
    # A token that is half a character decodes to three bytes: few are.
    assert bits == pytest.approx(total / math.log(2) / content, rel=0.02)


def test_a_text_of_an_evaluation_has_no_overlap(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """What others trained on nobody here knows."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    settings = LossSettings(name="fox", on=(Source(folder=str(tmp_path / "docs")),))
    built = open_text(settings.text, corpus, lambda progress: None)
    layouts.gpt_neox(tmp_path / "m", 5)
    model, tokenizer = load_model("m", tmp_path / "m", CPU)
    own = retokenized(built, "m", tokenizer, 640, 10**6)
    assert [texts_of(own, shard) for shard in own.shards] == [texts_of(built, shard) for shard in built.shards]
    cell = make_cell(sequence_length=LENGTH, tokens=4 * LENGTH)
    subject = Subject(cell, model, own, Store(str(tmp_path)), "x", text=own)
    names = {metric.name for metric in evaluate_loss(subject, settings)}
    assert {"fox_loss", "fox_bits_per_byte"} <= names
    assert not any("overlap" in name for name in names)


def test_questions_are_the_same_under_another_tokenizer(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    built = open_text(Text(name="q", role="questions", questions=("sciq",)), corpus, lambda progress: None)
    layouts.llama(tmp_path / "m", 5, context=4096)
    model, tokenizer = load_model("m", tmp_path / "m", CPU)
    own = retokenized(built, "m", tokenizer, 512, 1)
    before, after = (questions.asked_of(text, "sciq") for text in (built, own))
    assert before == after
    assert len(before) == len(list(questions.benchmark("sciq")))
    cell = make_cell(sequence_length=2048, tokens=4 * 2048)
    subject = Subject(cell, model, own, Store(str(tmp_path)), "x", text=own)
    found = answers.measured(subject, "sciq", 3)
    assert math.isnan(found["overlap"])
    assert math.isnan(found["accuracy_without_overlap"])
    # By hand, of the first question that was asked.
    rows = answers.fitting(answers.chosen(questions.requests(own, "sciq"), 3), 2048)
    scores = answers.log_likelihoods(subject, own, "sciq", rows)
    context, answer = before[0].requests[1]
    bare = context.rstrip()
    first = tokenizer(bare, add_special_tokens=False)["input_ids"]
    both = tokenizer(context + answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model.loaded(torch.tensor([[tokenizer.bos_token_id, *both[:-1]]])).logits[0].log_softmax(-1)
    wanted = sum(float(logits[i, both[i]]) for i in range(len(first), len(both)))
    assert scores[1] == pytest.approx(wanted, rel=1e-4)


def test_a_tokenizer_that_changes_the_text_is_refused(corpus: TokenizedCorpus) -> None:
    lower = metaspace()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="m: its tokenizer does not give the text back"):
        retokenized(corpus, "m", lower, 1000, 20_000)
    assert retokenized(corpus, "m", metaspace(), 1000, 20_000).shards == corpus.shards
