"""Tokenizing: one core against the bare tokenizer, two cores against one, and memory as the input grows a hundredfold.

The input is the text of the installed corpus in another order, as JSON lines. One core: the same documents in the same
batches through `tokenizers`' own `encode_batch`, one thread, which neither reads a file nor keeps a token. Two cores: a
build by Ray on one core of this machine (the process and all that it starts are kept to it) and one on two, from the first
block to the last. Memory: the most that the build and everything it starts have at once (proportional set size, so that
what processes share counts once), without and with what they map of the object store.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil

from benchmarks.harness import Result, arguments, in_turn, ratios, show
from raysweep.corpora import blocks, installed, tokenize
from raysweep.corpora.tokenizer import olmo
from raysweep.space.corpus import Corpus

CORE_MB, CORES_MB = 8, 96
MEMORY_MB = (10, 100, 1000)

BUILD = """
import json, os, sys, time
cores, source, cache = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["RAYSWEEP_CACHE"] = cache
os.sched_setaffinity(0, set(range(cores)))
from raysweep.cluster import environment
os.environ.update(environment.CLIENT | environment.LOCAL_CLUSTER)
import ray
ray.init(address="local", num_cpus=cores, logging_level="CRITICAL", log_to_driver=False)
from raysweep.corpora import tokenize
from raysweep.space.corpus import Corpus
from raysweep.corpora.build import build
tokenize.SMALL = 0
made = []
save = tokenize._save
def timed(record, *rest):
    save(record, *rest)
    size = sum(counts["bytes"] for file in record["files"] for counts in file["domains"].values())
    made.append((time.monotonic(), size))
tokenize._save = timed
build(Corpus(name="text", pretraining={"folder": source}))
print(json.dumps(made))
"""


@cache
def everything() -> tuple[str, ...]:
    """All text of the installed corpus."""
    return tuple(document.text for i in range(len(installed.sections())) for document in installed.documents(i))


def write(path: Path, megabytes: int) -> None:
    """Real documents, in an order by chance, again and again until there is enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = list(everything())
    chance, size = random.Random(0), 0  # noqa: S311
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            chance.shuffle(texts)
            for text in texts:
                size += len(text.encode())
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if size >= megabytes * 1e6:
                    break


def one_core(folder: Path, rounds: int) -> list[Result]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    corpus = Corpus.model_validate({"name": "text", "pretraining": {"folder": str(folder)}})
    (part,) = tokenize._parts(corpus, lambda _: None)
    tokenizer = olmo()
    settings = blocks.Settings(tokenizer.to_str(), "<u2", 1.0, blocks.EVERYTHING, stream=False)
    texts = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    batches: list[list[str]] = [[]]
    for text in texts:
        batches[-1].append(text)
        if sum(map(len, batches[-1])) >= blocks.BATCH:
            batches.append([])

    def ours() -> None:
        for table in blocks.cut(part, stream=False):
            for row in table.to_pylist():
                blocks.tokenize_block(row, part, settings)

    def bare() -> None:
        for batch in batches:
            tokenizer.encode_batch(batch, add_special_tokens=False)

    ours()
    seconds = in_turn({"raysweep": ours, "tokenizers encode_batch": bare}, rounds)
    return ratios(f"{CORE_MB} MB, one core", "raysweep", seconds, "x time")


def built(source: Path, cores: int, watched: bool = False) -> tuple[float, dict[str, float]]:
    """Bytes per second of a build from its first block on, and its peak of memory in MiB where that is `watched`."""
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(cores), str(source), cache],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        peak = {"private": 0.0, "with the object store": 0.0}
        while watched and process.poll() is None:
            private = mapped = 0
            for each in processes(process.pid):
                try:
                    whole = each.memory_full_info()
                    mapped += whole.pss
                    private += whole.uss
                except psutil.Error:
                    continue
            peak["private"] = max(peak["private"], private / 2**20)
            peak["with the object store"] = max(peak["with the object store"], mapped / 2**20)
            time.sleep(1.0)
        printed, _ = process.communicate()
    made = json.loads(printed)
    # What came together with the first block was made before it.
    (first, _), rest = made[0], [size for at, size in made if at > made[0][0] + 0.5]
    seconds = made[-1][0] - first
    return (sum(rest) / seconds if seconds else 0.0), {name: round(value) for name, value in peak.items()}


def processes(pid: int) -> Iterator[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        yield from [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--without-memory", action="store_true", help="leave out the ten minutes of memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "core" / "text.jsonl", CORE_MB)
        results = one_core(folder / "core", options.rounds)
        write(folder / "cores" / "text.jsonl", CORES_MB)
        rates: dict[str, list[float]] = {"two cores": [], "one core": []}
        for _ in range(options.rounds):
            rates["two cores"].append(built(folder / "cores", 2)[0])
            rates["one core"].append(built(folder / "cores", 1)[0])
        results += ratios(
            f"{CORES_MB} MB by Ray", "two cores", {key: [1 / rate for rate in each] for key, each in rates.items()},
            "x rate",
        )  # fmt: skip
        memory = {}
        for megabytes in () if options.without_memory else MEMORY_MB:
            write(folder / f"{megabytes}" / "text.jsonl", megabytes)
            rate, peak = built(folder / f"{megabytes}", 2, watched=True)
            memory[f"{megabytes} MB"] = peak | {"MB_per_second": round(rate / 1e6, 2)}
    megabytes_per_second = {key: [round(rate / 1e6, 2) for rate in each] for key, each in rates.items()}
    show(results, options.json, megabytes_per_second=megabytes_per_second, peak_MiB=memory)


if __name__ == "__main__":
    main()
