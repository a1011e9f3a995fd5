"""Documents that a user's own function yields: once, whole, and refused where they are none."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysweep.corpora import own_source
from raysweep.corpora.build import build, open_corpus
from raysweep.corpora.progress import CorpusProgress, ignore
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space import plugins
from raysweep.space.corpus import Corpus

SOURCES = """
from pathlib import Path

CALLS = Path(__file__).with_name("calls")


def documents():
    with CALLS.open("a") as calls:
        calls.write("x")
    for i in range(400):
        yield f"document {i}: " + " ".join(str(i * k) for k in range(40))


def rows():
    for i in range(400):
        yield {"body": f"row {i} " + " ".join(str(i + k * k) for k in range(40)), "kind": "even" if i % 2 == 0 else "odd"}


def numbers():
    yield "text"
    yield 3


def raises():
    yield "text"
    raise KeyError("gone")


def nothing():
    return []


def none():
    return None


def takes(path):
    return []
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own_source"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "s.py").write_text(SOURCES)
    path = list(sys.path)
    sys.path.append(str(tmp_path))
    yield folder
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("own_source")]:
        del sys.modules[name]
    plugins.version.cache_clear()


def corpus_of(function: str, **more: str) -> Corpus:
    source = {"function": f"own_source.s:{function}", **more}
    return Corpus.model_validate({"name": "own", "tokenizer": "bpe", "vocabulary": 300, "pretraining": source})


def texts(corpus: TokenizedCorpus) -> list[str]:
    ids = [token for shard in corpus.shards for token in corpus.tokens(shard)[:].tolist()]
    return sorted(corpus.tokenizer.decode(ids, skip_special_tokens=False).split("<|endoftext|>")[:-1])


def test_every_document_is_in_the_corpus_once_and_the_function_is_called_once(package: Path) -> None:
    said: list[CorpusProgress] = []
    built = open_corpus(corpus_of("documents"), report=said.append)
    assert texts(built) == sorted(f"document {i}: " + " ".join(str(i * k) for k in range(40)) for i in range(400))
    assert open_corpus(corpus_of("documents")).fingerprint == built.fingerprint
    assert (package / "calls").read_text() == "x"
    assert any("documents so far" in progress.phase for progress in said)
    # Other code is another source: it is called again, and the corpus is another.
    (package / "s.py").write_text(SOURCES.replace("i * k", "i - k"))
    del sys.modules["own_source.s"]
    plugins.version.cache_clear()
    assert open_corpus(corpus_of("documents")).fingerprint != built.fingerprint
    assert (package / "calls").read_text() == "xx"


def test_fields_are_those_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_source, "FILE", 10_000)
    built = open_corpus(corpus_of("rows", text="body", domain="kind"))
    domains = {name: n["documents"] for s in built.manifest["shards"].values() for name, n in s["domains"].items()}
    assert domains.keys() == {"even", "odd"}
    assert len(texts(built)) == 400
    folder = own_source.written("own_source.s:rows", ignore)
    parts = [[json.loads(line)["body"].split()[1] for line in file.open()] for file in sorted(folder.iterdir())]
    assert len(parts) > 2
    assert [number for part in parts for number in part] == [str(i) for i in range(400)]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("numbers", r"own_source\.s:numbers: document 2 is int: a text is asked for, or a dict of fields"),
        ("raises", r"own_source\.s:raises: \S+s\.py:\d+: KeyError: 'gone' \(after 1 documents\)"),
        ("nothing", r"own_source\.s:nothing yields no document"),
        ("none", r"own_source\.s:none returned NoneType: it must yield documents"),
        ("takes", r"s\.py:\d+: takes must take no argument, and yield documents"),
        ("missing", r"missing is not there in \S+s\.py"),
    ],
)
def test_what_is_no_source_is_one_line_and_leaves_nothing(tmp_path: Path, function: str, said: str) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=said) as error:
            build(corpus_of(function))
        assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("sources/*[!d]/*.jsonl"))


def test_ids_of_cells_know_the_function_and_not_its_place() -> None:
    one = corpus_of("documents").model_dump()["pretraining"][0]
    assert one["function"] == "own_source.s:documents"
    assert "function" not in Corpus(name="x", pretraining=({"folder": "/x"},)).model_dump()["pretraining"][0]  # type: ignore[arg-type]
