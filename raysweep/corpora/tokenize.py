"""Sources of any size -> token files, by Ray Data: files are read as streams, and tokenized on every core of every node.

Each file is cut into blocks of consecutive documents, by its content alone. A block is read by one task, tokenized by
another, and written here: its tokens as one file for each shard that it has documents of, then `blocks/<block>.json`, which
says so. A killed build resumes with the blocks that have none. So tokens and their order are the same with any number of
tasks, nodes and kills, and no more than a few blocks are in memory at once.

    <shard>/<source>-<file>-<block>.bin       tokens, each document followed by end-of-text
    blocks/<pass>-<source>-<file>-<block>.json

The order of a shard is that of its files' names. Documents are taken as their publishers have them: none is looked for
twice, and none is stripped; one without any text is left out.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raysweep.cluster import capacity
from raysweep.cluster.connection import connected
from raysweep.corpora import overlap
from raysweep.corpora.blocks import (
    EVERYTHING,
    HELD_OUT,
    TRAINING,
    Part,
    Settings,
    complaint,
    cut,
    loaded,
    text_digest,
    tokenize_block,
)
from raysweep.corpora.contamination import Grams
from raysweep.corpora.counts import about_decontamination, about_shards, block_name, check_domain_names
from raysweep.corpora.files import Document, read
from raysweep.corpora.progress import BuildProgress, CorpusProgress, Report
from raysweep.corpora.source_files import opened, reading, resolve
from raysweep.corpora.split import TEST_SHARE, VALIDATION_SHARE
from raysweep.corpora.tokenizer import END_OF_TEXT, olmo, token_dtype, train_bpe
from raysweep.errors import UserError
from raysweep.files import put_in_place
from raysweep.space.corpus import Sourced

if TYPE_CHECKING:
    import pyarrow as pa

# Increase with every change here that changes tokens; old caches are then left alone.
REVISION = 2

# Characters of a block. A source of more than LARGE bytes has larger ones, so that a corpus of terabytes does not have a
# million files; both decide only where files end.
BLOCK, LARGE_BLOCK, LARGE = 16 << 20, 128 << 20, 64 << 30

# What has fewer bytes is tokenized in this process: starting Ray takes longer.
SMALL = 32 << 20

# A tokenizer of our own is trained on this many characters of the training documents, from the start of each source.
SAMPLE = 64 << 20

BLOCKS = "blocks"

# Documents of a file that are read to find the field of its domain.
PEEKED = 100_000

# Blocks in memory for each core: one that is tokenized, one that waits, and their tokens.
AHEAD = 4


def write(corpus: Sourced, folder: Path, stream: bool, report: Report) -> dict[str, Any]:
    """Write the token files of a corpus into `folder`, resuming where an earlier call was killed.

    Returns what a manifest says of them. Raises `UserError` naming file and line where a document cannot be read, and what
    the hub says where it refuses.
    """
    parts = _parts(corpus, report)
    overlap.check_files(corpus, parts, report)
    _check_domains(corpus, parts, report)
    _tokenizer(corpus, parts, folder, stream)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    dtype = token_dtype(corpus.vocabulary).str
    settings = Settings(text, dtype, corpus.fraction, EVERYTHING, stream)
    if corpus.decontaminate is None:
        pretraining = [part for part in parts if part.role == "pretraining"]
        others = [part for part in parts if part.role != "pretraining"]
        records = _pass(corpus, others, settings, folder, report)
        elsewhere = overlap.check_documents(corpus, parts, records)
        check_domain_names(corpus, records)
        for record in records:  # They are in the files of the blocks, and here they would fill the memory.
            del record["hashes"]

        def check(record: dict[str, Any]) -> None:
            if record["repeated"] is not None:
                saved = _recorded(folder / BLOCKS, EVERYTHING, others, folder)
                raise overlap.refusal(corpus, parts, [record, *saved.values()], record["repeated"])

        records += _pass(corpus, pretraining, replace(settings, elsewhere=elsewhere), folder, report, check)
        return about_shards(corpus, parts, records, dtype)
    held_out = [part for part in parts if part.role not in TEST_SHARE or part.test or part.validation]
    records = _pass(corpus, held_out, replace(settings, which=HELD_OUT), folder, report)
    check_domain_names(corpus, records)
    grams = _grams(records, folder, text, dtype, corpus.decontaminate)
    training = [part for part in parts if part.role in TEST_SHARE]
    records += _pass(corpus, training, replace(settings, which=TRAINING, grams=grams), folder, report)
    return about_shards(corpus, parts, records, dtype) | {"decontamination": about_decontamination(records, grams)}


def _parts(corpus: Sourced, report: Report) -> list[Part]:
    """Every file of every source, resolved."""
    sources = corpus.sources()
    parts = []
    numbered = [(role, source) for role, each in sources.items() for source in each]
    for number, (role, source) in enumerate(numbered):
        resolved = resolve(source, report)
        test, validation = TEST_SHARE.get(role, 0.0), VALIDATION_SHARE.get(role, 0.0)
        if role == "pretraining":
            test = 0.0 if "in_distribution" in sources else test
            validation = 0.0 if "validation" in sources else validation
        block = LARGE_BLOCK if sum(file.size for file in resolved.files) > LARGE else BLOCK
        parts += [
            Part(
                f"{number:03}-{i:05}", role, resolved, i, test, validation, block, source.weight, source.skip_malformed
            )
            for i in range(len(resolved.files))
        ]
    return parts


def _check_domains(corpus: Sourced, parts: list[Part], report: Report) -> None:
    """Raise `UserError` where no document of a source has the field of its domain, before anything is tokenized.

    Nearly always the first one has it, and no more is read; of each file no more than PEEKED documents are.
    """
    of_source: dict[str, list[Part]] = {}
    for part in parts:
        if part.source.domain is not None:
            of_source.setdefault(part.key.partition("-")[0], []).append(part)
    for files in of_source.values():
        source, read, longest = files[0].source, 0, 0
        for done, part in enumerate(files, 1):
            with closing(_documents(part, stream=True)) as documents:
                place, first = _first_with_domain(islice(documents, PEEKED))
            if first is not None:
                break
            read, longest = read + place, max(longest, place)
            report(CorpusProgress(corpus.name, f"look for the field {source.domain}", done, len(files)))
        else:
            if read:
                of = f"none of the first {PEEKED:,} documents of each file" if longest == PEEKED else "no document"
                raise UserError(
                    f"{source.name}, for {files[0].role} of the corpus {corpus.name}: {of} has the field {source.domain!r} "
                    "that its domain is read from: name another, or none"
                )


def _first_with_domain(documents: Iterable[Document]) -> tuple[int, Document | None]:
    """How many documents were read, and the first that has a domain."""
    read = 0
    for read, document in enumerate(documents, 1):
        if document.domain:
            return read, document
    return read, None


def _tokenizer(corpus: Sourced, parts: list[Part], folder: Path, stream: bool) -> None:
    path = folder / "tokenizer.json"
    if path.exists():
        return
    tokenizer = olmo() if corpus.tokenizer == "olmo" else train_bpe(_sample(corpus, parts, stream), corpus.vocabulary)
    with put_in_place(path) as unfinished:
        tokenizer.save(str(unfinished))


def _sample(corpus: Sourced, parts: list[Part], stream: bool) -> Iterator[str]:
    """The first training documents of each source."""
    training = [part for part in parts if part.role == "pretraining"]
    sources = {part.key.partition("-")[0] for part in training}
    for source in sorted(sources):
        left = SAMPLE // len(sources)
        for part in training:
            if part.key.startswith(f"{source}-") and left > 0:
                for document in _documents(part, stream):
                    shard = part.place(text_digest(document.text), "", corpus.fraction)
                    if not shard or not part.trains(shard):
                        continue
                    yield document.text
                    left -= len(document.text)
                    if left <= 0:
                        break


def _documents(part: Part, stream: bool) -> Generator[Document]:
    source = part.source
    with reading(source.name, part.name), opened(part.file, stream) as content:
        for document in read(content, part.name, source.text, source.domain):
            if isinstance(document, Document):
                yield document
            elif not part.skip_malformed:
                raise UserError(complaint(source.name, part.name, document.place, document.reason))


def _pass(
    corpus: Sourced,
    parts: list[Part],
    settings: Settings,
    folder: Path,
    report: Report,
    check: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Make the blocks of these files that are not there; the records of all of them, in order.

    `check` may raise for the record of a new block, before that is saved.
    """
    if not parts:
        return []
    blocks = folder / BLOCKS
    blocks.mkdir(exist_ok=True)
    records = _recorded(blocks, settings.which, parts, folder)
    done: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records.values():
        done.setdefault(record["part"], {})[record["block"]] = record
    left = [part for part in (_rest(part, done.get(part.key, {})) for part in parts) if part is not None]
    training = settings.which == TRAINING or settings.elsewhere is not None
    phase = "tokenize training text" if training else "tokenize text for evaluations"
    progress = BuildProgress(corpus.name, phase, sum(part.file.size for part in parts), records.values(), report)
    if left:
        with _rows(left, settings, progress) as rows:
            for row in rows:
                record = json.loads(row["record"])
                if record["error"]:
                    raise UserError(record["error"])
                check(record)
                _save(record, row["contents"], settings.which, folder)
                records[block_name(record)] = record
                progress.block(record)
    return [records[name] for name in sorted(records)]


def _recorded(blocks: Path, which: str, parts: list[Part], folder: Path) -> dict[str, dict[str, Any]]:
    """The blocks of these files that are done: their record is there, and their files are whole."""
    keys = {part.key for part in parts}
    records = {}
    for path in blocks.glob(f"{which}-*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # A power cut's.
            continue
        if record["part"] in keys and all(_size(folder / entry["file"]) == entry["size"] for entry in record["files"]):
            records[block_name(record)] = record
    return records


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _rest(part: Part, done: dict[int, dict[str, Any]]) -> Part | None:
    """What is left of a file of which these blocks are done; None when nothing is."""
    first = 0
    while first in done:
        first += 1
    if first and done[first - 1]["end"]:
        return None
    start = done[first - 1]["next"] if first else 1
    return replace(part, done=frozenset(done), first=first, start=start)


def _save(record: dict[str, Any], contents: list[bytes], which: str, folder: Path) -> None:
    for entry, content in zip(record["files"], contents, strict=True):
        entry |= {"file": f"{entry['shard']}/{block_name(record)}.bin", "size": len(content)}
        path = folder / entry["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    path = folder / BLOCKS / f"{which}-{block_name(record)}.json"
    with put_in_place(path) as unfinished:
        unfinished.write_text(json.dumps(record), encoding="utf-8")


@contextmanager
def _rows(parts: list[Part], settings: Settings, progress: BuildProgress) -> Iterator[Iterable[dict[str, Any]]]:
    """The rows of `tokenize_block` for all blocks that are left, as they are done; made here where there is little to do."""
    if sum(part.file.size for part in parts) < SMALL:
        yield (
            tokenize_block(row, part, settings).to_pylist()[0]
            for part in parts
            for table in cut(part, settings.stream)
            for row in table.to_pylist()
        )
        return
    with connected() as connection, closing(_by_ray(parts, settings)) as rows:
        progress.dashboard = connection.dashboard
        yield rows


def _by_ray(parts: list[Part], settings: Settings) -> Generator[dict[str, Any]]:
    import ray
    from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # Its import sets another.
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    # A row is one of our blocks: each is to be a task's input by itself, where Ray puts rows together up to 128 MiB.
    context.target_max_block_size = 1 << 20
    shared = ray.put((parts, settings))
    limits = capacity.autoscaler_limits(capacity.autoscaling_configuration())
    cores = int(sum(node.get("CPU", 0) for node in capacity.nodes().values()))
    cores = max(cores, limits.most_cpus if limits else 0)
    if not cores:
        raise UserError("no node of the cluster has a CPU to tokenize on: start workers, and run again")
    # Reading is a hundred times as fast: without this it fills the object store.
    ahead = AHEAD * cores * max(part.block for part in parts)
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead)
    # Reading is a small part of the work. What it takes of a core is taken from tokenizing, so that all fit.
    blocks: Any = (
        ray.data.from_items([{"part": i} for i in range(len(parts))], override_num_blocks=len(parts))
        .map_batches(
            cast(Any, _read), batch_size=None, batch_format="pyarrow", fn_args=[shared], num_cpus=0.05,
            compute=TaskPoolStrategy(size=max(1, min(len(parts), cores // 2))),
        )
        .map_batches(cast(Any, _encode), batch_size=None, batch_format="pyarrow", fn_args=[shared], num_cpus=0.95)
    )  # fmt: skip
    batches = iter(blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    try:
        for batch in batches:
            yield from batch.to_pylist()
    finally:  # Its tasks end before Ray does.
        if hasattr(batches, "close"):
            batches.close()


def _read(rows: pa.Table, shared: Any) -> Iterator[pa.Table]:
    import ray

    parts, settings = ray.get(shared)
    for index in rows["part"].to_pylist():
        yield from cut(parts[index], settings.stream)


def _encode(rows: pa.Table, shared: Any) -> Iterator[pa.Table]:
    import ray

    parts, settings = ray.get(shared)
    by_key = {part.key: part for part in parts}
    for i in range(rows.num_rows):
        row = rows.slice(i, 1).to_pylist()[0]
        yield tokenize_block(row, by_key[json.loads(row["about"])["part"]], settings)


def _grams(records: list[dict[str, Any]], folder: Path, tokenizer: str, dtype: str, n: int) -> Grams:
    shards: dict[str, list[str]] = {}
    for record in records:
        for entry in record["files"]:
            shards.setdefault(entry["shard"], []).append(entry["file"])
    end = loaded(tokenizer).token_to_id(END_OF_TEXT)
    return Grams(
        ((name, (np.fromfile(folder / file, dtype=dtype) for file in files)) for name, files in sorted(shards.items())),
        end,
        n,
    )
