"""The argument parser. Each command names a module of this package and a function in it, imported when it runs."""

from __future__ import annotations

import argparse
from typing import Any

from raysweep.cli.options import count, hours, port
from raysweep.version import __version__


class _Once(argparse.Action):
    """Stores a value, and refuses a second one where argparse would take the last without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given: set[str] = namespace.__dict__.setdefault("given", set())
        if option and self.dest in given:
            parser.error(f"argument {option}: given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser all of whose options are given at most once, unless they say otherwise."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.register("action", None, _Once)


def build_parser() -> _Parser:
    parser = _Parser(prog="raysweep", description="Controlled sweeps of language-model pretraining on a Ray cluster.")
    parser.add_argument("--version", action="version", version=f"raysweep {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    shared = _Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    json_option = _Parser(add_help=False)
    json_option.add_argument("--json", action="store_true", help="print the answer as JSON")
    space_argument = _Parser(add_help=False)
    space_argument.add_argument("space", metavar="SPACE", help="a search-space file, such as search_spaces/demo.yaml")
    store_option = _Parser(add_help=False)
    store_option.add_argument(
        "--store", help="folder or URI of the sweep's results (default: RAYSWEEP_STORE, else runs/<space name>)"
    )

    def command(name: str, function: str, text: str, *parents: _Parser) -> _Parser:
        added = commands.add_parser(name, help=text, description=text, parents=[shared, *parents])
        added.set_defaults(command=function)
        return added

    planned = command(
        "plan",
        "sweep_commands:plan",
        "show the cells, steps, tokens, FLOPs and GPU-hours of a search space",
        space_argument,
        json_option,
    )
    planned.add_argument(
        "--calibrate", metavar="FILE", help="what `python -m benchmarks.gpu --output FILE` measured of a GPU of yours"
    )
    planned.add_argument(
        "--price",
        metavar="DEVICE=DOLLARS",
        action="append",
        default=[],
        help="dollars for an hour of a device: H100=2.5",
    )
    cluster_option = _Parser(add_help=False)
    cluster_option.add_argument(
        "--cluster", metavar="CLUSTER.yaml",
        help="run this on the cluster that `ray up CLUSTER.yaml` started, over SSH; stop and status: or slurm:JOB",
    )  # fmt: skip
    run = command(
        "run",
        "sweep_commands:run",
        "train and evaluate every cell that the store lacks",
        space_argument,
        store_option,
        cluster_option,
    )
    run.add_argument(
        "--rehearse",
        action="store_true",
        help="try every step with one small cell and a few hundred tokens, on this machine; keep nothing",
    )
    run.add_argument("--watch", action="store_true", help="show the sweep on a page of this machine while it runs")
    watched = command(
        "watch", "watch_commands:watch", "show a sweep on a page that stays current, while it runs or after", store_option,
    )  # fmt: skip
    watched.add_argument(
        "space", metavar="SPACE", help="a search-space file, or a folder that `raysweep publish` wrote"
    )
    watched.add_argument("--port", type=port, help="(default: 8266, or the next that is free)")
    watched.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen at; beyond this machine it asks for a token (default: 127.0.0.1)",
    )
    watched.add_argument("--token", action="store_true", help="ask for a token on this machine, too")
    watched.add_argument("--of-run", action="store_true", help=argparse.SUPPRESS)
    command(
        "stop",
        "sweep_commands:stop",
        "stop a running sweep from another terminal, as Ctrl-C would",
        space_argument,
        store_option,
        cluster_option,
    )
    _job_options(
        command(
            "slurm", "slurm_commands:submit", "submit the sweep as a Slurm job that goes on by itself until all is done",
            space_argument, store_option,
        ),
        command(
            "kubernetes", "kubernetes_commands:create", "run the sweep on Kubernetes, as a RayJob of KubeRay",
            space_argument, store_option,
        ),
    )  # fmt: skip
    command(
        "evaluate",
        "sweep_commands:evaluate",
        "evaluate the trained cells, and train nothing",
        space_argument,
        store_option,
    )
    measured = command(
        "measure",
        "measure_commands:measure",
        "measure matrices of the trained cells, from their checkpoints, and train nothing",
        space_argument,
        store_option,
    )
    measured.add_argument(
        "--of", metavar="NAME", action="append",
        help="a matrix or a pattern, such as 'blocks.*.mlp.up'; repeat it for several (default: what the search space says)",
    )  # fmt: skip
    measured.add_argument("--metrics", metavar="NAMES", help="metrics, with commas between: effective_rank,stable_rank")
    measured.add_argument("--sequences", type=int, help="of hidden states: sequences of held-out text (default 512)")
    measured.add_argument("--positions", choices=("last", "all"), help="of hidden states: the last token, or all")
    measured.add_argument(
        "--tokens", choices=("frequent", "rare", "unseen"), help="of the embedding and unembedding: only these rows"
    )
    measured.add_argument("--against", metavar="NAME", help="the other matrix of cka and pwcca")
    command(
        "status",
        "sweep_commands:status",
        "show what is done, running, failed and left",
        space_argument,
        store_option,
        cluster_option,
        json_option,
    )
    results = command("results", "result_commands:results", "one row per finished cell", space_argument, store_option)
    results.add_argument(
        "--output", metavar="FILE", help="write the table to a .parquet, .feather, .csv or .json file, by its name"
    )
    results.add_argument("--columns", metavar="NAMES", help="these columns, with commas between")
    results.add_argument("--sort", metavar="NAME", help="by this column (default: as the search space has it)")
    results.add_argument("--descending", action="store_true", help="of --sort: the largest first")
    published = command(
        "publish",
        "result_commands:publish",
        "write the results as a folder of a few small files",
        space_argument,
        store_option,
    )
    published.add_argument("--output", metavar="DIR", required=True, help="an earlier publication there is replaced")
    restored = command(
        "restore", "result_commands:restore", "make a store from published results, to resume from there", store_option
    )
    restored.add_argument("published", metavar="DIR", help="a folder that `raysweep publish` wrote")
    reproduced = command(
        "reproduce",
        "result_commands:reproduce",
        "train a published cell again, and compare every number with its own",
    )
    reproduced.add_argument("--store", help="where the cell is trained again (default: runs/<space name>-again)")
    reproduced.add_argument("published", metavar="DIR", help="a folder that `raysweep publish` wrote")
    reproduced.add_argument("cell", metavar="CELL", help="a cell's id, or a part that occurs in no other cell's id")
    analyzed = command(
        "analyze", "result_commands:analyze", "regressions, scaling law, claims, tables, figures and a report",
        store_option, json_option,
    )  # fmt: skip
    analyzed.add_argument(
        "space", metavar="SPACE", help="a search-space or suite file, or a folder that `raysweep publish` wrote"
    )
    analyzed.add_argument(
        "other",
        metavar="OTHER",
        nargs="?",
        help="another: the claims on both, side by side, in place of a report of one",
    )
    analyzed.add_argument("--other-store", metavar="STORE", help="of OTHER (default: runs/<its name>)")
    analyzed.add_argument(
        "--where", metavar="CONDITION", help="only the cells that meet it, such as 'steps >= 2048 and width > 16'"
    )
    analyzed.add_argument(
        "--output", metavar="DIR", required=True, help="a folder; results of the same name are replaced"
    )
    analyzed.add_argument(
        "--next", metavar="FILE.yaml",
        help="write a search space with the cells that would decide the tests that are undecided, the cheapest first",
    )  # fmt: skip
    analyzed.add_argument(
        "--hours", metavar="H", type=hours,
        help="of --next: GPU-hours, or core-hours where training has no GPU (default: as many as the sweep took so far)",
    )  # fmt: skip
    measured = command(
        "geometry", "model_commands:geometry", "measure the unembedding of a language model", json_option
    )
    measured.add_argument(
        "model", metavar="MODEL", help="a folder or .safetensors file, or the name of a causal LM on the hub"
    )
    measured.add_argument(
        "--revision", action="append", help="revision of a model on the hub; repeat it for a trajectory"
    )
    measured.add_argument(
        "--of",
        metavar="NAME",
        action="append",
        help="other matrices, by name or pattern: 'blocks.*.mlp.up', 'hidden.*'",
    )
    measured.add_argument(
        "--metrics", metavar="NAMES", help="of those, with commas between: effective_rank,stable_rank"
    )
    measured.add_argument(
        "--corpus", help="also measure the loss on this corpus's in-distribution test text; what hidden states are of"
    )
    measured.add_argument("--sequences", type=int, help="of hidden states: how many (default 512)")
    measured.add_argument("--figure", metavar="FILE.png", help="plot several revisions against their training steps")
    exported = command(
        "export", "model_commands:export", "write a cell as a transformers model folder", space_argument, store_option
    )
    exported.add_argument("cell", metavar="CELL", help="a cell's id, or a part that occurs in no other cell's id")
    exported.add_argument("--output", metavar="DIR", required=True, help="an empty or new folder")
    exported.add_argument(
        "--form", default="trained", help="trained (default), finetune_python and its like, quantized_<b>bit"
    )
    exported.add_argument("--step", type=int, help="export an earlier checkpoint, if the store still has it")
    _new_parser(commands, [shared], json_option)
    _corpus_parser(commands, [shared], space_argument, json_option)
    return parser


def _job_options(slurm: _Parser, kubernetes: _Parser) -> None:
    slurm.add_argument("--nodes", type=count, default=1, help="(default: 1)")
    slurm.add_argument("--partition")
    slurm.add_argument("--account")
    slurm.add_argument("--time", help="as sbatch takes it: 24:00:00; the job is queued again until the sweep is done")
    slurm.add_argument("--gpus-per-node", type=count, default=0)
    slurm.add_argument("--cpus-per-node", type=count, help="cores (default: whole nodes, --exclusive)")
    slurm.add_argument(
        "--elastic", action="store_true",
        help="one small job for the sweep, and as many jobs of one node as --nodes says, which join as Slurm starts them",
    )  # fmt: skip
    slurm.add_argument("--sweep-time", metavar="TIME", help="of --elastic: the sweep's own job (default: --time)")
    slurm.add_argument("--sweep-partition", metavar="PARTITION", help="of --elastic (default: --partition)")
    slurm.add_argument(
        "--notice", metavar="SECONDS", type=count, default=300,
        help="how long before the time limit the sweep is stopped (default: 300)",
    )  # fmt: skip
    slurm.add_argument(
        "--sbatch", metavar="OPTION", action="append", default=[], help="one more option of sbatch: --sbatch=--qos=low"
    )
    slurm.add_argument("--print", action="store_true", help="print the batch script and submit nothing")
    kubernetes.add_argument(
        "--image", required=True, help="what kubernetes/Dockerfile makes, where the cluster pulls it"
    )
    kubernetes.add_argument("--nodes", type=count, default=8, help="the most workers at once (default: 8)")
    kubernetes.add_argument("--gpus-per-node", type=count, default=0)
    kubernetes.add_argument("--cpus-per-node", type=count, default=8, help="cores of a worker (default: 8)")
    kubernetes.add_argument(
        "--memory-per-node", metavar="GIB", type=count, help="of a worker (default: 4 for each core)"
    )
    kubernetes.add_argument(
        "--claim", metavar="NAME:FOLDER", action="append", default=[],
        help="a PersistentVolumeClaim, and the folder where all pods see it: for the store, or for documents",
    )  # fmt: skip
    kubernetes.add_argument(
        "--secret", metavar="NAME", action="append", default=[],
        help="a Secret whose entries are variables of the pods: AWS_ACCESS_KEY_ID and the like, HF_TOKEN",
    )  # fmt: skip
    kubernetes.add_argument("--service-account", metavar="NAME", help="who the pods are, where the cloud goes by that")
    kubernetes.add_argument(
        "--node-label", metavar="KEY=VALUE", action="append", default=[],
        help="workers run on nodes with this label only, spot nodes say; a taint of the same name is tolerated",
    )  # fmt: skip
    kubernetes.add_argument("--namespace", help="(default: kubectl's)")
    kubernetes.add_argument("--print", action="store_true", help="print the manifest and start nothing")


def _new_parser(commands: Any, shared: list[_Parser], json_option: _Parser) -> None:
    text = "print the JSON schema of a kind of file, by which editors complete and check it"
    schema: _Parser = commands.add_parser("schema", help=text, description=text, parents=shared)
    schema.add_argument(
        "of", nargs="?", choices=("space", "hypotheses", "suite"), default="space", help="(default: space)"
    )
    schema.set_defaults(command="study_commands:schema")
    text = "print what a shell completes commands and options by"
    completion: _Parser = commands.add_parser("completion", help=text, description=text, parents=shared)
    completion.add_argument(
        "shell", choices=("bash", "zsh"), help='bash: eval "$(raysweep completion bash)" in ~/.bashrc'
    )
    completion.set_defaults(command="study_commands:completion")
    text = "run the demo: sixteen small models, ten minutes on two cores"
    demo: _Parser = commands.add_parser("demo", help=text, description=text, parents=shared)
    demo.set_defaults(command="study_commands:demo")
    demo.add_argument("--watch", action="store_true", help="show it on a page, too")
    text = "look at this machine: one line for each thing that a sweep needs, and what to do where it is wrong"
    doctor: _Parser = commands.add_parser("doctor", help=text, description=text, parents=[*shared, json_option])
    doctor.set_defaults(command="doctor_commands:doctor")
    text = "begin a study, or code of your own: a metric, a task or a source of documents, with its test"
    kinds = commands.add_parser("new", help=text, description=text).add_subparsers(
        title="kinds", required=True, metavar="KIND"
    )
    text = "write a folder with a search space to begin with, its hypotheses, and what to do"
    study: _Parser = kinds.add_parser("study", help=text, description=text, parents=shared)
    study.set_defaults(command="study_commands:new_study")
    study.add_argument("folder", metavar="DIR", help="a new folder; the sweep is called as it is")
    for kind, text in {
        "metric": "write a package with a metric for `measure`, and its test",
        "task": "write a package with a task for `evaluations`, and its test",
        "source": "write a package with a source of documents, and its test",
    }.items():
        parser: _Parser = kinds.add_parser(kind, help=text, description=text, parents=shared)
        parser.set_defaults(command="new_commands:new", kind=kind)
        parser.add_argument("name", metavar="NAME", help="of the function, such as tail_index")
        parser.add_argument(
            "--package",
            default="my_study",
            metavar="NAME",
            help="a folder here, beside your search space (default my_study)",
        )


def _corpus_parser(
    commands: Any,
    shared: list[_Parser],
    space_argument: _Parser,
    json_option: _Parser,
) -> None:
    text = "list the published data sets; build, show or verify the corpora of a search space"
    actions = commands.add_parser("corpus", help=text, description=text).add_subparsers(
        title="actions", required=True, metavar="ACTION"
    )

    def action(name: str, function: str, text: str, *parents: _Parser) -> _Parser:
        added: _Parser = actions.add_parser(name, help=text, description=text, parents=[*shared, *parents])
        added.set_defaults(command=function)
        return added

    action("list", "corpus_commands:list_data_sets", "list the data sets that a search space may name", json_option)
    build = action(
        "build", "corpus_commands:build", "tokenize what is missing; resumes where it was stopped", space_argument
    )
    build.add_argument("--stream", action="store_true", help="stream files from the hub and keep no copy")
    show = action(
        "show",
        "corpus_commands:show",
        "show what is in the corpora; missing ones are built first",
        space_argument,
        json_option,
    )
    show.add_argument("--shard", help="the shard to show (default: pretraining/train)")
    action("verify", "corpus_commands:verify", "read every file and compare it with its checksum", space_argument)
