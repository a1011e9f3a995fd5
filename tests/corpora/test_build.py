"""The installed corpus: what is in it, that it comes out the same, and that nothing half-built counts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from raysweep.corpora import build, build_installed, installed
from raysweep.corpora.progress import ignore
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.corpora.tokenizer import END_OF_TEXT
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus

# The fingerprint of TINY under constraints.txt. It must come out on every machine; its origin is the build on Linux with
# Python 3.11 and again with 3.12. A change of RECIPE, of the build or of a version in constraints.txt changes it.
FINGERPRINT = "28618aab10fee0d3"


def pinned() -> dict[str, str]:
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8").split()
    return {name.lower().replace("_", "-"): number for name, _, number in (line.partition("==") for line in lines)}


def test_every_distribution_of_the_recipe_is_pinned() -> None:
    assert {entry.distribution for entry in installed.RECIPE} <= set(pinned())


def test_the_fingerprint_is_the_same_on_every_machine(corpus: TokenizedCorpus) -> None:
    for name, number in installed.signature().items():
        if name != "recipe" and pinned()[name] != number:
            pytest.skip(f"{name} {number} is installed, constraints.txt has {pinned()[name]}")
    assert corpus.fingerprint == FINGERPRINT


def test_what_is_in_it(corpus: TokenizedCorpus) -> None:
    shards = corpus.manifest["shards"]
    assert set(corpus.shards) == {
        "pretraining/train", "pretraining/validation", "pretraining/test",
        "out_of_distribution/cpp", "out_of_distribution/cython", "out_of_distribution/exams",
        "finetune_python/train", "finetune_python/test", "finetune_math/train", "finetune_math/test",
    }  # fmt: skip
    domains = {"wikipedia", "everyday", "questions", "docstrings", "python"}
    assert set(shards["pretraining/train"]["domains"]) == domains
    documents = {name: shards[f"pretraining/{name}"]["documents"] for name in ("train", "validation", "test")}
    share = documents["validation"] / sum(documents.values())
    assert 0.01 < share < 0.03
    for name, shard in shards.items():
        tokens = corpus.tokens(name)
        ends = int((tokens == corpus.manifest["end_of_text"]).sum())
        assert len(tokens) == shard["tokens"] == sum(d["tokens"] for d in shard["domains"].values())
        assert ends == shard["documents"] == sum(d["documents"] for d in shard["domains"].values())
        assert int(tokens.max()) < 512


def documents(corpus: TokenizedCorpus, shard: str) -> list[str]:
    tokens = corpus.tokens(shard)
    ends = np.flatnonzero(tokens == corpus.manifest["end_of_text"])
    return [corpus.tokenizer.decode(part[part != corpus.manifest["end_of_text"]]) for part in np.split(tokens, ends)]


def test_tokens_decode_to_the_documents_and_none_is_in_two_shards(corpus: TokenizedCorpus) -> None:
    texts = {shard: [text for text in documents(corpus, shard) if text] for shard in corpus.shards}
    for shard, found in texts.items():
        assert sum(len(text.encode()) for text in found) == corpus.manifest["shards"][shard]["bytes"]
    everything = [text for found in texts.values() for text in found]
    assert len(set(everything)) == len(everything)
    source = {document.text for document in installed.documents(0)}
    assert sum(text in source for text in texts["pretraining/train"]) > 20


def test_fraction_keeps_a_part_of_the_same_documents(corpus: TokenizedCorpus) -> None:
    kept = sum(shard["documents"] for shard in corpus.manifest["shards"].values())
    assert 0.015 * 240_000 < kept < 0.025 * 240_000


def test_a_heldout_document_is_kept_out_of_pretraining() -> None:
    distinct = build_installed._distinct(
        [
            installed.Document("pretraining", "python", "the same text"),
            installed.Document("finetune_python", "networkx", "the same text"),
            installed.Document("pretraining", "python", "another text"),
        ],
        fraction=1.0,
    )
    shards = build_installed._split({key: (document, key) for key, document in distinct.items()})
    where = {document.text: shard.name for shard in shards for document in shard.documents}
    assert where["the same text"].startswith("finetune_python/")
    assert where["another text"].startswith("pretraining/")


def test_bpe_does_not_depend_on_threads() -> None:
    texts = [document.text for document in installed.documents(0)][:400]
    code = (
        "import sys, json; from raysweep.corpora.tokenizer import train_bpe;"
        "print(train_bpe(json.load(sys.stdin), 600).to_str())"
    )
    trained = [
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(texts),
            env=os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    ]
    assert trained[0] == trained[1]
    assert len(json.loads(trained[0])["model"]["vocab"]) == 600


def test_the_olmo_tokenizer() -> None:
    tokenizer = build_installed._tokenizer(Corpus(name="installed"), [], ignore)
    # 50280 entries, end-of-text 50279: the configuration of OLMo-1B, whose tokenizer this is.
    assert (tokenizer.get_vocab_size(), tokenizer.token_to_id(END_OF_TEXT)) == (50280, 50279)


BUILD = (
    "import sys; from raysweep.space.corpus import Corpus; from raysweep.corpora import build, installed;"
    "installed.RECIPE = [e for e in installed.RECIPE if e.domain in ('questions', 'cython')];"
    "print(build.build(Corpus(name='installed', tokenizer='bpe', vocabulary=400, fraction=0.05, decontaminate=None)))"
)


def start_build(cache: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"RAYSWEEP_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_two_processes_building_at_once_and_after_a_kill(tmp_path: Path) -> None:
    """The first build is killed midway; then two start together. Both end with the same intact corpus."""
    killed = start_build(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("corpora/*.unfinished")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(tmp_path.glob("corpora/*.unfinished"))
    assert not list(tmp_path.glob("corpora/*/manifest.json"))

    both = [start_build(tmp_path) for _ in range(2)]
    folders = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    TokenizedCorpus(Path(folders.pop()))
    assert not list(tmp_path.glob("corpora/*.unfinished"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("file", ["pretraining/train.bin", "tokenizer.json", "manifest.json"])
def test_damage_is_found_and_named(corpus: TokenizedCorpus, tmp_path: Path, file: str, damage: str) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder)
    path = folder / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        # In the manifest, inside a checksum: valid JSON with another number.
        at = content.index(b'"sha256": "') + 12 if file == "manifest.json" else len(content) // 2
        content[at] = ord("0") if content[at] != ord("0") else ord("1")
    elif damage == "truncate":
        content = content[:-10]
    path.write_bytes(content)
    if damage == "remove":
        path.unlink()
    with pytest.raises(UserError, match=r"damaged or missing; delete the folder"):
        TokenizedCorpus(folder)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(blocked / "cache"))
    with pytest.raises(UserError, match="cannot be written: Not a directory; make room there or set RAYSWEEP_CACHE"):
        build.build(Corpus(**TINY))
