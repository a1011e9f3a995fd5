"""What a hostile file in a store, a corpus or a model folder can do: be refused. Nothing in it is ever run."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny import make_cell

from raysweep.corpora.manifest import checksum, fingerprint
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.exchange.pretrained import unembedding
from raysweep.space import read as space
from raysweep.space.corpus import Corpus
from raysweep.store import Store, corpora_record, lock
from raysweep.store.checkpoints import new_name
from raysweep.store.schemas import CELLS, PLAN
from raysweep.store.tables import checksum as store_checksum
from raysweep.sweep import cell_tables
from raysweep.training import checkpoint

CELL = make_cell()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A file that exists only if the pickle was run."""
    return tmp_path / "it-ran"


@pytest.fixture
def hostile(trace: Path) -> bytes:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    return pickle.dumps(Hostile())


def test_the_pickle_is_hostile(hostile: bytes, trace: Path) -> None:
    """Else the tests below would prove nothing."""
    pickle.loads(hostile)
    assert trace.exists()


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_a_pickle_in_a_checkpoint(tmp_path: Path, hostile: bytes, trace: Path, name: str) -> None:
    """Under checksums that fit, as one who can write the folder can make them."""
    store = Store(str(tmp_path / "store"))
    folder = Path(store.root) / store.run_directory(CELL.id) / new_name(CELL.steps)
    folder.mkdir(parents=True)
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        (folder / file).write_bytes(hostile)
    position = {"cell": CELL.id, "fingerprint": "x", "step": CELL.steps}
    sums = {file: hashlib.sha256(hostile).hexdigest() for file in (checkpoint.MODEL, checkpoint.OPTIMIZER)}
    body = {"position": position, "sha256": sums}
    state = json.dumps(body | {"checksum": store_checksum(body)}).encode()
    (folder / checkpoint.STATE).write_bytes(hostile if name == checkpoint.STATE else state)
    assert cell_tables.final_checkpoint(CELL, store) is None
    assert checkpoint.latest(store, store.run_directory(CELL.id)) is None
    assert not trace.exists()


def test_a_pickle_in_the_place_of_a_table_a_record_and_a_lock(tmp_path: Path, hostile: bytes, trace: Path) -> None:
    store = Store(str(tmp_path / "store"))
    for path in (store.cell_file(CELL.id), "plan.parquet", "corpora.json", lock.FILE):
        store.write(path, hostile)
    assert store.read_rows(store.cell_file(CELL.id), CELLS) is None
    assert store.read_rows("plan.parquet", PLAN) is None
    assert lock.holder(store) is None
    corpora_record.record(store, {"corpus": "0"})
    assert not trace.exists()


@pytest.mark.parametrize("file", ["manifest.json", "tokenizer.json", "pretraining/train.bin"])
def test_a_pickle_in_a_corpus(tmp_path: Path, hostile: bytes, trace: Path, file: str) -> None:
    folder = make_corpus(tmp_path / "corpus", "pretraining/train")
    (folder / file).write_bytes(hostile)
    with pytest.raises(UserError, match=r"is damaged or missing"):
        TokenizedCorpus(folder)
    assert not trace.exists()


def make_corpus(folder: Path, shard: str) -> Path:
    """A corpus whose checksums all fit, with one shard of that name."""
    (folder / "pretraining").mkdir(parents=True)
    (folder / "pretraining" / "train.bin").write_bytes(bytes(200))
    (folder / "tokenizer.json").write_text("{}")
    entry = {"dtype": "<u2", "tokens": 100, "sha256": hashlib.sha256(bytes(200)).hexdigest()}
    manifest: dict[str, Any] = {
        "tokenizer_sha256": hashlib.sha256(b"{}").hexdigest(), "end_of_text": 0, "shards": {shard: entry},
    }  # fmt: skip
    manifest["fingerprint"] = fingerprint(manifest)
    manifest["sha256"] = checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_shard_s_name_cannot_leave_the_corpus(tmp_path: Path) -> None:
    TokenizedCorpus(make_corpus(tmp_path / "fine", "pretraining/train"))
    (tmp_path / "outside.bin").write_bytes(bytes(200))
    for k, name in enumerate(("../outside", str(tmp_path / "outside"), "pretraining/../../outside")):
        with pytest.raises(UserError, match=r"manifest.json is damaged"):
            TokenizedCorpus(make_corpus(tmp_path / f"evil{k}", name))


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b", ".", "..", "a\nb", "", "a b", "$(x)"])
def test_a_space_s_name_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    file = tmp_path / "s.yaml"
    base = {"size": "4M", "corpus": "installed", "tokens": 1e6, "batch_size": 4, "sequence_length": 128}
    file.write_text(json.dumps({"name": name, "base": base}))
    with pytest.raises(UserError, match="name"):
        space.load(file)


def test_yaml_makes_no_objects(tmp_path: Path, trace: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"name: !!python/object/apply:os.mknod ['{trace}']\nbase: {{}}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        space.load(file)
    assert not trace.exists()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors", "config.json"])
def test_a_pickle_in_a_model_folder(tmp_path: Path, hostile: bytes, trace: Path, file: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / file).write_bytes(hostile)
    with pytest.raises(UserError, match=str(folder)):
        unembedding(str(folder))
    assert not trace.exists()


def test_a_corpus_s_name_is_one_of_those_known() -> None:
    with pytest.raises(ValueError, match="name"):
        Corpus.model_validate({"name": "../../etc"})
