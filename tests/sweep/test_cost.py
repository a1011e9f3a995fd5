"""What a sweep is taken to cost: its operations counted again, and what a measured device changes."""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from traffic import Traffic, as_on_a_gpu

from raysweep.cli.main import main
from raysweep.errors import UserError
from raysweep.model import kernels, loss, olmo
from raysweep.model.language_model import LanguageModel
from raysweep.space import read
from raysweep.space.cell import Cell
from raysweep.sweep import cost

ROOT = Path(__file__).parents[2]
PAPER = read.load(ROOT / "search_spaces/paper.yaml")
SIZES = {cell.size.label: cell for cell in PAPER.cells}


def counted(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Bytes for each token of the blocks and of the loss, forward and backward, of a micro-batch without data."""

    traffic = Traffic()
    as_on_a_gpu(traffic, monkeypatch)
    monkeypatch.setattr(kernels, "supports", lambda *model: False)
    # The weights are replaced by some without data.
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **settings: tensor)
    model, tokens = olmo.build(cell.shape, cell.sequence_length, 0), 4 * cell.sequence_length
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape))
        language_model = LanguageModel(model)
        sequences = torch.zeros(4, cell.sequence_length + 1, dtype=torch.int64)
        with traffic:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = language_model.hidden(sequences[:, :-1])
            hidden.sum().backward()
        of_blocks = traffic.bytes
        states = torch.empty(tokens, cell.shape.width, requires_grad=True)
        with traffic:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss.unembedding_cross_entropy(states, language_model.unembedding, sequences[:, 1:])
            value.backward()
    return of_blocks / tokens, (traffic.bytes - of_blocks) / tokens


@pytest.mark.parametrize("block", ["sequential", "parallel"])
@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_those_of_the_operations(size: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of every size of the paper, without data, at its real shapes."""
    cell = SIZES[size].model_copy(update={"block": block})
    of_blocks, of_loss = counted(cell, monkeypatch)
    moved, _, _ = cost.per_token(cell)
    assert of_blocks + of_loss == pytest.approx(moved, rel=0.03)
    assert of_loss == pytest.approx(12 * cell.shape.vocabulary + 420 * cell.shape.width, rel=0.03)


def test_seconds_by_hand() -> None:
    device = cost.Device(peak=1e14, seconds_per_byte=1e-12, seconds_per_flop=2e-14, source="x")
    cell = SIZES["4M"]
    moved = 12 * 50_304 + (420 + 820 * 6) * 64
    flop = 6 * (6 * 10 * 64**2 + 50_304 * 64 + 13 * 64) + 6 * 2048 * 64 * 6
    assert device.seconds(cell) == pytest.approx(cell.steps * cell.tokens_per_step * (moved * 1e-12 + flop * 2e-14))


def test_small_models_reach_less_of_a_gpu_than_large_ones() -> None:
    found = cost.plan(PAPER)["devices"]["H100"]
    shares = list(found["utilisation_of_sizes"].values())
    assert list(found["utilisation_of_sizes"]) == ["4M", "8M", "16M", "28M", "40M", "75M"]
    assert shares == sorted(shares)
    assert shares[0] < found["utilisation"] < shares[-1]
    whole = sum(cell.flops for cell in PAPER.cells)
    assert found["hours"] == pytest.approx(whole / (found["utilisation"] * 989e12) / 3600)


def test_the_longest_cells_come_first() -> None:
    longest = cost.plan(PAPER)["most_expensive"]
    assert longest[0]["id"].startswith("75M-128B")
    assert [cell["share"] for cell in longest] == sorted((cell["share"] for cell in longest), reverse=True)
    # 128B of 584B tokens of each size; 75M is the costliest of six.
    assert 128 / 584 / 6 < longest[0]["share"] < 128 / 584


def test_a_measured_device_comes_first_and_a_price_makes_dollars(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    device = {"name": "NVIDIA L4", "peak": 121e12, "seconds_per_byte": 5e-12, "seconds_per_flop": 3e-14}
    file.write_text(json.dumps({"device": device}))
    found = cost.plan(PAPER, file, {"H100": 2.5})["devices"]
    assert next(iter(found)) == "NVIDIA L4, measured"
    assert found["H100"]["dollars"] == pytest.approx(2.5 * found["H100"]["hours"])
    assert "dollars" not in found["L4"]
    assert found["NVIDIA L4, measured"]["source"] == "measured"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"device": 3}', '{"device": {"name": "x", "peak": -1, "seconds_per_byte": 1}}']
)
def test_a_file_that_no_benchmark_wrote_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"gpu\.json is not what `python -m benchmarks\.gpu --output FILE` writes"):
        cost.plan(PAPER, file)
    with pytest.raises(UserError, match="missing"):
        cost.plan(PAPER, tmp_path / "missing.json")


def test_a_price_of_no_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"--price H10: no such device; allowed: .*did you mean 'H100'"):
        cost.plan(PAPER, prices={"H10": 2})


def test_a_folder_that_is_not_here_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The machine that plans need not have the text; the one that runs must."""
    source = (ROOT / "search_spaces/mini-rate.yaml").read_text(encoding="utf-8")
    corpus = "{name: installed, tokenizer: bpe, vocabulary: 1536}"
    assert corpus in source
    mine = corpus.replace("installed", "mine").replace("}", f", pretraining: {{folder: {tmp_path / 'texts'}}}}}")
    file = tmp_path / "mini-rate.yaml"
    file.write_text(source.replace(corpus, mine), encoding="utf-8")
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(file)])
        assert not ended.value.code
        said.append(caplog.text)
        caplog.clear()
        (tmp_path / "texts").mkdir(exist_ok=True)
    assert f"{tmp_path / 'texts'}: no such folder here" in said[0]
    assert "no such folder" not in said[1]
