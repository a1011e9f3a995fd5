"""geometry, export. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse

from raysweep.cli.options import load_space, open_store, print_json
from raysweep.errors import UserError
from raysweep.files import local_path


def geometry(options: argparse.Namespace) -> int:
    """`raysweep geometry`."""
    from raysweep.exchange import pretrained

    if any(value is not None for value in (options.of, options.metrics, options.sequences)):
        return _matrices(options)
    figure = local_path(options.figure, "--figure") if options.figure is not None else None
    answers = []
    for revision in options.revision or [None]:
        answer = pretrained.geometry(options.model, revision, options.corpus)
        answers.append(answer if revision is None else {"revision": revision} | answer)
        if not options.json:
            for name, value in answers[-1].items():
                print(f"{name:20} {value:.6g}" if isinstance(value, float) else f"{name:20} {value}")
    if options.json:
        print_json(answers[0] if len(answers) == 1 else answers)
    if figure:
        from raysweep.analysis import drawing, plots

        try:
            drawing.save(plots.revisions(answers), figure)
        except drawing.NoData as error:
            raise UserError(f"--figure: {error}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{figure} cannot be written: {error}") from None
    return 0


def _matrices(options: argparse.Namespace) -> int:
    """`raysweep geometry --of`."""
    from raysweep.cli.measure_commands import asked
    from raysweep.exchange.pretrained import matrices

    if options.figure is not None:
        raise UserError("--figure goes with the geometry of the unembedding alone: leave --of out")
    answers = []
    for revision in options.revision or [None]:
        rows = matrices(options.model, revision, asked(options) or [], options.corpus)
        answers += [row if revision is None else {"revision": revision} | row for row in rows]
    if options.json:
        print_json(answers)
    else:
        for row in answers:
            print(f"{row.get('revision', '')} {row['matrix']:32} {row['metric']:20} {row['value']:.6g}".lstrip())
    return 0


def export(options: argparse.Namespace) -> int:
    """`raysweep export`."""
    from raysweep.exchange.export import export

    space = load_space(options)
    cell = export(space, open_store(options, space), options.cell, options.output, options.form, options.step)
    print(f"{cell.id} written to {options.output}")
    return 0
