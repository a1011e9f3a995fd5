"""Many tables through their index: the same rows as one by one, whatever happens to the tables or to the index."""

import os
from pathlib import Path
from typing import Any

import pytest

from raysweep.store import Store
from raysweep.store.index import WORTH_WRITING, read_all
from raysweep.store.schemas import FAILURES, SCHEMA_VERSION

DIRECTORY = "failures/train"


def put(store: Store, cell: str, error: str) -> None:
    store.write_table(f"{DIRECTORY}/{cell}.parquet", [{"cell": cell, "stage": "train", "error": error}], FAILURES)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    for k in range(WORTH_WRITING + 10):
        put(store, f"cell{k}", f"error {k}")
    return store


def errors(store: Store) -> dict[str, Any]:
    return {cell: rows[0]["error"] for cell, rows in read_all(store, DIRECTORY, FAILURES).items()}


def one_by_one(store: Store) -> dict[str, Any]:
    folder = Path(store.root) / DIRECTORY
    rows = {path.stem: store.read_rows(f"{DIRECTORY}/{path.name}", FAILURES) for path in folder.glob("*.parquet")}
    return {cell: found[0]["error"] for cell, found in rows.items() if found}


def opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From here on the paths that are read."""
    paths: list[str] = []
    read = Store.read

    def counting(self: Store, path: str) -> bytes | None:
        paths.append(path)
        return read(self, path)

    monkeypatch.setattr(Store, "read", counting)
    return paths


def test_what_was_read_is_not_opened_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = errors(store)
    assert expected == one_by_one(store) == {f"cell{k}": f"error {k}" for k in range(WORTH_WRITING + 10)}
    paths = opened(store, monkeypatch)
    assert errors(store) == expected
    assert paths == [f"index/failures-train-{SCHEMA_VERSION}.parquet"]


def test_what_changed_came_or_went_is_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    errors(store)
    put(store, "cell3", "error X")  # As long as before.
    put(store, "new", "another")
    os.remove(Path(store.root) / DIRECTORY / "cell4.parquet")
    damaged = Path(store.root) / DIRECTORY / "cell5.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    paths = opened(store, monkeypatch)
    found = errors(store)
    assert found["cell3"] == "error X"
    assert found["new"] == "another"
    assert not {"cell4", "cell5"} & set(found)
    assert sorted(paths)[:3] == [f"{DIRECTORY}/{name}.parquet" for name in ("cell3", "cell5", "new")]
    assert found == one_by_one(store)


@pytest.mark.parametrize("damage", ["gone", "flipped", "unwritable"])
def test_an_index_that_fails_is_made_anew(store: Store, damage: str) -> None:
    expected = errors(store)
    index = Path(store.root) / "index" / f"failures-train-{SCHEMA_VERSION}.parquet"
    if damage == "flipped":
        content = bytearray(index.read_bytes())
        content[len(content) // 2] ^= 1
        index.write_bytes(content)
    else:
        index.unlink()
    if damage == "unwritable":
        index.parent.rmdir()
        index.parent.write_text("")  # A file where the folder should be: also root cannot write there.
        assert errors(store) == expected
        return
    assert errors(store) == expected
    assert index.exists()


def test_no_directory_has_no_tables(tmp_path: Path) -> None:
    assert read_all(Store(str(tmp_path)), DIRECTORY, FAILURES) == {}


def test_a_store_that_remembers_opens_nothing_twice_and_sees_what_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Store(store.location, remembers=True)
    before = read_all(watched, DIRECTORY, FAILURES)
    before["cell1"][0]["error"] = "whoever gets the rows may change them"
    put(store, "cell2", "another, and longer")
    (Path(store.root) / DIRECTORY / "cell3.parquet").unlink()
    paths = opened(watched, monkeypatch)
    now = errors(watched)
    assert paths == [f"{DIRECTORY}/cell2.parquet"]
    assert now == one_by_one(store)
    assert now["cell1"] == "error 1"
    assert "cell3" not in now
