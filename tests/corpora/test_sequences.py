"""The order of a run, its permutation, and the sequences."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from raysweep.corpora import checksums
from raysweep.corpora.memmap import ConcatenatedMemmap
from raysweep.corpora.sequences import Order, Sequences, Stream, permute
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError

FIFTY = [Stream(offset=0, first=0, sequences=50, weight=1.0)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 255, 256, 257, 1000, 4097])
def test_permute_is_a_permutation(size: int) -> None:
    for key in ("a", "b"):
        assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_is_evaluated_point_by_point() -> None:
    whole = permute(np.arange(1000), 1000, "key")
    assert [int(permute(np.array([i]), 1000, "key")[0]) for i in range(0, 1000, 97)] == list(whole[::97])


def test_permute_looks_random() -> None:
    """Over many keys each value lands in each of ten bins equally often: chi-squared with 9 degrees of freedom."""
    size, keys = 100, 2000
    landed = np.stack([permute(np.arange(size), size, str(key)) for key in range(keys)])
    for value in (0, 1, 50, 99):
        counts = np.bincount(landed[:, value] // 10, minlength=10)
        assert ((counts - keys / 10) ** 2 / (keys / 10)).sum() < 33.7  # 1 - 1e-4 quantile
    # And neighbours do not stay neighbours.
    assert abs(np.mean(np.abs(np.diff(landed, axis=1)) == 1) - 2 / size) < 0.005


def test_permute_of_a_large_range_needs_no_memory() -> None:
    values = permute(np.arange(10**12, 10**12 + 100), 10**13, "key")
    assert len(set(values.tolist())) == 100
    assert ((values >= 0) & (values < 10**13)).all()


def test_every_epoch_sees_every_sequence_once_in_another_order() -> None:
    order = Order(FIFTY, 32, "fingerprint", seed=1)
    epochs = order.at(np.arange(150)).reshape(3, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert not (epochs[0] == epochs[1]).all()
    # A position asked for alone, or across the end of an epoch, is the same.
    assert order.at(np.array([49, 50, 149])).tolist() == [epochs[0][49], epochs[1][0], epochs[2][49]]


def test_order_depends_on_fingerprint_length_and_seed_alone() -> None:
    positions = np.arange(50)
    reference = Order(FIFTY, 32, "f", 1).at(positions).tolist()
    assert reference == Order(FIFTY, 32, "f", 1).at(positions).tolist()
    for other in (Order(FIFTY, 16, "f", 1), Order(FIFTY, 32, "g", 1), Order(FIFTY, 32, "f", 2)):
        assert other.at(positions).tolist() != reference


def test_sequences_overlap_by_their_last_target() -> None:
    sequences = Sequences(np.arange(101, dtype=np.uint16), 10)
    assert len(sequences) == 10
    read = sequences.read(np.array([9, 0]))
    assert read.dtype == np.int64
    assert read.tolist() == [list(range(90, 101)), list(range(11))]
    assert len(Sequences(np.arange(100, dtype=np.uint16), 10)) == 9


def test_a_shard_is_mapped_not_copied(corpus: TokenizedCorpus) -> None:
    tokens = corpus.tokens("pretraining/train")
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable
    assert tokens.dtype == np.uint16


def test_too_short_a_shard_and_an_unknown_one_are_refused(corpus: TokenizedCorpus) -> None:
    with pytest.raises(UserError, match="too few for one sequence of 1000000000"):
        corpus.sequences("pretraining/validation", 10**9)
    with pytest.raises(UserError, match=r"has no pretraining/trian; it has .*pretraining/train"):
        corpus.tokens("pretraining/trian")


@pytest.mark.parametrize("weights", [(1, 1), (4, 1), (1, 2, 3), (0.5, 0.3, 0.2), (1, 1000)])
def test_a_mixture_has_its_weights_everywhere_and_each_stream_its_own_epochs(weights: tuple[float, ...]) -> None:
    sizes = [50, 7, 300][: len(weights)]
    tokens = np.arange(sum(size * 10 + 1 for size in sizes))
    sequences = Sequences(tokens, 10, [(size * 10 + 1, weight) for size, weight in zip(sizes, weights, strict=True)])
    assert [stream.sequences for stream in sequences.streams] == sizes
    order = sequences.order("f", 1)
    count = 6000
    indices = order.at(np.arange(count))
    bounds = np.cumsum([0, *sizes])
    for i, weight in enumerate(weights):
        mine = (indices >= bounds[i]) & (indices < bounds[i + 1])
        # To within two at every point, not only on the whole.
        expected = np.arange(1, count + 1) * weight / sum(weights)
        assert np.abs(np.cumsum(mine) - expected).max() < 2
        epochs = indices[mine][: mine.sum() // sizes[i] * sizes[i]].reshape(-1, sizes[i])
        for epoch in epochs:
            assert sorted(epoch) == list(range(bounds[i], bounds[i + 1]))
    # A position asked for alone is the same, and a sequence stays within its source.
    assert order.at(np.array([5999, 17])).tolist() == [indices[5999], indices[17]]
    read = sequences.read(indices[:200])
    starts = [i * 10 + int(np.searchsorted(bounds, i, side="right") - 1) for i in indices[:200]]
    assert read.tolist() == [list(range(start, start + 11)) for start in starts]


def test_tokens_of_several_files_slice_as_one_array(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 60_000, 1000, dtype=np.uint16)
    files = []
    for i, part in enumerate(np.split(whole, [1, 2, 400, 401, 900])):
        part.tofile(tmp_path / f"{i}.bin")
        files.append((tmp_path / f"{i}.bin", len(part)))
    parts = ConcatenatedMemmap(files, np.dtype("<u2"))
    assert len(parts) == 1000
    chance = np.random.default_rng(1)
    for _ in range(300):
        start, stop = sorted(chance.integers(0, 1001, 2).tolist())
        assert np.array_equal(parts[start:stop], whole[start:stop])
    assert np.array_equal(parts[:], whole)
    assert len(parts[5:5]) == 0
    assert np.array_equal(Sequences(parts, 7).read(np.arange(142)), Sequences(whole, 7).read(np.arange(142)))


def test_files_are_read_once_for_their_checksums_and_again_when_they_change(
    corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder)
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        checksums.hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name)
    )
    (folder / "checked.json").unlink(missing_ok=True)
    TokenizedCorpus(folder)
    assert len(read) == len(corpus.files())
    TokenizedCorpus(folder)
    assert len(read) == len(corpus.files())
    os.utime(folder / "pretraining" / "train.bin", (1, 1))
    TokenizedCorpus(folder)
    assert read[len(corpus.files()) :] == [str(folder / "pretraining" / "train.bin")]
    # Bits that turn without a trace in the file system are found by `raysweep corpus verify`.
    about = (folder / "pretraining" / "test.bin").stat()
    content = bytearray((folder / "pretraining" / "test.bin").read_bytes())
    content[100] ^= 1
    (folder / "pretraining" / "test.bin").write_bytes(content)
    os.utime(folder / "pretraining" / "test.bin", ns=(about.st_atime_ns, about.st_mtime_ns))
    opened = TokenizedCorpus(folder)
    with pytest.raises(UserError, match=r"test\.bin is damaged or missing"):
        opened.verify(lambda *_: None)
    # What was kept cannot be read: everything is looked at again.
    (folder / "checked.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"test\.bin is damaged or missing"):
        TokenizedCorpus(folder)
