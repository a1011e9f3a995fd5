"""The commands: parse, call, print. What they do is elsewhere, and imported only by the command that needs it."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from raysweep.errors import UserError
from raysweep.version import __version__

if TYPE_CHECKING:
    from raysweep.corpora.loader import TokenizedCorpus
    from raysweep.space.cell import Space
    from raysweep.store import Store


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `raysweep`: exits 0 on success, 1 on an error or a failed cell, 2 on bad usage, 130 on Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="raysweep: %(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    try:
        status = options.command(options)
        sys.stdout.flush()
    except UserError as error:
        status = _fail(error, options, str(error))
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        status = _fail(error, options, f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)")
    sys.exit(status)


def _fail(error: Exception, options: argparse.Namespace, message: str) -> int:
    if options.debug:
        raise error
    print(f"raysweep: error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raysweep", description="Controlled sweeps of language-model pretraining on a Ray cluster."
    )
    parser.add_argument("--version", action="version", version=f"raysweep {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for_scripts = argparse.ArgumentParser(add_help=False)
    for_scripts.add_argument("--json", action="store_true", help="print the answer as JSON")
    of_space = argparse.ArgumentParser(add_help=False)
    of_space.add_argument("space", metavar="SPACE", help="a search-space file, such as search_spaces/demo.yaml")
    of_store = argparse.ArgumentParser(add_help=False)
    of_store.add_argument(
        "--store", help="folder or URI of the sweep's results (default: RAYSWEEP_STORE, else runs/<space name>)"
    )

    def command(name: str, function: Any, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[shared, *parents])
        added.set_defaults(command=function)
        return added

    command(
        "plan", _plan, "show the cells, steps, tokens, FLOPs and GPU-hours of a search space", of_space, for_scripts
    )
    of_cluster = argparse.ArgumentParser(add_help=False)
    of_cluster.add_argument(
        "--cluster", metavar="CLUSTER.yaml", help="do it on the cluster that `ray up CLUSTER.yaml` started, over SSH"
    )
    run = command("run", _run, "train and evaluate every cell that the store lacks", of_space, of_store, of_cluster)
    run.add_argument(
        "--rehearse",
        action="store_true",
        help="go through every step of one small cell in a few hundred tokens, on this machine, and keep nothing",
    )
    command("stop", _stop, "stop a sweep that runs elsewhere, as Ctrl-C would", of_space, of_store, of_cluster)
    command("evaluate", _evaluate, "evaluate the trained cells, and train nothing", of_space, of_store)
    command(
        "status", _status, "show what is done, running, failed and left", of_space, of_store, of_cluster, for_scripts
    )
    results = command("results", _results, "one row per finished cell", of_space, of_store)
    results.add_argument("--output", metavar="FILE.parquet", help="write the table to a Parquet file")
    published = command("publish", _publish, "the results as a folder of a few small files", of_space, of_store)
    published.add_argument("--output", metavar="DIR", required=True, help="what was published there is replaced")
    restored = command("restore", _restore, "a store out of published results, to go on from there", of_store)
    restored.add_argument("published", metavar="DIR", help="a folder that `raysweep publish` wrote")
    reproduced = command(
        "reproduce", _reproduce, "train and evaluate a published cell again, and compare every number with its own"
    )
    reproduced.add_argument("--store", help="where the cell is made again (default: runs/<space name>-again)")
    reproduced.add_argument("published", metavar="DIR", help="a folder that `raysweep publish` wrote")
    reproduced.add_argument("cell", metavar="CELL", help="a cell's id, or a part of it that no other cell's has")
    analyzed = command(
        "analyze", _analyze, "regressions, scaling law, claims, tables, figures and a report of the finished cells",
        of_store, for_scripts,
    )  # fmt: skip
    analyzed.add_argument(
        "space", metavar="SPACE", help="a search-space file, or a folder that `raysweep publish` wrote"
    )
    analyzed.add_argument(
        "--where", metavar="CONDITION", help="only the cells for which it holds, such as 'steps >= 2048 and width > 16'"
    )
    analyzed.add_argument(
        "--output", metavar="DIR", required=True, help="a folder; results of the same name are replaced"
    )
    measured = command("geometry", _geometry, "measure the unembedding of a language model", for_scripts)
    measured.add_argument(
        "model", metavar="MODEL", help="a folder or .safetensors file, or the name of a causal LM on the hub"
    )
    measured.add_argument(
        "--revision", action="append", help="revision of a model on the hub; several times for a trajectory"
    )
    measured.add_argument("--corpus", help="also the loss on the in-distribution test text of this corpus")
    measured.add_argument("--figure", metavar="FILE.png", help="draw several revisions over their training steps")
    exported = command("export", _export, "write a cell as a transformers model folder", of_space, of_store)
    exported.add_argument("cell", metavar="CELL", help="a cell's id, or a part of it that no other cell's has")
    exported.add_argument("--output", metavar="DIR", required=True, help="an empty or new folder")
    exported.add_argument(
        "--form", default="trained", help="trained (default), finetune_python, finetune_math, quantized_<b>bit"
    )
    exported.add_argument("--step", type=int, help="an earlier checkpoint that the store still has")
    _corpus_parser(commands, [shared], of_space, for_scripts)
    return parser


def _corpus_parser(
    commands: Any,
    shared: list[argparse.ArgumentParser],
    of_space: argparse.ArgumentParser,
    for_scripts: argparse.ArgumentParser,
) -> None:
    text = "list the published data sets; build, show or verify the corpora of a search space"
    actions = commands.add_parser("corpus", help=text, description=text).add_subparsers(
        title="actions", required=True, metavar="ACTION"
    )

    def action(name: str, function: Any, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=text, parents=[*shared, *parents]
        )
        added.set_defaults(command=function)
        return added

    action("list", _corpus_list, "the data sets that a search space may name", for_scripts)
    build = action("build", _corpus_build, "tokenize what is not there yet; goes on where it was stopped", of_space)
    build.add_argument("--stream", action="store_true", help="read files of the hub as they come, and keep no copy")
    show = action(
        "show",
        _corpus_show,
        "what is in the corpora, which are built first if they are not there",
        of_space,
        for_scripts,
    )
    show.add_argument(
        "--shard", default="pretraining/train", help="whose tokens and documents (default: pretraining/train)"
    )
    action("verify", _corpus_verify, "read every file and compare it with its checksum", of_space)


def _load(options: argparse.Namespace) -> Space:
    from raysweep.space import cell as space

    return space.load(options.space)


def _store(options: argparse.Namespace, space: Space) -> Store:
    from raysweep.store import Store

    return Store(options.store or os.environ.get("RAYSWEEP_STORE") or f"runs/{space.name}")


def _print_json(answer: Any) -> None:
    print(json.dumps(_finite(answer), indent=1, allow_nan=False))


def _finite(answer: Any) -> Any:
    """The answer with null for NaN and infinities, which JSON does not have."""
    if isinstance(answer, dict):
        return {key: _finite(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [_finite(value) for value in answer]
    return None if isinstance(answer, float) and not math.isfinite(answer) else answer


def _plan(options: argparse.Namespace) -> int:
    from raysweep.cli import messages as printing
    from raysweep.sweep import runner as sweep

    plan = sweep.plan(_load(options))
    if options.json:
        _print_json(plan)
    else:
        printing.show_plan(plan)
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.rehearse:
        from raysweep.sweep import rehearsal

        return rehearsal.rehearse(_load(options))
    if options.cluster:
        from raysweep.cluster import jobs

        return jobs.run(jobs.Head(options.cluster), options.space, jobs.shared_store(options.store))
    from raysweep.sweep import runner as sweep

    space = _load(options)
    store = _store(options, space)
    return sweep.run(space, store, _again("run", options, store))


def _stop(options: argparse.Namespace) -> int:
    if options.cluster:
        from raysweep.cluster import jobs

        return jobs.stop(jobs.Head(options.cluster), jobs.shared_store(options.store))
    from raysweep.store import lock

    store = _store(options, _load(options))
    stopped = lock.stop_holder(store)
    print(f"stopped process {stopped}" if stopped else f"nothing runs on {store.location}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from raysweep.sweep import runner as sweep

    space = _load(options)
    store = _store(options, space)
    return sweep.run(space, store, _again("evaluate", options, store), train=False)


def _again(command: str, options: argparse.Namespace, store: Store) -> str:
    """The command that goes on, in another terminal too."""
    return shlex.join(["raysweep", command, options.space, "--store", store.location])


def _status(options: argparse.Namespace) -> int:
    if options.cluster:
        from raysweep.cluster import jobs

        return jobs.status(jobs.Head(options.cluster), options.space, jobs.shared_store(options.store), options.json)
    from raysweep.cli import messages as printing
    from raysweep.store import lock
    from raysweep.sweep import runner as sweep

    space = _load(options)
    store = _store(options, space)
    now = sweep.survey(store, space)
    driver = lock.holder(store)
    live = driver["progress"].get("running", {}) if driver else {}
    counts = now.counts(name for name, cell in live.items() if not cell.get("starting"))
    if options.json:
        _print_json(counts | {"versions": now.versions()})
    else:
        printing.show_status(space, store, now, counts, driver, store.age(lock.FILE) or 0.0)
    return 0


def _results(options: argparse.Namespace) -> int:
    from raysweep.cli import messages as printing
    from raysweep.store import index as tables

    space = _load(options)
    store = _store(options, space)
    if options.output is None:
        printing.show_results(store, space)
        return 0
    table = tables.results(store, space.cells, space.evaluations)
    import pyarrow.parquet as pq

    try:
        pq.write_table(table, options.output)
    except OSError as error:
        raise UserError(f"{options.output} cannot be written: {error.strerror or error}") from None
    print(f"{table.num_rows} of {len(space.cells)} cells written to {options.output}")
    return 0


def _publish(options: argparse.Namespace) -> int:
    from raysweep.cli import messages as printing
    from raysweep.exchange import publish

    space = _load(options)
    published = publish.publish(Path(options.space), _store(options, space), Path(options.output))
    print(f"{len(published.results)} of {len(space.cells)} cells published in {options.output}")
    printing.show_account(publish.account(published))
    return 0


def _restore(options: argparse.Namespace) -> int:
    from raysweep.exchange import publish

    published = publish.read(Path(options.published))
    store = _store(options, published.space)
    complete, lacked = publish.restore(published, store)
    print(
        f"{complete} of {len(published.space.cells)} cells are complete in {options.published}; {lacked} that "
        f"{store.location} lacked are there now, without checkpoints: `raysweep run` there does what is left"
    )
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from raysweep.cli import messages as printing
    from raysweep.exchange import publish, reproduce
    from raysweep.store import Store

    folder = Path(options.published)
    published = publish.read(folder)
    store = Store(options.store or f"runs/{published.space.name}-again")
    again = ["raysweep", "reproduce", options.published, options.cell]
    again += ["--store", options.store] if options.store else []
    found = reproduce.reproduce(published, folder, options.cell, store, shlex.join(again))
    if found is None:
        return 1
    printing.show_differences(*found, folder, store)
    return 1 if found[1] else 0


def _analyze(options: argparse.Namespace) -> int:
    from raysweep.analysis import analyze, sweep
    from raysweep.cli import messages as printing
    from raysweep.cli import panel as progress
    from raysweep.exchange import publish

    if Path(options.space).is_dir():
        if options.store:
            raise UserError(f"--store is for a search space; {options.space} has its results in itself")
        loaded = sweep.published(publish.read(Path(options.space)))
    else:
        space = _load(options)
        loaded = sweep.load(_store(options, space), space)
    if options.where is not None:
        loaded = loaded.where(options.where)
    with progress.bars() as step:
        answer = analyze.analyze(loaded, Path(options.output), step)
    card = answer.claims[["claim", "verdict", "statement"]].to_dict("records")
    if options.json:
        _print_json({"cells": {"planned": answer.planned, "analysed": answer.analysed}, "claims": card})
    else:
        printing.show_claims(card)
        print(f"{answer.analysed} of {answer.planned} cells analysed; open {Path(options.output) / 'report.html'}")
    return 0


def _geometry(options: argparse.Namespace) -> int:
    from raysweep.exchange import pretrained

    revisions = options.revision or [None]
    answers = []
    for revision in revisions:
        answer = pretrained.measure(options.model, revision, options.corpus)
        answers.append(answer if revision is None else {"revision": revision} | answer)
        if not options.json:
            print(
                "\n".join(f"{n:20} {v:.6g}" if isinstance(v, float) else f"{n:20} {v}" for n, v in answers[-1].items())
            )
    if options.json:
        _print_json(answers[0] if len(answers) == 1 else answers)
    if options.figure:
        from raysweep.analysis import plots

        try:
            plots.save(plots.revisions(answers), Path(options.figure))
        except plots.NoData as error:
            raise UserError(f"--figure: {error}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{options.figure} cannot be written: {error}") from None
    return 0


def _export(options: argparse.Namespace) -> int:
    from raysweep.exchange import export

    space = _load(options)
    cell = export.find(space, options.cell)
    export.export(space, _store(options, space), cell, Path(options.output), options.form, options.step)
    print(f"{cell.id} written to {options.output}")
    return 0


def _corpora(options: argparse.Namespace, stream: bool = False) -> list[TokenizedCorpus]:
    from raysweep.corpora.loader import open_corpus

    return [open_corpus(corpus, stream) for corpus in dict.fromkeys(cell.corpus for cell in _load(options).cells)]


def _corpus_list(options: argparse.Namespace) -> int:
    from raysweep.cli import messages as printing
    from raysweep.corpora.published import preset
    from raysweep.space.corpus import PRESETS

    presets = {name: preset(name) for name in PRESETS}
    if options.json:
        shown = ("repository", "revision", "splits", "fields", "licence", "gated", "size", "documented", "note")
        _print_json({name: {key: getattr(known, key) for key in shown} for name, known in presets.items()})
    else:
        printing.show_presets(presets)
    return 0


def _corpus_build(options: argparse.Namespace) -> int:
    for corpus in _corpora(options, options.stream):
        tokens = sum(shard["tokens"] for shard in corpus.manifest["shards"].values())
        print(
            f"{corpus.manifest['corpus']['name']}: {tokens:,} tokens, fingerprint {corpus.fingerprint}, in {corpus.folder}"
        )
    return 0


def _corpus_show(options: argparse.Namespace) -> int:
    from raysweep.cli import messages as printing
    from raysweep.corpora import show

    corpora = _corpora(options)
    if options.json:
        _print_json([corpus.manifest | {"folder": str(corpus.folder)} for corpus in corpora])
    else:
        for corpus in corpora:
            printing.show_corpus(
                corpus, options.shard, show.heaviest(corpus, options.shard), show.documents(corpus, options.shard)
            )
    return 0


def _corpus_verify(options: argparse.Namespace) -> int:
    from raysweep.cli import panel as progress

    for corpus in _corpora(options):
        with progress.bars() as step:
            corpus.verify(step)
        print(f"{corpus.folder}: {len(corpus.files())} files as they were written, fingerprint {corpus.fingerprint}")
    return 0


if __name__ == "__main__":
    main()
