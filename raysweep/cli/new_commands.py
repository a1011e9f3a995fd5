"""new: the beginning of a user's own code, with its test."""

from __future__ import annotations

import argparse
import keyword
from pathlib import Path

from raysweep.errors import UserError, reason
from raysweep.files import local_path

METRIC = '''"""What this study measures of a matrix, beside what raysweep does."""


def {name}(matrix):
    """The share of the largest magnitude in the sum of all: 1 / n of n equal entries, 1 where one is not zero.

    `matrix` is a torch tensor, (rows, width), and a copy. Return one number; NaN where there is none.
    """
    magnitudes = matrix.double().abs()
    return magnitudes.max() / magnitudes.sum()
'''

TEST = '''"""By hand: run it with `python -m pytest {package}`."""

import torch

from {package}.metrics import {name}


def test_equal_entries():
    assert float({name}(torch.ones(4, 5))) == 1 / 20


def test_one_entry():
    matrix = torch.zeros(4, 5)
    matrix[2, 3] = -7.0
    assert float({name}(matrix)) == 1
'''


def metric(options: argparse.Namespace) -> int:
    """`raysweep new metric`."""
    name, package = options.name, options.package
    for what, given in (("NAME", name), ("--package", package)):
        if not given.isidentifier() or keyword.iskeyword(given):
            raise UserError(
                f"{what} {given}: Python needs a name of letters, digits and underscores, such as tail_index"
            )
    folder = local_path(package, "--package")
    files = {
        folder / "__init__.py": "",
        folder / "metrics.py": METRIC.format(name=name),
        folder / "test_metrics.py": TEST.format(name=name, package=package),
    }
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already: give another --package, or write the function into it")
    try:
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {reason(error)}") from None
    print("\n".join(map(str, files)))
    print(f"\nIn a search space beside {Path(package)}/:\n")
    print(f'code: [{package}]\nmeasure:\n  - {{of: unembedding, metrics: ["{package}.metrics:{name}"]}}')
    print(f"\nIts test: python -m pytest {package}")
    return 0
