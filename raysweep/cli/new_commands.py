"""new: the beginning of a user's own code, with its test."""

from __future__ import annotations

import argparse
import keyword
from dataclasses import dataclass
from pathlib import Path

from raysweep.errors import UserError, reason
from raysweep.files import local_path


@dataclass(frozen=True)
class _Template:
    """A function of one kind; `{name}` and `{package}` stand in each text."""

    module: str
    code: str
    test: str
    usage: str
    """Of a search space."""


_METRIC = _Template(
    "metrics",
    '''"""What this study measures of a matrix, beside what raysweep does."""


def {name}(matrix):
    """The share of the largest magnitude in the sum of all: 1 / n of n equal entries, 1 where one is not zero.

    `matrix` is a torch tensor, (rows, width), and a copy. Return one number; NaN where there is none.
    """
    magnitudes = matrix.double().abs()
    return magnitudes.max() / magnitudes.sum()
''',
    '''"""By hand: run it with `python -m pytest {package}`."""

import torch

from {package}.metrics import {name}


def test_equal_entries():
    assert float({name}(torch.ones(4, 5))) == 1 / 20


def test_one_entry():
    matrix = torch.zeros(4, 5)
    matrix[2, 3] = -7.0
    assert float({name}(matrix)) == 1
''',
    """measure:
  - {{of: unembedding, metrics: ["{package}.metrics:{name}"]}}""",
)

_TASK = _Template(
    "tasks",
    '''"""What this study asks of a trained cell, beside what raysweep does."""

import torch

from raysweep.evaluation.task import Metric


def {name}(subject, sequences=64):
    """The share of held-out tokens to which the model gives the most probability.

    `subject` is a raysweep.evaluation.task.Subject. The other arguments are settings, which a search space may give. Return
    a list of Metric(name, value, unit): the columns are {name}_<name>.
    """
    model = subject.language_model
    held_out = subject.corpus.sequences("pretraining/test", subject.cell.sequence_length)
    indices = held_out.sample(sequences)
    right = 0
    for i in range(len(indices)):  # One at a time: logits of many would fill the memory.
        tokens = torch.from_numpy(held_out.read(indices[i : i + 1])).to(subject.device)
        with torch.no_grad():
            logits = model.hidden(tokens[:, :-1]) @ model.unembedding.T
        right += int((logits.argmax(-1) == tokens[:, 1:]).sum())
    return [Metric("accuracy", right / (len(indices) * held_out.length), "share of tokens")]
''',
    '''"""By hand: run it with `python -m pytest {package}`."""

import torch

from raysweep.evaluation.task import example_subject

from {package}.tasks import {name}


def test_a_model_that_always_says_the_first_token():
    subject = example_subject()
    with torch.no_grad():
        subject.language_model.unembedding.zero_()  # All logits are equal, and the first counts.
    (metric,) = {name}(subject, sequences=4)
    held_out = subject.corpus.sequences("pretraining/test", subject.cell.sequence_length)
    targets = held_out.read(held_out.sample(4))[:, 1:]
    assert metric.value == (targets == 0).mean()
''',
    """evaluations:
  - {{task: "{package}.tasks:{name}", sequences: 64}}""",
)

_SOURCE = _Template(
    "sources",
    '''"""Where this study's text comes from."""

import sysconfig
from pathlib import Path


def {name}():
    """The modules of Python's standard library, as an example: put your own here.

    Yield each document as a text, or as a dict of fields: `text`, and others that `text:` or `domain:` of the source name.
    It is called once; what it yields is written into the cache.
    """
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield {{"text": path.read_text("utf-8", errors="replace"), "domain": path.stem[0]}}
''',
    '''"""By hand: run it with `python -m pytest {package}`."""

from {package}.sources import {name}


def test_documents_are_text_and_the_same_each_time():
    documents = list({name}())
    assert documents
    assert all(isinstance(document["text"], str) for document in documents)
    assert documents == list({name}())
''',
    """evaluations:
  - {{task: loss, name: mine, on: {{function: "{package}.sources:{name}", domain: domain}}}}""",
)

KINDS = {"metric": _METRIC, "task": _TASK, "source": _SOURCE}


def new(options: argparse.Namespace) -> int:
    """`raysweep new KIND`."""
    kind, name, package = KINDS[options.kind], options.name, options.package
    for what, given in (("NAME", name), ("--package", package)):
        if not given.isidentifier() or keyword.iskeyword(given):
            raise UserError(
                f"{what} {given}: Python needs a name of letters, digits and underscores, such as tail_index"
            )
    folder = local_path(package, "--package")
    beginning = folder / "__init__.py"
    files = {
        folder / f"{kind.module}.py": kind.code.format(name=name, package=package),
        folder / f"test_{kind.module}.py": kind.test.format(name=name, package=package),
    }
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already: give another --package, or write the function into it")
    files |= {} if beginning.exists() else {beginning: ""}
    write_files(folder, files)
    print("\n".join(map(str, files)))
    print(f"\nIn a search space beside {Path(package)}/:\n")
    print(f"code: [{package}]\n{kind.usage.format(name=name, package=package)}")
    print(f"\nIts test: python -m pytest {package}")
    return 0


def write_files(folder: Path, contents: dict[Path, str]) -> None:
    """Write texts into files in a folder. Raises `UserError`, which names the folder."""
    try:
        for file, content in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {reason(error)}") from None
