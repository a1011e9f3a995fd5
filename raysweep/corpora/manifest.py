"""The manifest of a built corpus: what is in it, under checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from raysweep.corpora.tokenizer import END_OF_TEXT

FILE = "manifest.json"


def finish(manifest: dict[str, Any], folder: Path, end_of_text: int | None = None) -> None:
    """Write the manifest of a folder whose token files and tokenizer are there; end-of-text is raysweep's own by default."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    manifest |= {
        "end_of_text": tokenizer.token_to_id(END_OF_TEXT) if end_of_text is None else end_of_text,
        "tokenizer_entries": tokenizer.get_vocab_size(),
        "tokenizer_sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
    }
    manifest["fingerprint"] = fingerprint(manifest)
    manifest["sha256"] = checksum(manifest)
    (folder / FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def fingerprint(manifest: dict[str, Any]) -> str:
    """16 hex digits that change when any token, or the tokenizer, does."""
    content = [manifest["tokenizer_sha256"], manifest["end_of_text"]]
    content += [[name, shard["tokens"], shard["sha256"]] for name, shard in sorted(manifest["shards"].items())]
    # Of an evaluation's text: what training has seen of it depends on the corpus too.
    content += [["seen_by", manifest["seen_by"]]] if "seen_by" in manifest else []
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def first_malformed(manifest: dict[str, Any]) -> str:
    """Where the first of the documents stands that were left out as malformed, and why it was: `a.jsonl at 3: ...`."""
    first = manifest["malformed"]["first"][0]
    return f"{first['file']} at {first['place']:,}: {first['reason']}"


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of all that a manifest says, but for this."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
