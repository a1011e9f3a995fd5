"""A corpus through the store, a folder and a bucket, into the caches of other nodes."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from tiny import TINY

from raysweep.corpora.progress import CorpusProgress
from raysweep.corpora.shared import directory, lack_of_room, obtain, upload
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import StoreError, UserError
from raysweep.space.corpus import Corpus
from raysweep.store import Store, corpora_record
from raysweep.sweep import prepare_corpora


def quiet(progress: CorpusProgress) -> None:
    assert progress.done <= progress.total


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("bucket")[1])


def on_another_node(patch: pytest.MonkeyPatch, cache: Path) -> None:
    patch.setenv("RAYSWEEP_CACHE", str(cache))


def test_a_node_copies_it_once(
    corpus: TokenizedCorpus, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = Corpus(**TINY)
    upload(corpus, store, quiet)
    on_another_node(monkeypatch, tmp_path / "cache")
    # Several workers of a node ask at once.
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: obtain(what.name, corpus.fingerprint, store), range(4)))
    assert {copy.folder for copy in copies} == {tmp_path / "cache" / "corpora" / f"installed-{corpus.fingerprint}"}
    assert copies[0].manifest == corpus.manifest
    for shard in corpus.shards:
        assert np.array_equal(copies[0].tokens(shard), corpus.tokens(shard))
    written = {path: path.stat().st_mtime_ns for path in copies[0].folder.rglob("*")}
    obtain(what.name, corpus.fingerprint, store)
    assert {path: path.stat().st_mtime_ns for path in copies[0].folder.rglob("*")} == written


def test_what_a_killed_copy_has_left_is_deleted_and_no_lack_of_room(
    corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, store = Corpus(**TINY), Store(str(tmp_path / "store"))
    upload(corpus, store, quiet)
    on_another_node(monkeypatch, tmp_path / "cache")
    left = tmp_path / "cache" / "corpora" / f"{what.name}-{corpus.fingerprint}.01234567.unfinished"
    (left / "pretraining").mkdir(parents=True)
    (left / "pretraining/train.bin").write_bytes(b"x" * 2**20)
    # More than a petabyte is nowhere free: what is said is how much room there would be.
    said = [float(lack_of_room([(name, corpus.fingerprint, 10**15)]).split()[2]) for name in (what.name, "another")]
    assert said[0] > 0
    assert obtain(what.name, corpus.fingerprint, store).manifest == corpus.manifest
    assert not left.exists()


def test_a_cache_that_cannot_be_written_says_what_to_do(
    corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    on_another_node(monkeypatch, tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"cannot be written: .*set RAYSWEEP_CACHE to another folder"):
        obtain("installed", corpus.fingerprint, Store(str(tmp_path / "store")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_node_whose_disk_is_too_small_says_how_much_too_small(
    corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, store = Corpus(**TINY), Store(str(tmp_path / "store"))
    upload(corpus, store, quiet)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        on_another_node(monkeypatch, small / "cache")
        said = rf"has 0\.000[0-9]+ GB free in {small}/cache, and the text that its cells read takes 0\.00[0-9]+ GB: "
        with pytest.raises(UserError, match=said):
            obtain(what.name, corpus.fingerprint, store)
        assert not list(small.rglob("*.bin"))
        assert re.search(said, lack_of_room([(what.name, corpus.fingerprint, corpus.size)]))
        # What a node has it need not copy.
        monkeypatch.undo()
        assert lack_of_room([(what.name, corpus.fingerprint, 10**18)]) == ""
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_nodes_are_asked_before_anything_is_trained(corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Ray node, for text that no disk holds."""
    from raysweep.sweep.room import check_room

    class Huge(TokenizedCorpus):
        fingerprint = "0" * 16
        size = 10**18

    huge = object.__new__(Huge)
    ray.init("local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        check_room({"installed": [corpus]})
        with pytest.raises(
            UserError, match=r"^\S+ has .* GB free in .*, and the text that its cells read takes 1e\+09 GB: make room"
        ):
            check_room({"installed": [huge]})
    finally:
        ray.shutdown()


def test_where_it_is_built_it_is_used(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    what = Corpus(**TINY)
    assert obtain(what.name, corpus.fingerprint, Store(str(tmp_path / "empty"))).folder == corpus.folder


def test_a_store_without_it_is_named(corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_another_node(monkeypatch, tmp_path / "cache")
    what = Corpus(**TINY)
    with pytest.raises(UserError, match="nor does the store"):
        obtain(what.name, corpus.fingerprint, Store(str(tmp_path / "store")))


def test_a_half_published_one_does_not_count(
    corpus: TokenizedCorpus, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = Corpus(**TINY)
    upload(corpus, store, quiet)
    store.delete(f"{directory(corpus.fingerprint)}/manifest.json")
    on_another_node(monkeypatch, tmp_path / "cache")
    with pytest.raises(UserError, match="nor does the store"):
        obtain(what.name, corpus.fingerprint, store)
    upload(corpus, store, quiet)
    assert obtain(what.name, corpus.fingerprint, store).fingerprint == corpus.fingerprint


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_one_is_refused_and_copied_again_when_mended(
    corpus: TokenizedCorpus, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    what = Corpus(**TINY)
    upload(corpus, store, quiet)
    shard = f"{directory(corpus.fingerprint)}/pretraining/validation.bin"
    whole = store.read(shard)
    assert whole is not None
    if damage == "gone":
        store.delete(shard)
    else:
        store.write(shard, whole[:-2] if damage == "cut" else bytes([whole[0] ^ 1]) + whole[1:])
    on_another_node(monkeypatch, tmp_path / "cache")
    with pytest.raises(UserError, match=r"validation\.bin is damaged or missing"):
        obtain(what.name, corpus.fingerprint, store)
    store.write(shard, whole)
    assert obtain(what.name, corpus.fingerprint, store).fingerprint == corpus.fingerprint


def test_a_bucket_cannot_write_elsewhere(
    corpus: TokenizedCorpus, bucket: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, uri = bucket
    store = Store(uri)
    upload(corpus, store, quiet)
    key = f"store/{directory(corpus.fingerprint)}/../../../../evil"
    client.put_object(Bucket="sweeps", Key=key, Body=b"evil")
    on_another_node(monkeypatch, tmp_path / "cache")
    try:
        obtain(Corpus(**TINY).name, corpus.fingerprint, store)
    except (UserError, StoreError):
        pass
    finally:
        client.delete_object(Bucket="sweeps", Key=key)
    assert [path.name for path in tmp_path.rglob("evil")] == []
    assert os.listdir(tmp_path) == ["cache"]


def test_what_was_built_here_is_found_whatever_became_of_its_text(
    corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the text has changed or is gone, or is relative to where the driver ran: its key is another then."""
    on_another_node(monkeypatch, tmp_path)
    built = tmp_path / "corpora" / "mine-0123456789ab"
    shutil.copytree(corpus.folder, built)
    gone = Corpus.model_validate({"name": "mine", "pretraining": {"folder": "no/such/folder"}})
    assert obtain(gone.name, corpus.fingerprint, Store(str(tmp_path / "empty"))).folder == built
    monkeypatch.chdir(tmp_path)
    on_another_node(monkeypatch, Path("."))
    relative = obtain(gone.name, corpus.fingerprint, Store(str(tmp_path / "empty"))).folder
    assert relative.is_absolute()
    # A driver that goes on needs its text no more than a worker does.
    store = Store(str(tmp_path / "begun"))
    with pytest.raises(UserError, match="no such folder"):
        prepare_corpora.opened_corpus(gone, store, quiet)
    corpora_record.record(store, {gone.key: corpus.fingerprint})
    assert prepare_corpora.opened_corpus(gone, store, quiet).folder == relative
