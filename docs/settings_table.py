"""Prints the table of docs/design.md: what each setting changes. `python docs/settings_table.py [FOLDER]`."""

import sys
from pathlib import Path

import pandas as pd

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "results" / "settings")
COLUMNS = {
    "in_distribution_loss": "in distribution", "out_of_distribution_loss": "out of it",
    "quantized_4bit_in_distribution_loss_change": "4-bit GPTQ adds", "finetune_python_loss": "fine-tuned on Python",
    "forgetting_python_loss_change": "forgets", "sciq_bits_per_byte": "SciQ, bits per byte",
    "effective_rank_W": "rank of W", "effective_rank_H": "rank of H", "cosine_W": "cosine of W",
}  # fmt: skip


def main() -> None:
    cells = pd.read_parquet(FOLDER / "results.parquet")
    settings = cells.columns[: list(cells.columns).index("status")].difference(["id", "parameters", "flops", "size"])
    base = cells.iloc[0]
    seeds = cells[cells["seed"] != base["seed"]]
    rows = []
    for _, cell in cells[~cells["id"].isin(seeds["id"])].iterrows():
        changed = [f"{name} {_short(cell[name])}" for name in settings if _differs(cell[name], base[name])]
        if cell["corpus_fingerprint"] != base["corpus_fingerprint"]:
            changed.append("a fifth of the corpus")
        rows.append((", ".join(changed) or "**base**", *(cell[name] for name in COLUMNS)))
    rows.append(("(deviation of three seeds)", *pd.concat([cells.head(1), seeds])[list(COLUMNS)].std()))
    print("| | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for name, *values in rows:
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _differs(one: object, other: object) -> bool:
    return one != other and not (pd.isna(one) and pd.isna(other))


main()
