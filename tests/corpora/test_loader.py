"""The order of a run, its permutation, and the sequences."""

import numpy as np
import pytest

from raysweep.corpora.loader import Order, Sequences, TokenizedCorpus, permute
from raysweep.errors import UserError


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
    order = Order(50, 32, "fingerprint", seed=1)
    epochs = order.at(np.arange(150)).reshape(3, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert not (epochs[0] == epochs[1]).all()
    # A position asked for alone, or across the end of an epoch, is the same.
    assert order.at(np.array([49, 50, 149])).tolist() == [epochs[0][49], epochs[1][0], epochs[2][49]]


def test_order_depends_on_fingerprint_length_and_seed_alone() -> None:
    positions = np.arange(50)
    reference = Order(50, 32, "f", 1).at(positions).tolist()
    assert reference == Order(50, 32, "f", 1).at(positions).tolist()
    for other in (Order(50, 16, "f", 1), Order(50, 32, "g", 1), Order(50, 32, "f", 2)):
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
