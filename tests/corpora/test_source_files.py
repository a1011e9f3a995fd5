"""The published data sets in their layouts: from a copy, from a hub on localhost, and refused by it."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import hub

from raysweep.corpora import layouts
from raysweep.corpora.build import open_corpus, place
from raysweep.corpora.source_files import MIRROR, opened, resolve
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus, Source
from raysweep.space.data_sets import DATA_SETS


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every data set in its published layout."""
    folder = tmp_path_factory.mktemp("hub")
    layouts.write(folder)
    return folder


@pytest.fixture
def mirror(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MIRROR, str(copies))
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    return copies


@pytest.fixture(scope="module")
def pile(copies: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizedCorpus:
    """The study's corpus, of all the data sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MIRROR, str(copies))
        patch.setenv("RAYSWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return open_corpus(Corpus(name="pile"))


def texts(corpus: TokenizedCorpus, shard: str) -> list[str]:
    ids = corpus.tokens(shard)[:].tolist()
    found, begun = [], []
    for token in ids:
        if token == corpus.manifest["end_of_text"]:
            found.append(corpus.tokenizer.decode(begun))
            begun = []
        else:
            begun.append(token)
    assert not begun
    return found


@pytest.mark.parametrize("name", DATA_SETS)
def test_each_data_set_says_what_it_is(name: str) -> None:
    known = DATA_SETS[name]
    assert len(known.revision) == 40
    assert int(known.revision, 16)
    assert known.documented == f"https://huggingface.co/datasets/{known.repository}"
    for said in (known.fields, known.licence, known.size, known.note):
        assert said
    assert "train" in known.splits


def test_the_study_reads_each_data_set_as_it_is_published(pile: TokenizedCorpus, copies: Path) -> None:
    """Against the files as this test reads them, by other means."""
    train = []
    for name in ("00", "01"):
        path = copies / "monology/pile-uncopyrighted/train" / f"{name}.jsonl.zst"
        lines = pa.input_stream(str(path), compression="zstd").read().splitlines()
        train += [json.loads(line) for line in lines]
    assert texts(pile, "pretraining/train") == [row["text"] for row in train]
    domains = pile.manifest["shards"]["pretraining/train"]["domains"]
    assert {name: counts["documents"] for name, counts in domains.items()} == Counter(
        row["meta"]["pile_set_name"] for row in train
    )
    (ten_thousand,) = (copies / "NeelNanda/pile-10k/data").iterdir()
    assert texts(pile, "pretraining/test") == pq.read_table(ten_thousand)["text"].to_pylist()
    assert pile.manifest["shards"]["pretraining/validation"]["documents"] > 0

    paloma = copies / "allenai/paloma"
    language = "dolma_100_programing_languages"
    assert {shard for shard in pile.shards if shard.startswith("out_of")} == {
        *(f"out_of_distribution/{name}" for name in
          ("c4_en", "wikitext_103", "redpajama", "dolma-v1_5", "m2d2_wikipedia_unsplit")),
        *(f"out_of_distribution/{language}.{name}" for name in ("00_text", "02_c", "06_python", "15_jupyter_notebook")),
    }  # fmt: skip
    rows = gzip.decompress((paloma / language / "val" / "val_02_c.jsonl.gz").read_bytes()).splitlines()
    assert texts(pile, f"out_of_distribution/{language}.02_c") == [json.loads(row)["text"] for row in rows]

    code = pq.read_table(copies / "bigcode/starcoderdata/python")["content"].to_pylist()
    held_out = texts(pile, "finetune_python/test")
    assert sorted(texts(pile, "finetune_python/train") + held_out) == sorted(code)
    assert 0.05 < len(held_out) / len(code) < 0.2
    assert any(text.startswith("<reponame>") for text in held_out)
    math = pq.read_table(copies / "open-web-math/open-web-math/data")["text"].to_pylist()
    assert sorted(texts(pile, "finetune_math/train") + texts(pile, "finetune_math/test")) == sorted(math)


def test_a_node_without_the_copies_asks_for_no_hub(pile: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a corpus is, or would be, is known without a network: a commit says what is in it."""
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert place(Corpus(name="pile"))[0].name.startswith("pile-")


def test_the_splits_and_files_of_a_source(mirror: Path) -> None:
    pile = Source(preset="pile", split="validation")
    assert [file.name for file in resolve(pile).files] == ["val.jsonl.zst"]
    assert [file.name for file in resolve(Source(preset="pile", files=("train/01*",))).files] == ["train/01.jsonl.zst"]
    with pytest.raises(UserError, match="pile has no split 'val'; it has train, validation, test"):
        resolve(Source(preset="pile", split="val"))
    with pytest.raises(UserError, match=r"pile: .* does not hold the files of monology/pile-uncopyrighted"):
        resolve(Source(preset="pile", files=("trian/*",)))


LEFT_OUT = """
import json
from raysweep.corpora.source_files import resolve
from raysweep.space.corpus import Source
print(json.dumps(resolve(Source(hub="someone/text", revision="1" * 40)).left_out))
"""


def test_what_a_data_set_holds_and_is_not_read_is_named(tmp_path: Path) -> None:
    root = tmp_path / "hub" / "someone" / "text"
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.jsonl").write_text('{"text": "read"}\n')
    for name in ("README.md", "data/b.csv", "licence.txt"):
        (root / name).write_text("text\nnot read\n")
    with hub.serve(tmp_path / "hub") as (address, _):
        for environment in ({"HF_ENDPOINT": address}, {MIRROR: str(tmp_path / "hub")}):
            printed = subprocess.run(
                [sys.executable, "-c", LEFT_OUT], capture_output=True, text=True, check=True,
                env=os.environ | {"HF_HOME": str(tmp_path / "home")} | environment,
            ).stdout  # fmt: skip
            left_out = json.loads(printed)
            assert sorted(left_out) == ["README.md", "data/b.csv", "licence.txt"]
            assert "does not end in .jsonl" in left_out["data/b.csv"]
            assert "name it in `files`" in left_out["licence.txt"]


RESOLVE = """
import json, sys
from raysweep.space.corpus import Source
from raysweep.corpora.source_files import opened, resolve
from raysweep.errors import UserError
for line in sys.stdin:
    try:
        file = resolve(Source(**json.loads(line))).files[0]
        read = []
        for stream in (True, False):
            with opened(file, stream) as content:
                read.append(content.read().hex()[-40:])
        print(json.dumps([file.name, file.size, *read]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def ask(sources: list[dict[str, str]], home: Path, **environment: str) -> list[object]:
    """What another process finds, since the hub's libraries read the environment when they are imported."""
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE], input="".join(json.dumps(source) + "\n" for source in sources), text=True,
        env={key: value for key, value in os.environ.items() if key not in (MIRROR, "HF_TOKEN")}
        | {"HF_HOME": str(home)} | environment,
        capture_output=True, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_from_a_hub(copies: Path, tmp_path: Path) -> None:
    sources = [{"preset": name} for name in DATA_SETS]
    with hub.serve(copies, gated=("allenai/paloma",), token="hf_of_mine") as (address, asked):
        with_token = ask(sources, tmp_path / "1", HF_ENDPOINT=address, HF_TOKEN="hf_of_mine")
        # What was downloaded needs no hub but to be resolved.
        assert sum("GET" in line and "resolve" in line for line in asked) >= 2 * len(DATA_SETS)
        refused = ask(
            [
                {"preset": "paloma"}, {"hub": "no/where", "revision": "1" * 40},
                {"hub": "NeelNanda/pile-10k", "revision": hub.NONE},
                {"hub": "NeelNanda/pile-10k", "revision": "1" * 40, "files": ["nothing/*"]},
            ],
            tmp_path / "2", HF_ENDPOINT=address,
        )  # fmt: skip
    for (name, size, streamed, downloaded), preset_name in zip(with_token, DATA_SETS, strict=True):  # type: ignore[misc]
        path = copies / DATA_SETS[preset_name].repository / name
        assert size == path.stat().st_size
        assert streamed == downloaded == path.read_bytes().hex()[-40:]
    gated, nowhere, revision, files = map(str, refused)
    assert gated.startswith(
        "paloma is gated: accept its terms at https://huggingface.co/datasets/allenai/paloma, then set"
    )
    assert nowhere.startswith("no/where: there is no data set no/where on the hub, or it is private")
    assert revision.endswith(f"has no revision {hub.NONE}")
    assert "none of the files asked for" in files


@pytest.mark.slow
def test_without_a_network(tmp_path: Path) -> None:
    """Half a minute, since the hub's library tries six times."""
    (said,) = ask([{"preset": "pile"}], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached" in str(said)
    assert "set RAYSWEEP_MIRROR" in str(said)


def test_offline_by_the_users_wish(tmp_path: Path) -> None:
    (said,) = ask([{"preset": "pile"}], tmp_path, HF_HUB_OFFLINE="1")
    assert "the hub cannot be reached" in str(said)


def test_opened_reads_local_files(mirror: Path) -> None:
    file = resolve(Source(preset="pile-10k")).files[0]
    with opened(file, stream=False) as content:
        assert content.read(4) == b"PAR1"
