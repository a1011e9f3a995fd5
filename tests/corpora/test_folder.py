"""What a folder's reading includes, what it leaves out with a reason, and what is refused."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from raysweep.cache import cache as cache_folder
from raysweep.corpora import tokenize
from raysweep.corpora.build import open_corpus
from raysweep.corpora.folder import listing
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


def lines(path: Path, first: int, last: int, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"This is document number {i} of the test."} | more for i in range(first, last)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def built(**fields: Any) -> TokenizedCorpus:
    return open_corpus(Corpus.model_validate({"name": "mine"} | fields))


def total(corpus: TokenizedCorpus) -> int:
    return sum(shard["documents"] for shard in corpus.manifest["shards"].values())


def test_links_to_folders_are_followed_and_each_file_counts_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "text", tmp_path / "elsewhere"
    lines(root / "a.jsonl", 0, 1)
    lines(root / "real" / "b.jsonl", 1, 2)
    lines(elsewhere / "deep" / "c.jsonl", 2, 3)
    (root / "0-again").symlink_to(root / "real")
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (elsewhere / "deep" / "round").symlink_to(elsewhere)
    (root / "z.jsonl").symlink_to("a.jsonl")
    (root / "nothing.jsonl").symlink_to("gone")
    found = listing(root, ())
    assert sorted(found.files) == ["a.jsonl", "linked/deep/c.jsonl", "real/b.jsonl"]
    assert sorted(found.left_out) == ["nothing.jsonl", "z.jsonl"]
    assert "a.jsonl" in found.left_out["z.jsonl"]
    assert "link to nothing" in found.left_out["nothing.jsonl"]


def test_a_pattern_may_name_a_link(tmp_path: Path) -> None:
    lines(tmp_path / "v2" / "a.jsonl", 0, 1)
    (tmp_path / "v2" / "round").symlink_to(tmp_path)
    (tmp_path / "current").symlink_to("v2")
    (tmp_path / "state.json").write_text('{"text": "no document"}')
    for pattern in ("current/*.jsonl", "./current//*.jsonl", "curr*/**"):
        assert list(listing(tmp_path, (pattern,)).files) == ["current/a.jsonl"]
    assert list(listing(tmp_path, ("**/*",)).files) == ["v2/a.jsonl"]


def test_a_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    lines(tmp_path / "real" / "a.jsonl", 0, 1)
    (tmp_path / "text").symlink_to("real")
    assert list(listing(tmp_path / "text", ()).files) == ["a.jsonl"]


@pytest.mark.parametrize(
    "name",
    [
        ".a.jsonl.swp", "a.jsonl~", ".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/a.jsonl", "lost+found/a.jsonl",
        "._a.jsonl", "_temporary/0/part-0.jsonl", ".git/x.txt", "a.jsonl.part", "~$a.txt", ".nfs0001.txt", ".hidden.parquet",
    ],
)  # fmt: skip
def test_what_editors_notebooks_and_systems_leave_is_no_data(name: str, tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", 0, 1)
    lines(tmp_path / name, 1, 2)
    for patterns in ((), ("**",), ("**/*",)):
        found = listing(tmp_path, patterns)
        assert list(found.files) == ["a.jsonl"]
        (left_out,) = found.left_out
        assert left_out == name or (left_out.endswith("/") and name.startswith(left_out))


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b/c.jsonl", "b/d/e.jsonl"]),
        ("b/**", ["b/c.jsonl", "b/d/e.jsonl"]),
        ("b/**/e.jsonl", ["b/d/e.jsonl"]),
        ("?.jsonl", ["a.jsonl"]),
        ("b/[!x].jsonl", ["b/c.jsonl"]),
        ("[xa].jsonl", ["a.jsonl"]),
        ("*/*.jsonl", ["b/c.jsonl"]),
    ],
)
def test_patterns_are_those_of_pathlib(pattern: str, matching: list[str], tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl"):
        lines(tmp_path / name, 0, 1)
    assert sorted(listing(tmp_path, (pattern,)).files) == matching
    if not pattern.endswith("**"):  # There it gives folders.
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob(pattern)) == matching


def test_a_pattern_that_matches_nothing_is_refused_and_a_name_matches_itself(tmp_path: Path) -> None:
    for i, name in enumerate(("a.jsonl", "a1.jsonl", "a[1].jsonl", "e\u0301.jsonl", "[x]/b.jsonl")):
        lines(tmp_path / name, i, i + 1)
    for missing in ("A.jsonl", "b/*.jsonl", "a2.jsonl"):
        with pytest.raises(ValueError, match=f"files asks for {re.escape(missing)}, and no file is called so"):
            listing(tmp_path, ("*.jsonl", missing))
    assert sorted(listing(tmp_path, ("a[1].jsonl",)).files) == ["a1.jsonl", "a[1].jsonl"]
    assert list(listing(tmp_path, ("[x]/b.jsonl",)).files) == ["[x]/b.jsonl"]
    # Composed here, decomposed on the disk, as macOS writes it.
    assert list(listing(tmp_path, ("\u00e9.jsonl",)).files) == ["e\u0301.jsonl"]


def test_every_file_is_read_or_named_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "text"
    lines(root / "dolma.json.gz", 0, 40)
    lines(root / "c.jsonl", 40, 80)
    lines(root / "old.json", 80, 90)
    (root / "README.md").write_text("About it.")
    (root / ".DS_Store").write_bytes(b"\0\1")
    corpus = built(pretraining={"folder": str(root)})
    assert total(corpus) == 80
    said = corpus.manifest["left_out"]
    assert said["files"] == 3
    assert {one["file"] for one in said["first"]} == {"old.json", "README.md", ".DS_Store"}
    assert all(one["reason"] for one in said["first"])
    with_json = built(pretraining={"folder": str(root), "files": ["*.json", "*.jsonl", "./*.json.gz"]})
    assert total(with_json) == 90
    assert "left_out" not in with_json.manifest


def test_files_that_are_asked_for_and_cannot_be_read_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "text" / "a.jsonl", 0, 50)
    (tmp_path / "text" / "b.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=r"files asks for b\.csv, which cannot be read: it may end in \.jsonl"):
        built(pretraining={"folder": str(tmp_path / "text"), "files": ["*.jsonl", "*.csv"]})
    (tmp_path / "text" / "c.json").write_text(' [\n{"text": "a"}]')
    with pytest.raises(UserError, match=r"c\.json, line 1: a JSON array.*jq -c"):
        built(pretraining={"folder": str(tmp_path / "text"), "files": ["*.json"]})


def test_two_purposes_share_no_file_and_no_copy_of_one(tmp_path: Path) -> None:
    root = tmp_path / "text"
    lines(root / "a.jsonl", 0, 50)
    lines(root / "held_out" / "b.jsonl", 50, 60)
    inside = {"folder": str(root / "held_out")}
    with pytest.raises(UserError, match=r"held_out/b\.jsonl both in pretraining and in validation: choose"):
        built(pretraining={"folder": str(root)}, validation=inside)
    built(pretraining={"folder": str(root), "files": ["*.jsonl"]}, validation=inside)
    (tmp_path / "link").symlink_to(root / "held_out")
    with pytest.raises(UserError, match="both in pretraining and in in_distribution"):
        built(pretraining={"folder": str(root)}, in_distribution={"folder": str(tmp_path / "link")})
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "other.jsonl").write_bytes((root / "a.jsonl").read_bytes())
    with pytest.raises(UserError, match=r"both in pretraining and in validation, there as .*(other|a)\.jsonl"):
        built(pretraining={"folder": str(root), "files": ["a.jsonl"]}, validation={"folder": str(tmp_path / "copy")})
    # Which leaves the training documents out instead.
    built(
        pretraining={"folder": str(root), "files": ["a.jsonl"]},
        validation=[{"folder": str(tmp_path / "copy")}, inside],
        decontaminate=13,
    )
    two_fields = tmp_path / "two"
    lines(two_fields / "a.jsonl", 0, 50, answer="Yes, and here is why.")
    built(pretraining=[{"folder": str(two_fields)}, {"folder": str(two_fields), "text": "answer"}])
    with pytest.raises(UserError, match="twice in pretraining"):
        built(pretraining=[{"folder": str(root)}, {"folder": str(root / "held_out")}])


def test_two_purposes_share_no_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "BLOCK", 300)  # Some seven documents.
    lines(tmp_path / "train" / "a.jsonl", 0, 50)
    lines(tmp_path / "train" / "b.jsonl", 50, 100)
    lines(tmp_path / "held_out" / "a.jsonl", 100, 120)
    (tmp_path / "held_out" / "b.jsonl").write_text(
        '{"text": "of its own"}\n\n{"text": "This is document number 77 of the test."}\n'
    )
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "a.txt").write_text("This is document number 103 of the test.")
    train, held_out = {"folder": str(tmp_path / "train")}, {"folder": str(tmp_path / "held_out")}
    # One seven-document block after the other, of which the tenth has it; every line is counted, the empty one too.
    with pytest.raises(
        UserError, match=r"same document in pretraining \(train: b\.jsonl, line 28\) and in "
    ) as refused:
        built(pretraining=train, in_distribution=held_out)
    assert "and in in_distribution (held_out: b.jsonl, line 3): take it out" in str(refused.value)
    # And again where the build resumes.
    with pytest.raises(UserError, match="line 28"):
        built(pretraining=train, in_distribution=held_out)
    with pytest.raises(
        UserError, match=r"in finetune_python \(python: a\.txt.*in_distribution|in_distribution.*a\.txt"
    ):
        built(pretraining=train, in_distribution=held_out, finetune_python={"folder": str(tmp_path / "python")})
    # Each document has nine tokens.
    clean = built(pretraining=train, in_distribution=held_out, decontaminate=9)
    assert clean.manifest["decontamination"]["documents"] == 1
    other = built(pretraining=train, in_distribution=held_out | {"files": ["a.jsonl"]})
    assert total(other) == 120


def test_domains_that_tables_would_call_the_same_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "train" / "a.jsonl", 0, 50)
    for i, domain in enumerate(("C", "c", "a b", "a_b")):
        lines(tmp_path / "ood" / f"{i}.jsonl", 50 + i, 51 + i, set=domain)
    ood = {"folder": str(tmp_path / "ood"), "domain": "set"}
    for files, said in ((["0*", "1*"], "'C' and 'c'"), (["2*", "3*"], "'a b' and 'a_b'")):
        with pytest.raises(UserError, match=f"has the domains {said}, which would both be called"):
            built(pretraining={"folder": str(tmp_path / "train")}, out_of_distribution=ood | {"files": files})
    built(pretraining={"folder": str(tmp_path / "train")}, out_of_distribution=ood | {"files": ["0*", "2*"]})


def test_marks_of_other_systems_are_no_text(tmp_path: Path) -> None:
    lines(tmp_path / "text" / "a.jsonl", 0, 50)
    (tmp_path / "text" / "b.txt").write_bytes("\ufeffMarked, with ä.".encode())
    (tmp_path / "text" / "c.jsonl").write_bytes('\ufeff{"text": "Marked lines."}\r\n'.encode())
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "b.txt").write_bytes("Marked, with ä.".encode())
    (tmp_path / "plain" / "c.jsonl").write_bytes(b'{"text": "Marked lines."}\n')
    lines(tmp_path / "plain" / "a.jsonl", 0, 50)
    marked, plain = (built(pretraining={"folder": str(tmp_path / name)}) for name in ("text", "plain"))
    for shard in plain.shards:
        assert marked.tokens(shard)[:].tolist() == plain.tokens(shard)[:].tolist()
    for name, encoding in (
        ("d.txt", "utf-16"),
        ("d.txt", "utf-16-le"),
        ("d.jsonl", "utf-16"),
        ("d.jsonl", "utf-16-be"),
    ):
        (tmp_path / "text" / name).write_bytes('{"text": "Two bytes a character."}\n'.encode(encoding))
        with pytest.raises(UserError, match=rf"{name}, line 1: not UTF-8 but UTF-16: `iconv"):
            built(pretraining={"folder": str(tmp_path / "text")})
        (tmp_path / "text" / name).unlink()


@pytest.mark.parametrize("name", ["b.txt", "b.jsonl", "b.parquet", "b.jsonl.gz", "b.json.zst"])
def test_pointers_of_git_lfs_are_no_text(name: str, tmp_path: Path) -> None:
    lines(tmp_path / "text" / "a.jsonl", 0, 50)
    (tmp_path / "text" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=rf"{re.escape(name)}, \w+ 1: a pointer of git-lfs.*`git lfs pull`"):
        built(pretraining={"folder": str(tmp_path / "text")})


def test_text_that_spells_a_special_token_is_text(tmp_path: Path) -> None:
    lines(tmp_path / "text" / "a.jsonl", 0, 50)
    (tmp_path / "text" / "b.txt").write_text("One document: <|endoftext|> is how they end, <|padding|> is not.")
    for tokenizer in ({"tokenizer": "olmo"}, {"tokenizer": "bpe", "vocabulary": 300}):
        corpus = built(pretraining={"folder": str(tmp_path / "text")}, **tokenizer)
        ends = sum(int((corpus.tokens(shard)[:] == corpus.manifest["end_of_text"]).sum()) for shard in corpus.shards)
        assert ends == total(corpus) == 51
        read = "".join(
            corpus.tokenizer.decode(corpus.tokens(shard)[:].tolist(), skip_special_tokens=False)
            for shard in corpus.shards
        )
        assert "One document: <|endoftext|> is how they end, <|padding|> is not." in read


def test_a_domain_that_no_document_has_is_refused_and_missing_ones_are_counted(tmp_path: Path) -> None:
    lines(tmp_path / "text" / "a.jsonl", 0, 60, meta={"set": "web"})
    lines(tmp_path / "text" / "b.jsonl", 60, 67)
    folder = str(tmp_path / "text")
    with pytest.raises(
        UserError, match=r"^text, for pretraining of the corpus mine: no document has the field 'meta\.sett'"
    ):
        built(pretraining={"folder": folder, "domain": "meta.sett"})
    # Before anything is tokenized.
    assert not list((tmp_path / "cache").rglob("*.bin"))
    corpus = built(pretraining={"folder": folder, "domain": "meta.set"})
    assert corpus.manifest["without_domain"] == {"text": 7}
    only_a = built(pretraining={"folder": folder, "domain": "meta.set", "files": ["a.jsonl"]})
    assert "without_domain" not in only_a.manifest


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    lines(tmp_path / "text" / "a.jsonl", 0, 50)
    (tmp_path / "text" / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="Permission denied"):
        built(pretraining={"folder": str(tmp_path / "text")})


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that run under a number which has no entry in /etc/passwd."""
    monkeypatch.setenv("RAYSWEEP_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(
        UserError, match=r"^RAYSWEEP_CACHE ~nobody-of-this-name/cache needs a home folder, .*: set HOME, or give"
    ):
        cache_folder()
