"""Documents that nobody would wish for."""

import json
import random
from pathlib import Path

WORDS = ["a", "sweep", "of", "small", "models", "over", "every", "size", "and", "rate"]


def prose(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


# A hundred megabytes without a line break, half of it without a space.
LONG_LINE = 100_000_000

TEXTS = {
    "empty": list,
    "one": lambda: [prose(500, 0)],
    "duplicates": lambda: [prose(500, 0)] * 1000,
    "blank": lambda: ["", " ", "\n"],
    "nul": lambda: [f"{prose(60, seed)}\x00\x00\n\x00{prose(60, seed + 1)}" for seed in range(400)],
    "surrogate": lambda: [prose(60, 0), "half a pair: \ud800"],
    "odd": lambda: [f"{seed} \ufeff\u202e\u0301{chr(0x10FFFF)}🙂" * 20 for seed in range(400)],
    "long": lambda: [
        *(prose(60, seed) for seed in range(400)),
        prose(100_000, 1) * (LONG_LINE // 2 // 500_000) + "xy" * (LONG_LINE // 4),
    ],
}  # fmt: skip


def write(folder: Path, kind: str) -> None:
    """Write the texts of a kind as JSON lines."""
    folder.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS[kind]()]
    (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")
