"""Parameter counts and learning rates against the paper's table, and the forward pass against ai2-olmo's own."""

import pytest
import torch
from olmo.model import OLMo

from raysweep.model import olmo as model
from raysweep.space.size import SIZES, Shape, peak_learning_rate

# Name, N and peak learning rate: Table 1 of arXiv 2602.20433 and what follows from it (facts of the paper).
TABLE_1 = [
    ("4M", 3.466e6, 1.5e-2),
    ("8M", 7.424e6, 1.1e-2),
    ("16M", 16.81e6, 8.7e-3),
    ("28M", 28.17e6, 7.4e-3),
    ("40M", 41.49e6, 6.5e-3),
    ("75M", 74.03e6, 5.3e-3),
]


@pytest.mark.parametrize(("name", "parameters", "learning_rate"), TABLE_1)
def test_table_1(name: str, parameters: float, learning_rate: float) -> None:
    shape = Shape(SIZES[name], 6, 4, 50304)
    assert float(f"{shape.parameters:.4g}") == parameters
    # The table prints two digits, and 1.147e-2 as 1.1e-2.
    assert peak_learning_rate(shape.parameters) == pytest.approx(learning_rate, rel=0.045)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(64, 6, 4, 50304), Shape(8, 6, 4, 512), Shape(24, 3, 2, 300), Shape(24, 3, 2, 300, mlp_ratio=7),
        Shape(24, 3, 2, 300, qk_norm=True), Shape(24, 3, 2, 300, tied=True, mlp_ratio=1, qk_norm=True),
    ],
)  # fmt: skip
def test_parameters_are_olmo_s_own_count(shape: Shape) -> None:
    built = model.build(shape, 16, seed=0)
    embedding = shape.vocabulary * shape.width
    # A tied matrix counts once, as the unembedding; OLMo counts it as the embedding.
    assert built.num_params(include_embedding=False) == shape.parameters - (embedding if shape.tied else 0)
    assert built.num_params() == shape.parameters + (0 if shape.tied else embedding)


def test_seed_decides_the_weights() -> None:
    shape = Shape(8, 2, 2, 300)
    first, again, other = (model.build(shape, 16, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.ff_out.weight"], other["transformer.ff_out.weight"])
    deviations = first["transformer.wte.weight"]
    assert float(deviations.std()) == pytest.approx(0.02, rel=0.1)
    assert float(deviations.abs().max()) <= 0.06  # truncated at three standard deviations


def test_a_parallel_block_adds_what_attention_and_mlp_make_of_the_same_input() -> None:
    """x + attention(norm x) + mlp(norm x), from ai2-olmo's sequential block with either half silenced."""
    shape = Shape(16, 1, 4, 300)
    ids = torch.randint(0, 300, (2, 32))
    weights = model.build(shape, 32, seed=0).state_dict()

    def states(block: str, *silent: str) -> torch.Tensor:
        olmo = model.build(Shape(16, 1, 4, 300, block), 32, seed=0)
        olmo.load_state_dict({n: torch.zeros_like(w) if n.endswith(silent) else w for n, w in weights.items()})
        olmo.transformer.ln_f = torch.nn.Identity()
        return olmo(ids).logits.detach()

    attention, mlp = "blocks.0.attn_out.weight", "blocks.0.ff_out.weight"
    x = states("sequential", attention, mlp)
    torch.testing.assert_close(x, model.build(shape, 32, seed=0).transformer.wte(ids))
    wanted = states("sequential", mlp) + states("sequential", attention) - x
    torch.testing.assert_close(states("parallel"), wanted)
    assert (states("sequential") - wanted).abs().max() > 1e-6


def test_forward_gives_the_states_that_olmo_unembeds() -> None:
    """`model.build` takes the unembedding out of the forward pass; ai2-olmo's own model with it must agree."""
    ours = model.build(Shape(16, 2, 4, 300), 32, seed=0)
    theirs = OLMo(ours.config)
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randint(0, 300, (2, 32))
    hidden = ours(inputs).logits
    torch.testing.assert_close(hidden @ ours.transformer.ff_out.weight.T, theirs(inputs).logits)
