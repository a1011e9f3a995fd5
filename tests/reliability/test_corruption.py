"""Flipped bits, truncations and overwritten blocks at random places in every kind of file that a store or a corpus holds.

Damage must be found (the file is set aside and made again, or refused by name), or have changed no value at all, as where a
bit of a Parquet file's statistics flips. 660 cases, seeded.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import make_cell

from raysweep.corpora.manifest import checksum
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.store import Store, corpora_record
from raysweep.store.checkpoints import names
from raysweep.store.schemas import CELLS, EVALUATIONS, PLAN, TIMINGS, TRAJECTORIES
from raysweep.store.store import TRAIN
from raysweep.sweep import cell_tables
from raysweep.training import checkpoint
from raysweep.training.run import Run

CELL = make_cell(tokens=2048)
SETTINGS = {"task": "in_distribution", "sequences": 8}


def damage(content: bytes, rng: random.Random) -> bytes:
    """One bit flipped, the end cut off, a block overwritten, or something appended; never the same bytes."""
    kind = rng.choice(("flip", "flip", "flip", "truncate", "overwrite", "append"))
    where = rng.randrange(len(content))
    if kind == "flip":
        return content[:where] + bytes([content[where] ^ (1 << rng.randrange(8))]) + content[where + 1 :]
    if kind == "truncate":
        return content[:where]
    if kind == "append":
        return content + rng.randbytes(rng.randrange(1, 100))
    block = rng.randbytes(rng.randrange(1, 64))
    changed = content[:where] + block + content[where + len(block) :]
    return changed if changed != content else damage(content, rng)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Store:
    """One cell, trained here and finished as a trial finishes it, with the rows of an evaluation."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    run = Run(CELL, corpus)
    for _ in run.rows():
        pass
    checkpoint.append(run.checkpoint(), store, store.run_directory(CELL.id), [])
    cell_tables.write_cell_tables(CELL, store, 0)
    rows = [
        {
            "cell": CELL.id,
            "task": "in_distribution",
            "settings": "{}",
            "metric": f"m{k}",
            "value": 1 / (k + 1),
            "unit": "nats",
        }
        for k in range(5)
    ]
    store.write_table(store.evaluation_file(CELL.id, "in_distribution", SETTINGS), rows, EVALUATIONS)
    store.write_table("plan.parquet", [CELL.describe()], PLAN)
    corpora_record.record(store, {"a corpus": "0123456789abcdef"})
    return store


def final(store: Store) -> list[Any] | None:
    found = cell_tables.final_checkpoint(CELL, store)
    return None if found is None else [found.state, {k: v.tolist() for k, v in found.model.items()}]


def whole(store: Store) -> list[Any] | None:
    found = checkpoint.latest(store, store.run_directory(CELL.id))
    return None if found is None else [found[1].state, {k: v.tolist() for k, v in found[1].optimizer.items()}]


def corpora(store: Store) -> str | None:
    """What the store remembers of the corpus: None where it is gone, and then recorded anew."""
    before = store.read("corpora.json")
    corpora_record.record(store, {"a corpus": "0123456789abcdef"})
    return "as it was" if store.read("corpora.json") == before else None


READERS: dict[str, tuple[Callable[[Store], str], Callable[[Store], Any], int]] = {
    "cell": (lambda s: s.cell_file(CELL.id), lambda s: s.read_rows(s.cell_file(CELL.id), CELLS), 80),
    "trajectory": (
        lambda s: s.trajectory_file(CELL.id),
        lambda s: s.read_rows(s.trajectory_file(CELL.id), TRAJECTORIES),
        80,
    ),
    "evaluation": (
        lambda s: s.evaluation_file(CELL.id, "in_distribution", SETTINGS),
        lambda s: s.evaluation_rows(CELL.id, "in_distribution", SETTINGS),
        80,
    ),
    "timing": (
        lambda s: s.timing_file(CELL.id, TRAIN),
        lambda s: s.read_rows(s.timing_file(CELL.id, TRAIN), TIMINGS),
        40,
    ),
    "plan": (lambda s: "plan.parquet", lambda s: s.read_rows("plan.parquet", PLAN), 40),
    "corpora": (lambda s: "corpora.json", corpora, 40),
    "weights": (lambda s: _checkpoint(s, "model.safetensors"), final, 80),
    "optimizer": (lambda s: _checkpoint(s, "optimizer.safetensors"), whole, 40),
    "position": (lambda s: _checkpoint(s, "state.json"), final, 80),
}


def _checkpoint(store: Store, name: str) -> str:
    directory = store.run_directory(CELL.id)
    return f"{directory}/{names(store, directory)[0]}/{name}"


@pytest.mark.parametrize("kind", READERS)
def test_no_damaged_file_of_a_store_gives_a_number(store: Store, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path, read, cases = READERS[kind]
    file = Path(store.root) / path(store)
    intact, clean = file.read_bytes(), read(store)
    assert clean is not None
    rng = random.Random(kind)
    found = 0
    for case in range(cases):
        changed = damage(intact, rng)
        file.write_bytes(changed)
        caplog.clear()
        try:
            value = read(store)
        except UserError as error:
            assert file.name in str(error), (kind, case)  # noqa: PT017
            found += 1
        else:
            assert value is None or value == clean, f"{kind}, case {case}: damage passed as a number"
            if value is None:
                assert file.name in caplog.text, (kind, case)
                found += 1
        for aside in file.parent.glob(f"{file.name}.damaged-*"):
            aside.unlink()
        file.write_bytes(intact)
    assert found > cases * 0.6  # The rest hit what holds no value, such as the statistics of a Parquet file.
    assert read(store) == clean


@pytest.fixture(scope="module")
def small(corpus: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("corpus") / corpus.folder.name
    shutil.copytree(corpus.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    # In case the machine's copy was built before manifests had a checksum.
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": checksum(manifest)}, indent=1))
    yield folder
    shutil.rmtree(folder)


def test_no_damaged_file_of_a_corpus_is_read(small: Path) -> None:
    rng = random.Random(1)
    clean, found = TokenizedCorpus(small), 0
    files = [small / "manifest.json", small / "tokenizer.json", *sorted(small.rglob("*.bin"))]
    for case in range(100):
        file = files[case % len(files)]
        intact = file.read_bytes()
        file.write_bytes(damage(intact, rng))
        try:
            opened = TokenizedCorpus(small)
        except UserError as error:
            refused = str(error)
            assert file.name in refused, (file, case)
            assert "\n" not in refused
            found += 1
        else:
            # A space of the JSON turned into a tab.
            assert file.name == "manifest.json", (file, case)
            assert opened.manifest == clean.manifest, case
        file.write_bytes(intact)
    assert found > 90


def test_what_evaluates_needs_the_weights_alone(store: Store) -> None:
    """A finished cell whose optimizer is gone is finished still, and has nothing to train again."""
    clean = final(store)
    file = Path(store.root) / _checkpoint(store, "optimizer.safetensors")
    intact = file.read_bytes()
    file.unlink()
    assert final(store) == clean
    assert whole(store) is None
    file.write_bytes(intact)
