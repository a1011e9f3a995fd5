"""Which of a run's checkpoints it goes on from, and which are kept."""

from pathlib import Path

import pytest
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import StoreError, UserError
from raysweep.store import Store
from raysweep.store.checkpoints import names, new_name, step_of
from raysweep.training import checkpoint
from raysweep.training.run import Run

DIRECTORY = "train/x"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture(scope="module")
def run(corpus: TokenizedCorpus) -> Run:
    return Run(make_cell(), corpus)


def at(run: Run, step: int) -> checkpoint.Checkpoint:
    made = run.checkpoint()
    made.state.step = step
    return made


def put(store: Store, run: Run, step: int) -> None:
    checkpoint.write(at(run, step), store, f"{DIRECTORY}/{new_name(step)}")


def steps(store: Store) -> list[int]:
    return [step_of(name) for name in names(store, DIRECTORY)]


def furthest(store: Store, warned: list[str] | None = None) -> int | None:
    found = checkpoint.latest(store, DIRECTORY, (warned if warned is not None else []).append)
    return found[1].state.step if found else None


def test_with_all_those_of_rows_are_kept_and_the_last_two(store: Store, run: Run) -> None:
    intact: list[str] = []
    for step in (0, 4, 8, 10, 12, 14, 20, 24):
        made = at(run, step)
        made.state.rows = [{"step": row} for row in (0, 10, 20) if row <= step]
        intact = checkpoint.append(made, store, DIRECTORY, intact, None)
    assert steps(store) == [24, 20, 10, 0]


@pytest.mark.parametrize(("keep", "left"), [(1, [30]), (2, [30, 20]), (3, [30, 20, 10])])
def test_the_last_are_kept(store: Store, run: Run, keep: int, left: list[int]) -> None:
    intact: list[str] = []
    for step in (0, 10, 20, 30):
        intact = checkpoint.append(at(run, step), store, DIRECTORY, intact, keep)
    assert steps(store) == left
    assert [step_of(name) for name in intact] == left
    assert furthest(store) == 30


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_never_displaces_an_intact_one(store: Store, run: Run, keep: int) -> None:
    """The run went on from step 10 since 20 is damaged and 30 unfinished; what it writes at 15 and at 30 must stay."""
    warned: list[str] = []
    for step in (10, 20, 30):
        put(store, run, step)
    unfinished, damaged, good = (Path(store.root) / DIRECTORY / name for name in names(store, DIRECTORY))
    (unfinished / checkpoint.STATE).unlink()
    (damaged / checkpoint.MODEL).write_bytes(b"x")
    assert furthest(store, warned) == 10
    assert [checkpoint.MODEL in line for line in warned] == [True]
    intact = checkpoint.append(at(run, 15), store, DIRECTORY, [good.name], keep)
    assert furthest(store) == 15
    assert steps(store) == [30, 20, 15, 10][: keep + 2]
    checkpoint.append(at(run, 30), store, DIRECTORY, intact, keep)
    assert furthest(store) == 30
    assert steps(store) == [30, 15][:keep]
    assert not unfinished.exists()


def test_a_store_out_of_reach_damages_nothing(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a cell that is finished would count as lost, and be trained again."""
    put(store, run, 10)
    put(store, run, 20)
    real = store.read
    for file in (checkpoint.STATE, checkpoint.MODEL, checkpoint.OPTIMIZER):

        def away(path: str, wait: bool = True, file: str = file) -> bytes | None:
            if path.endswith(file):
                raise StoreError("away")
            return real(path, wait)

        monkeypatch.setattr(store, "read", away)
        with pytest.raises(StoreError, match="away"):
            furthest(store)


def test_one_of_a_later_schema_is_refused_and_not_passed_over(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an older raysweep would begin anew, and delete what is further."""
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "SCHEMA_VERSION", "9")
        put(store, run, 10)
    with pytest.raises(UserError, match=r"state.json was written under schema 9, this raysweep reads 1 to \d+"):
        furthest(store)


def test_what_a_kill_left_unfinished_is_passed_over_without_a_word(store: Store, run: Run) -> None:
    put(store, run, 10)
    unfinished = Path(store.root) / DIRECTORY / new_name(20)
    unfinished.mkdir()
    (unfinished / checkpoint.MODEL).write_bytes(b"half")
    warned: list[str] = []
    assert furthest(store, warned) == 10
    assert warned == []
