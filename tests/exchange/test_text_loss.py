"""The loss of other people's models on text: with begin-of-text where they have one, and refused where it says nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raysweep.errors import UserError
from raysweep.exchange.text_loss import loss_on_text

TEXTS = ["The first text, with a </s> in it.", "And a second one of some length, for two sequences.", "\u00dcnicode."]
BEGIN, END = 0, 1
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 258,
    "initializer_range": 1.0,
}  # fmt: skip


def tokenizer(begins: bool = False, normalizer: Any = None) -> Any:
    """One token a byte, begin and end of text."""
    of_bytes = Tokenizer(models.BPE())
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    if normalizer:
        of_bytes.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=258, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    of_bytes.train_from_iterator([], trainer)
    if begins:
        of_bytes.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=of_bytes, bos_token="<s>", eos_token="</s>")


def save(folder: Path, saved_tokenizer: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    saved_tokenizer.save_pretrained(folder)
    return model


def llama(**changes: Any) -> Any:
    return transformers.LlamaConfig(**SMALL | {"max_position_embeddings": 24} | changes)


@pytest.mark.parametrize("begins", [False, True])
def test_against_a_loop_over_the_tokens(tmp_path: Path, begins: bool) -> None:
    """One token at a time, each after what its sequence has before it."""
    model = save(tmp_path, tokenizer(begins), llama())
    ids: list[int] = []
    for text in TEXTS:
        # Each character that is one byte by itself, so that nothing spells the end of the text.
        own = [i for c in text for i in tokenizer()(c, add_special_tokens=False)["input_ids"]]
        assert len(own) == len(text.encode())
        ids += [*own, END]
    total, targets = 0.0, 0
    for place, token in enumerate(ids):
        if begins:
            context = [BEGIN, *ids[place - place % 24 : place]]
        elif place:
            context = ids[(place - 1) - (place - 1) % 24 : place]
        else:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([context])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, 0)[token])
        targets += 1
    found = loss_on_text(str(tmp_path), model, None, TEXTS)
    assert found["loss"] == pytest.approx(total / targets, rel=1e-5)
    content = sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / content, rel=1e-5)


def test_a_tokenizer_that_does_not_give_the_text_back_has_no_bits_per_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save(tmp_path, tokenizer(normalizer=normalizers.Lowercase()), llama())
    found = loss_on_text(str(tmp_path), model, None, TEXTS)
    assert math.isfinite(found["loss"])
    assert math.isnan(found["bits_per_byte"])
    assert "does not give the text back" in caplog.text


def test_a_model_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    for decoder in (False, True):
        folder = tmp_path / f"decoder-{decoder}"
        bert = save(folder, tokenizer(), transformers.BertConfig(**SMALL, is_decoder=decoder))
        if decoder:
            assert math.isfinite(loss_on_text(str(folder), bert, None, TEXTS)["loss"])
        else:
            with pytest.raises(UserError, match="decoder-False sees the tokens that it is to predict"):
                loss_on_text(str(folder), bert, None, TEXTS)


def test_a_tokenizer_of_another_model_or_none_is_refused(tmp_path: Path) -> None:
    small = save(tmp_path / "small", tokenizer(), llama(vocab_size=100))
    with pytest.raises(UserError, match=r"has entry \d+ and its embedding 100 rows: they are of two models"):
        loss_on_text(str(tmp_path / "small"), small, None, TEXTS)
    (tmp_path / "small" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="small has no tokenizer that can be loaded"):
        loss_on_text(str(tmp_path / "small"), small, None, TEXTS)
