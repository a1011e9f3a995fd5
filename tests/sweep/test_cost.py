"""What a sweep is taken to cost: its operations counted again, and what a measured device changes."""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from traffic import Traffic, as_on_a_gpu

from benchmarks import cpu_core
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
# What `cost.py` says that its constants are fitted to.
STUDIES = ("mini", "interventions", "mini-rate", "saturation")


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
@pytest.mark.parametrize("size", ["4M", "28M", "75M"])
def test_bytes_are_those_of_the_operations(size: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the paper's models, without data, at their real shapes: the smallest, the largest and one between."""
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


def test_seconds_of_a_core_by_hand() -> None:
    """It trains in float32, which moves twice the bytes, and each step costs something by itself."""
    device = cost.Device(1e11, 1e-10, 1e-11, "x", seconds_per_step=0.25, gpu=False)
    few, many = SIZES["4M"], SIZES["4M"].model_copy(update={"batch_size": SIZES["4M"].batch_size // 4})
    assert many.steps == pytest.approx(4 * few.steps, rel=1e-5)
    moved = 12 * 50_304 + (420 + 820 * 6) * 64
    flop = 6 * (6 * 10 * 64**2 + 50_304 * 64 + 13 * 64) + 6 * 2048 * 64 * 6
    of_tokens = few.steps * few.tokens_per_step * (2 * moved * 1e-10 + flop * 1e-11)
    assert device.seconds(few) == pytest.approx(of_tokens + 0.25 * few.steps)
    assert device.seconds(many) == pytest.approx(of_tokens + 0.25 * 4 * few.steps, rel=1e-5)
    assert device.seconds(few.model_copy(update={"precision": "float32"})) == device.seconds(few)


def test_the_core_s_constants_are_what_the_published_cells_took() -> None:
    """Fitted again, to cells whose seconds are known, and to those of results/."""
    cells = [cell for folder in STUDIES for cell, _ in cpu_core.trained(ROOT / "results" / folder)]
    planted = cost.Device(1e11, 3e-11, 2e-11, "x", seconds_per_step=0.01, gpu=False)
    again = cpu_core.fitted([(cell, planted.seconds(cell)) for cell in cells])
    for name in ("seconds_per_step", "seconds_per_byte", "seconds_per_flop"):
        assert getattr(again, name) == pytest.approx(getattr(planted, name), rel=1e-6)
    published = cpu_core.fitted([one for folder in STUDIES for one in cpu_core.trained(ROOT / "results" / folder)])
    ours = cost.DEVICES["CPU core"]
    assert ours.seconds_per_step == pytest.approx(published.seconds_per_step, rel=0.1)
    assert ours.seconds_per_byte == pytest.approx(published.seconds_per_byte, rel=0.1)
    assert ours.seconds_per_flop == pytest.approx(published.seconds_per_flop, rel=0.1)


def test_without_a_gpu_the_core_comes_first_and_a_small_batch_takes_longer() -> None:
    space = read.load(ROOT / "search_spaces/demo.yaml")
    found = cost.plan(space)
    assert next(iter(found["devices"])) == "CPU core"
    assert next(iter(cost.plan(PAPER)["devices"])) == "A100 40 GB"
    shares = {one["id"]: one["share"] for one in found["most_expensive"]}
    seconds = {cell.id: cost.DEVICES["CPU core"].seconds(cell) for cell in space.cells}
    assert shares == pytest.approx({cell: seconds[cell] / sum(seconds.values()) for cell in shares})


def test_time_on_a_machine_is_that_of_the_cells_that_train_together() -> None:
    space = read.load(ROOT / "search_spaces/demo.yaml")
    seconds = [cost.DEVICES["CPU core"].seconds(cell) for cell in space.cells]
    assert cost.wall_clock(space, 2) == pytest.approx(sum(seconds) / 2)
    # More cores than cells do not help, and no cell is shorter than itself.
    assert cost.wall_clock(space, 1000) == max(seconds)
    wide = space.resources.model_copy(update={"train": space.resources.train.model_copy(update={"cpus": 2})})
    two_each = space.model_copy(update={"resources": wide})
    assert cost.wall_clock(two_each, 3) == pytest.approx(sum(seconds) / 2)
    assert cost.wall_clock(two_each, 1) is None


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


@pytest.mark.parametrize(("size", "short"), [(1_000_000, True), (8_000_000, False)])
def test_text_that_is_too_little_for_the_cells_is_said_before_it_is_read(
    size: int, short: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The longest cell trains on 1M tokens, for which some 4 MB are needed."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/one.txt").write_bytes(b"a" * size)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nbase: {size: {width: 16}, batch_size: 4, tokens: 1e6, sequence_length: 128, corpus: "
        f"{{name: mine, tokenizer: bpe, vocabulary: 512, pretraining: {{folder: {tmp_path / 'texts'}}}}}}}\n",
        encoding="utf-8",
    )
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(file)])
    assert not ended.value.code
    said = "corpus mine: 1MB of text are some 250k tokens, and the longest cell trains on 1M"
    assert (said in caplog.text) is short
