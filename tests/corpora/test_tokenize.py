"""Shards out of sources of any size: the same with any number of tasks and after any kill, and what is left out is said."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from raysweep.corpora import installed, show, tokenize
from raysweep.corpora.build import open_corpus, place
from raysweep.corpora.split import share
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real text, some 2 MB of it."""
    return list(dict.fromkeys(document.text for document in installed.documents(1)))[:4000]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


def write(path: Path, texts: list[str], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text} | more) + "\n" for text in texts), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, texts: list[str]) -> Path:
    """Three files of text."""
    for i in range(3):
        write(tmp_path / "text" / f"{i}.jsonl", texts[i::3], of={"file": f"number {i}"})
    return tmp_path / "text"


def corpus_of(folder: Path, **more: Any) -> Corpus:
    source = {"folder": str(folder), "domain": "of.file"}
    return Corpus.model_validate({"name": "mine", "pretraining": source} | more)


def documents(corpus: TokenizedCorpus, shard: str) -> list[str]:
    tokens = corpus.tokens(shard)[:]
    ends = np.flatnonzero(tokens == corpus.manifest["end_of_text"])
    return [corpus.tokenizer.decode(part.tolist()) for part in np.split(tokens, ends + 1)[:-1]]


def test_every_document_is_there_once_in_order_and_held_out_by_its_hash(folder: Path, texts: list[str]) -> None:
    import hashlib

    corpus = open_corpus(corpus_of(folder))
    expected: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text in [*texts[0::3], *texts[1::3], *texts[2::3]]:
        at = share(hashlib.sha256(text.encode()).digest()[16:24])
        expected["test" if at < 0.02 else "validation" if at < 0.04 else "train"].append(text)
    for part, wanted in expected.items():
        assert (
            documents(corpus, f"pretraining/{part}") == [f"{text}<|endoftext|>" for text in wanted]
            or [text.removesuffix("<|endoftext|>") for text in documents(corpus, f"pretraining/{part}")] == wanted
        )
        entry = corpus.manifest["shards"][f"pretraining/{part}"]
        assert entry["documents"] == len(wanted) > 20
        assert entry["bytes"] == sum(len(text.encode()) for text in wanted)
        assert entry["tokens"] == len(corpus.tokens(f"pretraining/{part}"))
    assert set(corpus.manifest["shards"]["pretraining/train"]["domains"]) == {"number 0", "number 1", "number 2"}
    # The same tokens as the tokenizer's own for the whole text.
    first = corpus.tokens("pretraining/train")[:50].tolist()
    alone = corpus.tokenizer.encode(expected["train"][0], add_special_tokens=False).ids
    assert first[: len(alone)] == alone[:50]


BUILD = """
import os, sys
from raysweep.corpora import tokenize
from raysweep.corpora.build import open_corpus
from raysweep.space.corpus import Corpus
tokenize.BLOCK = 50_000
tokenize.SMALL = int(sys.argv[2])
if cores := os.environ.get("CORES"):
    from raysweep.cluster import environment
    os.environ.update(environment.CLIENT | environment.LOCAL_CLUSTER)
    import ray
    ray.init(address="local", num_cpus=int(cores), logging_level="CRITICAL", log_to_driver=False)
print(open_corpus(Corpus.model_validate_json(sys.argv[1])).fingerprint)
"""


def build(corpus: Corpus, cache: Path, small: int, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, corpus.model_dump_json(), str(small)], text=True, start_new_session=True,
        env=os.environ | {"RAYSWEEP_CACHE": str(cache), "RAY_ADDRESS": "local"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> str:
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return printed.strip()


def files(cache: Path) -> dict[str, bytes]:
    (folder,) = [path for path in (cache / "corpora").iterdir() if path.is_dir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.bin")}


def test_killed_three_times_or_by_ray_the_tokens_are_the_same(folder: Path, tmp_path: Path) -> None:
    corpus = corpus_of(folder)
    whole = finish(build(corpus, tmp_path / "whole", small=1 << 30))
    wanted = files(tmp_path / "whole")
    assert len(wanted) > 30
    # In this process, killed; between two kills at least one more block is made.
    chance = random.Random(0)
    made = 0
    for _ in range(3):
        process = build(corpus, tmp_path / "killed", small=1 << 30)
        while process.poll() is None and len(blocks(tmp_path / "killed")) <= made + chance.randrange(3):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert len(blocks(tmp_path / "killed")) > made
        made = len(blocks(tmp_path / "killed"))
    assert 3 <= made < 50
    assert finish(build(corpus, tmp_path / "killed", small=1 << 30)) == whole
    assert files(tmp_path / "killed") == wanted
    # By Ray's tasks.
    assert finish(build(corpus, tmp_path / "ray", small=0)) == whole
    assert files(tmp_path / "ray") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 4])
def test_ray_s_tasks_killed_with_all_that_they_run_on(folder: Path, tmp_path: Path, cores: int) -> None:
    corpus = corpus_of(folder)
    whole = finish(build(corpus, tmp_path / "whole", small=1 << 30))
    made = 0
    for _ in range(5):
        process = build(corpus, tmp_path / "killed", small=0, CORES=str(cores))
        while process.poll() is None and len(blocks(tmp_path / "killed")) <= made:
            time.sleep(0.01)
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()
        assert len(blocks(tmp_path / "killed")) > made
        made = len(blocks(tmp_path / "killed"))
    assert made < 40
    assert finish(build(corpus, tmp_path / "killed", small=0)) == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def blocks(cache: Path) -> list[Path]:
    return list(cache.glob("corpora/*/blocks/*.json"))


def test_a_damaged_block_is_made_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "BLOCK", 50_000)
    corpus = corpus_of(folder)
    expected = open_corpus(corpus).fingerprint
    built = place(corpus)[0]
    unfinished = built.with_name(f"{built.name}.unfinished")

    def stop(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "again"))
    unfinished = Path(str(unfinished).replace("/cache/", "/again/"))
    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "about_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            open_corpus(corpus)
    victims = sorted(unfinished.glob("pretraining/train/*.bin"))
    victims[1].write_bytes(victims[1].read_bytes()[:-2])
    victims[3].unlink()
    assert open_corpus(corpus).fingerprint == expected


def test_a_changed_file_is_another_corpus(folder: Path) -> None:
    before = place(corpus_of(folder))[0]
    with (folder / "0.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    assert place(corpus_of(folder))[0] != before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "no JSON"),
        ('{"content": "x"}', "no field 'text'; there is content"),
    ],
)
def test_a_malformed_document_ends_the_build_with_its_place_or_is_counted(folder: Path, line: str, said: str) -> None:
    with (folder / "1.jsonl").open("a") as file:
        file.write(line + "\n")
    number = len((folder / "1.jsonl").read_text().splitlines())
    with pytest.raises(UserError, match=rf"^text: 1\.jsonl, line {number:,}: {said}.*skip_malformed: true") as refused:
        open_corpus(corpus_of(folder))
    assert "\n" not in str(refused.value)
    corpus = open_corpus(
        Corpus.model_validate({"name": "mine", "pretraining": {"folder": str(folder), "skip_malformed": True}})
    )
    assert corpus.manifest["malformed"]["documents"] == 1
    (first,) = corpus.manifest["malformed"]["first"]
    assert (first["file"], first["place"]) == ("1.jsonl", number)


def test_sources_that_hold_nothing_are_named(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "nothing" / "a.jsonl", ["", ""])
    with pytest.raises(UserError, match="nothing, for validation of the corpus mine, holds no document"):
        open_corpus(corpus_of(folder, validation={"folder": str(tmp_path / "nothing")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no file to read: none of .* in "):
        open_corpus(corpus_of(folder, validation={"folder": str(tmp_path / "empty")}))
    with pytest.raises(UserError, match="gone: no such folder, for the documents of gone"):
        open_corpus(corpus_of(folder, validation={"folder": str(tmp_path / "gone")}))


def test_fraction_keeps_documents_by_their_hash(folder: Path) -> None:
    whole, half = open_corpus(corpus_of(folder)), open_corpus(corpus_of(folder, fraction=0.5))
    kept, every = documents(half, "pretraining/train"), documents(whole, "pretraining/train")
    assert set(kept) < set(every)
    assert 0.45 < len(kept) / len(every) < 0.55


def test_a_tokenizer_trained_on_the_first_training_documents(folder: Path) -> None:
    corpus = open_corpus(corpus_of(folder, tokenizer="bpe", vocabulary=400))
    assert corpus.manifest["tokenizer_entries"] == 400
    assert int(corpus.tokens("pretraining/train")[:].max()) < 400


def test_domains_out_of_distribution_have_shards_of_their_own(folder: Path, tmp_path: Path) -> None:
    held_out = {"folder": str(folder), "domain": "of.file", "files": ["[01].jsonl"]}
    training = {"folder": str(folder), "files": ["2.jsonl"]}
    corpus = open_corpus(Corpus.model_validate({"name": "m", "pretraining": training, "out_of_distribution": held_out}))
    shards = [shard for shard in corpus.shards if shard.startswith("out")]
    assert shards == ["out_of_distribution/number_0", "out_of_distribution/number_1"]


def test_training_documents_that_share_text_with_an_evaluation_are_left_out(tmp_path: Path, texts: list[str]) -> None:
    long = [text for text in texts if len(text) > 300]
    own, evaluation = long[:600], long[2000:2200]
    copied = [f"Before it. {text} After it." for text in evaluation[:5]]
    write(tmp_path / "train" / "a.jsonl", own + copied, of={"file": "a"})
    write(tmp_path / "evaluation" / "a.jsonl", evaluation)
    sources = {"in_distribution": {"folder": str(tmp_path / "evaluation")}}
    plain = open_corpus(corpus_of(tmp_path / "train", **sources))
    clean = open_corpus(corpus_of(tmp_path / "train", decontaminate=13, **sources))
    left_out = Counter(documents(plain, "pretraining/train")) - Counter(documents(clean, "pretraining/train"))
    held_out = documents(clean, "pretraining/validation")
    caught = [text for text in copied if any(text in found for found in [*left_out, *held_out])]
    assert caught == copied
    said = clean.manifest["decontamination"]
    assert said["documents"] == left_out.total() >= 4
    assert said["by_evaluation"]["pretraining/test"]["documents"] >= 4
    # What is evaluated stays as it was.
    assert documents(clean, "pretraining/test") == documents(plain, "pretraining/test")


def test_a_domain_named_train_is_no_training_text(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path / "text" / "a.jsonl", texts[:300], of={"file": "own"})
    write(tmp_path / "other" / "a.jsonl", texts[1000:1010], of={"file": "train"})
    held_out = {"folder": str(tmp_path / "other"), "domain": "of.file"}
    corpus = open_corpus(corpus_of(tmp_path / "text", out_of_distribution=held_out, decontaminate=13))
    assert corpus.manifest["shards"]["out_of_distribution/train"]["documents"] == 10


def test_a_sample_is_from_all_over_a_corpus_of_files(folder: Path, corpus: TokenizedCorpus) -> None:
    own = open_corpus(corpus_of(folder)).sequences("pretraining/train", 32)
    chosen = own.sample(100)
    assert len(set(chosen.tolist())) == 100
    assert chosen[0] == 0
    assert len(own) * 0.98 < chosen[-1] < len(own)
    assert own.sample(10**9).tolist() == list(range(len(own)))
    # `installed` is in an order by chance: its first sequences, as ever.
    assert corpus.sequences("pretraining/test", 32).sample(5).tolist() == [0, 1, 2, 3, 4]


def test_what_a_store_knows_a_corpus_by(folder: Path) -> None:
    # As version 0.1.0 wrote it into corpora.json.
    assert Corpus(name="installed", decontaminate=None).key == (
        '{"name":"installed","tokenizer":"olmo","vocabulary":50304,"fraction":1.0,"revision":null}'
    )
    here, there = (corpus_of(Path(place) / "text") for place in ("/here", "/there"))
    assert here.key == there.key != corpus_of(Path("/here/other")).key


def test_many_malformed_lines_take_no_memory(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "BLOCK", 100_000)
    write(tmp_path / "text" / "a.jsonl", texts[:100])
    with (tmp_path / "text" / "a.jsonl").open("a") as file:
        file.write('{"no": 1}\n' * 20_000)
    source = {"folder": str(tmp_path / "text"), "skip_malformed": True}
    corpus = open_corpus(Corpus.model_validate({"name": "mine", "pretraining": source}))
    assert corpus.manifest["malformed"]["documents"] == 20_000
    assert len(corpus.manifest["malformed"]["first"]) == 20
    assert (corpus.folder / "manifest.json").stat().st_size < 20_000


@pytest.mark.slow
def test_an_error_of_a_task_of_ray_s_ends_the_build_with_itsplace(folder: Path, tmp_path: Path) -> None:
    with (folder / "2.jsonl").open("a") as file:
        file.write("{broken\n")
    process = build(corpus_of(folder), tmp_path / "cache", small=0)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("raysweep.errors.UserError: text: 2.jsonl, line ")


def test_patterns_and_places_that_cannot_be(folder: Path) -> None:
    for pattern in ("**.jsonl", "[.jsonl"):
        with pytest.raises(UserError, match=r"^text"):
            open_corpus(
                Corpus.model_validate({"name": "m", "pretraining": {"folder": str(folder), "files": [pattern]}})
            )
    with pytest.raises(UserError, match="cannot be read"):
        open_corpus(corpus_of(Path("~nobody-here/text")))


def test_what_is_shown(folder: Path) -> None:
    corpus = open_corpus(corpus_of(folder))
    tokens = corpus.tokens("pretraining/train")[:]
    (first, part), *_ = show.heaviest(corpus, "pretraining/train")
    values, counts = np.unique(tokens, return_counts=True)
    assert first == repr(corpus.tokenizer.decode([int(values[counts.argmax()])]))
    assert part == counts.max() / len(tokens)
    shown = show.documents(corpus, "pretraining/train")
    whole = documents(corpus, "pretraining/train")
    assert len(shown) == 3
    assert all(any(text.startswith(one.removesuffix("...")[:300]) for text in whole) for one in shown)
