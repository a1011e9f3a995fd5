"""What the blocks of a build counted, as its manifest says it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from raysweep.corpora.blocks import LISTED, Part
from raysweep.corpora.contamination import Grams
from raysweep.corpora.split import BY_DOMAIN
from raysweep.errors import UserError
from raysweep.space.corpus import Sourced


def block_name(record: dict[str, Any]) -> str:
    """The name of a block's files, from its record."""
    return f"{record['part']}-{record['block']:05}"


def about_shards(corpus: Sourced, parts: list[Part], records: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    """What the manifest says of shards, their files and mixture, and of what was left out."""
    sources = {part.key.partition("-")[0]: part for part in parts}
    shards: dict[str, dict[str, Any]] = {}
    for record in records:
        for entry in record["files"]:
            empty = {"dtype": dtype, "tokens": 0, "documents": 0, "bytes": 0, "domains": {}, "files": []}
            shard = shards.setdefault(entry["shard"], empty)
            shard["files"].append({key: entry[key] for key in ("file", "tokens", "sha256")})
            for name, counts in entry["domains"].items():
                shard["domains"].setdefault(name, Counter()).update(counts)
            shard["tokens"] += entry["tokens"]
    for name, shard in shards.items():
        shard["files"].sort(key=lambda entry: entry["file"])
        shard["domains"] = {domain: dict(shard["domains"][domain]) for domain in sorted(shard["domains"])}
        for key in ("documents", "bytes"):
            shard[key] = sum(counts[key] for counts in shard["domains"].values())
        weights = _weights(sources, shard, name)
        content = [[entry["sha256"] for entry in shard["files"]], weights]
        shard["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        if weights:
            shard["mixture"] = weights
    if "pretraining" in corpus.sources() and "pretraining/train" not in shards:
        raise UserError(f"the corpus {corpus.name} has no document to train on")
    with_tokens = {record["part"].partition("-")[0] for record in records if record["files"] or record["dropped"]}
    for source, part in sources.items():
        if source not in with_tokens:
            raise UserError(f"{part.source.name}, for {part.role} of the corpus {corpus.name}, holds no document")
    names = {part.key: part.name for part in parts}
    # Each of two passes may have come by the same.
    bad = {(record["part"], place): reason for record in records for place, reason in record["malformed"]}
    skipped = {block_name(record): record["skipped"] for record in records}
    first = [{"file": names[key], "place": place, "reason": reason} for (key, place), reason in sorted(bad.items())]
    entries: dict[str, Any] = {"shards": dict(sorted(shards.items()))}
    if first:
        entries["malformed"] = {"documents": sum(skipped.values()), "first": first[:LISTED]}
    left_out = [
        {"source": part.source.name, "file": file, "reason": reason}
        for part in sources.values()
        for file, reason in part.source.left_out.items()
    ]
    if left_out:
        entries["left_out"] = {"files": len(left_out), "first": left_out[:LISTED]}
    if without := _without_domain(sources, records):
        entries["without_domain"] = without
    return entries


def about_decontamination(records: list[dict[str, Any]], grams: Grams) -> dict[str, Any]:
    """What the manifest says of documents that were left out because they repeat what is evaluated."""
    by_shard: dict[str, Counter[str]] = {}
    for record in records:
        for name, counts in record["dropped"].items():
            by_shard.setdefault(name, Counter()).update(counts)
    return {
        "tokens_in_a_row": grams.n,
        "hashes": len(grams),
        "documents": sum(counts["documents"] for counts in by_shard.values()),
        "tokens": sum(counts["tokens"] for counts in by_shard.values()),
        "by_evaluation": {name: dict(counts) for name, counts in sorted(by_shard.items())},
    }


def check_domain_names(corpus: Sourced, records: list[dict[str, Any]]) -> None:
    """Raise `UserError` where two domains would be one in tables and files, which have a domain's name without blanks."""
    of_shard: dict[str, str] = {}
    for record in records:
        for entry in record["files"]:
            # A disk may not tell upper from lower case.
            shard = entry["shard"].casefold()
            role, _, named = entry["shard"].partition("/")
            for domain in entry["domains"] if role in BY_DOMAIN else ():
                other = of_shard.setdefault(shard, domain)
                if other != domain:
                    raise UserError(
                        f"{role} of the corpus {corpus.name} has the domains {other!r} and {domain!r}, which "
                        f"would both be called {named!r}: rename one of them in the text"
                    )


def _without_domain(sources: dict[str, Part], records: list[dict[str, Any]]) -> dict[str, int]:
    """Source -> how many of its documents lack the field of their domain."""
    # Two passes may have read the same block.
    blocks = {block_name(record): record for record in records}
    lacking: Counter[str] = Counter()
    for record in blocks.values():
        lacking[sources[record["part"].partition("-")[0]].source.name] += record["without_domain"]
    return {name: number for name, number in lacking.items() if number}


def _weights(sources: dict[str, Part], shard: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The streams of a shard that is a weighted mixture: a source's name, weight and tokens each, in the shard's order.

    `sources` has a part of each source, by its number.
    """
    role, _, split = name.partition("/")
    streams = []
    for number, part in sources.items():
        if part.role == role and part.weight and split == "train":
            mine = [entry["tokens"] for entry in shard["files"] if Path(entry["file"]).name.startswith(f"{number}-")]
            streams.append({"source": part.source.name, "weight": part.weight, "tokens": sum(mine)})
    return streams
