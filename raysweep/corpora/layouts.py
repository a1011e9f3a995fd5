"""Small folders in the layouts of the published data sets: their files' names, compression, fields and nesting.

For rehearsals and tests, which read them as they would read the hub's. The text is the installed corpus's.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysweep.corpora import installed

DOCUMENTS = 400

_PILE_SETS = ("Pile-CC", "ArXiv", "Github", "Wikipedia (en)", "StackExchange")


def write(folder: Path) -> None:
    """Write each published data set into `folder` as `<owner>/<name>`, some hundred documents in each, and none in two."""
    distinct = _distinct_texts()
    texts = list(itertools.islice(distinct, 3 * DOCUMENTS))
    pile = folder / "monology" / "pile-uncopyrighted"
    rows = [{"text": text, "meta": {"pile_set_name": _PILE_SETS[i % 5]}} for i, text in enumerate(texts)]
    _zstd(pile / "train" / "00.jsonl.zst", rows[:DOCUMENTS])
    _zstd(pile / "train" / "01.jsonl.zst", rows[DOCUMENTS : 2 * DOCUMENTS])
    _zstd(pile / "val.jsonl.zst", rows[2 * DOCUMENTS : -DOCUMENTS // 2])
    _zstd(pile / "test.jsonl.zst", rows[-DOCUMENTS // 2 :])
    ten_thousand = [row | {"text": text} for row, text in zip(rows[:DOCUMENTS], distinct, strict=False)]
    _parquet(folder / "NeelNanda" / "pile-10k" / "data" / "train-00000-of-00001-4746b8785c874cc7.parquet", ten_thousand)

    paloma = folder / "allenai" / "paloma"
    about = {
        "id": "0",
        "added": "2023-10-01T00:00:00.000Z",
        "source": "a page",
        "metadata": {"url": "https://example.org"},
    }
    plain = [{"text": text} | about for text in itertools.islice(distinct, DOCUMENTS)]
    for part in ("val", "test"):
        _gzip(paloma / "c4_en" / part / f"{part}.jsonl.gz", plain)
        for collection in ("wikitext_103", "redpajama", "dolma-v1_5", "m2d2_wikipedia_unsplit"):
            _gzip(paloma / collection / part / f"{part}.jsonl.gz", plain[: DOCUMENTS // 2])
        for language in ("00_text", "02_c", "06_python", "15_jupyter_notebook"):
            own = [row | {"subdomain": language} for row in plain[: DOCUMENTS // 4]]
            _gzip(paloma / "dolma_100_programing_languages" / part / f"{part}_{language}.jsonl.gz", own)

    code = folder / "bigcode" / "starcoderdata" / "python"
    for i in range(2):
        files = [
            {
                "max_stars_repo_path": f"src/module_{k}.py",
                "max_stars_repo_name": f"someone/project-{k}",
                "max_stars_count": k,
                "id": str(k),
                "content": f"<reponame>someone/project-{k}\n{text}" if k % 2 else text,
            }
            for k, text in enumerate(itertools.islice(distinct, DOCUMENTS))
        ]
        _parquet(code / f"train-0000{i}-of-00059.parquet", files)

    pages = [
        {
            "url": "https://example.org",
            "text": text,
            "date": "2023-01-01 00:00:00",
            "metadata": json.dumps({"math": True}),
        }
        for text in itertools.islice(distinct, DOCUMENTS)
    ]
    _parquet(
        folder / "open-web-math" / "open-web-math" / "data" / "train-00000-of-00114-5a023365406cb9c4.parquet", pages
    )


def _distinct_texts() -> Iterator[str]:
    seen: set[str] = set()
    for section in range(4, 8):
        for document in installed.documents(section):
            if document.text not in seen:
                seen.add(document.text)
                yield document.text


def _zstd(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(_lines(rows))


def _gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(_lines(rows), mtime=0))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
