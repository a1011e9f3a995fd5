"""Draws docs/design.png: the cells of a grid, of an ablation and of a Sobol sample. `python docs/design_picture.py`."""

import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

import raysweep

BASE = """
name: picture
base: {size: 4M, corpus: installed, tokens: 1e8, batch_size: 32, learning_rate: 1.0e-2, weight_decay: 0.1}
"""
DESIGNS = {
    "cross: 25 cells, 5 values of each": """
cross:
  learning_rate: [1.0e-3, 3.16e-3, 1.0e-2, 3.16e-2, 1.0e-1]
  weight_decay: [0.01, 0.0316, 0.1, 0.316, 1.0]
""",
    "ablate: 9 cells, one at a time": """
ablate:
  - {learning_rate: [1.0e-3, 3.16e-3, 3.16e-2, 1.0e-1]}
  - {weight_decay: [0.01, 0.0316, 0.316, 1.0]}
""",
    "sample: 32 cells, 32 values of each": """
sample: {count: 32, seed: 0}
over:
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  weight_decay: {log_uniform: [0.01, 1.0]}
""",
}


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), sharex=True, sharey=True, layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        for ax, (title, design) in zip(axes, DESIGNS.items(), strict=True):
            file = Path(folder) / "space.yaml"
            file.write_text(BASE + design)
            cells = raysweep.load(file).cells
            rates, decays = [cell.learning_rate for cell in cells], [cell.weight_decay for cell in cells]
            ax.plot(rates, decays, "o", color="#20639b", ms=6)
            # What each setting was tried at, along the edges.
            ax.plot(rates, [0.0062] * len(cells), "|", color="#d1495b", ms=9, mew=1.4)
            ax.plot([6.2e-4] * len(cells), decays, "_", color="#d1495b", ms=9, mew=1.4)
            ax.set(xscale="log", yscale="log", title=title, xlabel="learning rate", xlim=(5e-4, 1.6e-1))
            ax.set_ylim(0.005, 1.6)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(color="#eeeeee")
            ax.set_axisbelow(True)
    axes[0].set_ylabel("weight decay")
    figure.savefig(Path(__file__).with_name("design.png"), dpi=110)


main()
