"""A search-space file -> validated cells, each with its id.

A search space has a `base` (one value per field), a `cross` (axes, full product) and `ablate` (a list of items; each is a
small grid of changes to the base, crossed with `cross`). Its cells are cross x ({base} + every ablation), equal cells
counted once, in the order of the file. `evaluations` names the tasks run on each trained cell, `resources` what a cell's
training and one evaluation ask of the cluster, and `loggers` the experiment trackers that are told of it.

A cell's id is readable and safe in a path: `4M-32B-b128-wd0.1-lr1-f0.1-s6198-3f2a91c0`. The tail is a hash of every field
that changes the numbers, the corpus's specification included, and of nothing else: the same id means the same numbers.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from raysweep.errors import UserError
from raysweep.evaluation import finetune
from raysweep.evaluation import task as evaluate
from raysweep.model import olmo as model
from raysweep.space import corpus as corpora
from raysweep.space.fields import Count, Fraction, Gpus, Integer, Number, Positive, Strict, different


class Size(Strict):
    """A model's width and depth; the vocabulary comes from the corpus."""

    width: Count
    """Hidden size d."""
    depth: Count = model.DEPTH
    """Number of blocks."""
    heads: Count = model.HEADS
    """Attention heads of each block."""

    @model_validator(mode="after")
    def _divisible(self) -> Size:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} over {self.heads} heads is odd; rotary embeddings need an even size")
        return self

    @property
    def label(self) -> str:
        """`4M` for a named size, else `d32`, with depth and heads where they are not the study's."""
        if (self.depth, self.heads) == (model.DEPTH, model.HEADS):
            for name, width in model.SIZES.items():
                if width == self.width:
                    return name
        depth = "" if self.depth == model.DEPTH else f"x{self.depth}"
        heads = "" if self.heads == model.HEADS else f"h{self.heads}"
        return f"d{self.width}{depth}{heads}"


def _named_size(value: Any) -> Any:
    if isinstance(value, str):
        if value not in model.SIZES:
            raise ValueError(f"no such size; {_allowed(value, model.SIZES)}, or {{width: 32, depth: 6, heads: 4}}")
        return Size(width=model.SIZES[value])
    return value


def _named_corpus(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Cell(Strict):
    """One configuration of the grid. Every field here changes the numbers, and so the id."""

    size: Annotated[Size, BeforeValidator(_named_size)]
    """A name (`4M` ... `75M`) or `{width, depth, heads}`."""
    corpus: Annotated[corpora.Corpus, BeforeValidator(_named_corpus)]
    """A name or `{name, tokenizer, vocabulary, fraction}`."""
    tokens: Count
    """Training budget; rounded down to whole steps."""
    batch_size: Count
    """Sequences per optimizer step."""
    sequence_length: Annotated[Count, Field(ge=2)] = 2048
    """Tokens per sequence."""
    learning_rate: Positive | None = None
    """Peak learning rate before the factor; by default the rule of `raysweep.model.peak_learning_rate`."""
    learning_rate_factor: Positive = 1.0
    """Multiplies the peak learning rate."""
    final_learning_rate_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of the peak (cosine schedule)."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps over which the rate rises linearly from zero."""
    weight_decay: Number = 0.1
    """AdamW's, on every parameter."""
    beta1: Annotated[Fraction, Field(lt=1)] = 0.9
    beta2: Annotated[Fraction, Field(lt=1)] = 0.95
    epsilon: Annotated[Positive, Field(ge=1e-30)] = 1e-8
    gradient_clipping: Positive = 1.0
    """Largest L2 norm of the gradient."""
    block: Literal["sequential", "parallel"] = "sequential"
    """Whether a block's MLP sees what its attention added, or both see the same x (as Pythia's): x + attention(norm x)
    + mlp(norm x)."""
    effective_rank_target: Annotated[Fraction, Field(gt=0)] | None = None
    """Where `effective_rank_penalty` pushes the effective rank of W."""
    effective_rank_penalty: Number = 0.0
    """Adds so many times the squared distance of W's effective rank from its target to the loss."""
    spectral_norm_cap: Positive | None = None
    """W's singular values above this are lowered to it after every step."""
    reports: Annotated[Count, Field(le=10_000)] = 20
    """Rows evenly over training, beside the first few at doubling steps."""
    validation_sequences: Count = 128
    """Sequences of the validation split on which each report measures the loss."""
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 6198
    """Of the initial weights and of the data order."""

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Cell:
        if self.tokens < self.tokens_per_step:
            raise ValueError(
                f"tokens {self.tokens} is less than one step of batch_size {self.batch_size} x "
                f"sequence_length {self.sequence_length} = {self.tokens_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _rate_in_range(self) -> Cell:
        if not 1e-37 < self.peak_learning_rate < 1e38:  # As float32 has it.
            raise ValueError(f"the peak learning rate would be {self.peak_learning_rate:g}: learning_rate x factor")
        return self

    @model_validator(mode="after")
    def _penalty_with_target(self) -> Cell:
        if (self.effective_rank_target is None) != (self.effective_rank_penalty == 0):
            raise ValueError("effective_rank_target and effective_rank_penalty (above 0) need each other")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def shape(self) -> model.Shape:
        return model.Shape(self.size.width, self.size.depth, self.size.heads, self.corpus.vocabulary, self.block)

    @property
    def peak_learning_rate(self) -> float:
        base = self.learning_rate if self.learning_rate is not None else model.peak_learning_rate(self.shape.parameters)
        return base * self.learning_rate_factor

    @property
    def flops(self) -> float:
        """6 N D, of the tokens in whole steps (Kaplan et al. 2020)."""
        return 6.0 * self.shape.parameters * self.steps * self.tokens_per_step

    @property
    def id(self) -> str:
        # Without what has its default value, so that a field to come leaves today's ids alone. For the same reason a
        # default here is never changed.
        fields = self.model_dump(exclude_defaults=True)
        fields["corpus"] = corpora.without_places(fields["corpus"])
        numbers = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        tail = hashlib.sha256(numbers.encode()).hexdigest()[:8]
        peak = "" if self.learning_rate is None else f"-peak{self.learning_rate:g}"
        further = "" if self.block == "sequential" else f"-{self.block}"
        further += "" if self.effective_rank_target is None else f"-rank{self.effective_rank_target:g}"
        further += "" if self.spectral_norm_cap is None else f"-cap{self.spectral_norm_cap:g}"
        return (
            f"{self.size.label}-{_short(self.tokens)}-b{self.batch_size}-wd{self.weight_decay:g}{peak}"
            f"-lr{self.learning_rate_factor:g}-f{self.final_learning_rate_fraction:g}{further}-s{self.seed}-{tail}"
        )

    def describe(self) -> dict[str, Any]:
        """The cell as one flat row: id, every setting, and what follows from them."""
        settings = self.model_dump(exclude={"size", "corpus", "learning_rate", "tokens"})
        return {
            "id": self.id,
            "size": self.size.label,
            "width": self.size.width,
            "depth": self.size.depth,
            "heads": self.size.heads,
            "corpus": self.corpus.name,
            "tokenizer": self.corpus.tokenizer,
            "vocabulary": self.corpus.vocabulary,
            "parameters": self.shape.parameters,
            "tokens": self.tokens,
            "steps": self.steps,
            "learning_rate": self.peak_learning_rate,
            "flops": self.flops,
            **settings,
        }


class TrainResources(Strict):
    """What one cell's training asks of the cluster."""

    workers: Count = 1
    """Data-parallel Ray Train workers of a cell."""
    cpus: Count = 1
    """Cores of each worker; also its torch threads."""
    gpus: Gpus = 0
    """GPU of each worker; a fraction only with one worker."""
    micro_batch_size: Count | None = None
    """Sequences per forward pass of a worker; by default one that fits. Changes the numbers by rounding only."""
    keep_checkpoints: Count | Literal["all"] = 2
    """How many of a cell's checkpoints stay in the store: the last so many, or all, one for each row."""
    compile: bool = False
    """Whether the blocks go through `torch.compile`."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> TrainResources:
        if self.workers > 1 and self.gpus % 1:
            raise ValueError(f"{self.workers} workers cannot share a GPU: gpus must be whole, not {self.gpus:g}")
        return self


class EvaluateResources(Strict):
    """What one evaluation task asks of the cluster."""

    cpus: Count = 1
    gpus: Gpus = 0


class Resources(Strict):
    train: TrainResources = TrainResources()
    evaluate: EvaluateResources = EvaluateResources()


class Space(Strict):
    """A validated search space."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    cells: tuple[Cell, ...]
    evaluations: tuple[evaluate.Evaluation, ...] = ()
    resources: Resources = Resources()
    loggers: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], AfterValidator(different)] = ()


# Beyond this an axis is a mistake, and making the cells would only hang.
MOST_CELLS = 100_000

_KEYS = ("name", "base", "cross", "ablate", "evaluations", "resources", "loggers")


def load(path: str | Path) -> Space:
    """Read and validate a search-space file.

    Raises `UserError` naming the file, the key, what was found and what is allowed.
    """
    return _parse(_read(Path(path)), str(path))


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such search space{_hint(path.name, near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader subclass)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _parse(content: Any, file: str) -> Space:
    content = _mapping(content, file, "the file")
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{file}: {key}: unknown key; {_allowed(key, _KEYS)}")
    for key in ("name", "base"):
        if key not in content:
            raise UserError(f"{file}: {key}: missing")

    base = _mapping(content["base"], file, "base")
    base = {name: _value(name, value, file, f"base.{name}") for name, value in base.items()}
    cross = _axes(content.get("cross") or {}, file, "cross")
    ablate = content.get("ablate") or []
    if not isinstance(ablate, list):
        raise UserError(
            f"{file}: ablate: a list of items like {{weight_decay: [0.01, 0.5]}} is needed, not {_show(ablate)}"
        )
    items = [_axes(item, file, f"ablate[{i}]") for i, item in enumerate(ablate)]
    for i, item in enumerate(items):
        for name in item:
            if name in cross:
                raise UserError(f"{file}: ablate[{i}].{name}: already an axis of cross; an axis belongs to one of them")

    count = math.prod(map(len, cross.values())) * (1 + sum(math.prod(map(len, item.values())) for item in items))
    if count > MOST_CELLS:
        raise UserError(f"{file}: cross and ablate: {count:,} cells, where a sweep has at most {MOST_CELLS:,}")
    cells: dict[str, Cell] = {}
    for crossed in _product(cross):
        for where, ablated in [("base", {})] + [
            (f"ablate[{i}]", change) for i, item in enumerate(items) for change in _product(item)
        ]:
            chosen = crossed | ablated
            cell = _validated(Cell, base | chosen, file, where, chosen)
            if cells.setdefault(cell.id, cell) != cell:
                raise UserError(
                    f"{file}: {where}: two cells differ only in where folders of their corpora are and would share results: "
                    "give the corpora different names"
                )

    settings = {
        key: content[key] for key in ("name", "evaluations", "resources", "loggers") if content.get(key) is not None
    }
    space: Space = _validated(Space, settings | {"cells": tuple(cells.values())}, file, "")
    _check_workers(space, file)
    _check_evaluations(space, file)
    return space


def _check_workers(space: Space, file: str) -> None:
    train = space.resources.train
    for cell in space.cells:
        if cell.batch_size % train.workers:
            raise UserError(
                f"{file}: resources.train.workers: batch_size {cell.batch_size} of cell {cell.id} "
                f"cannot be split evenly over {train.workers} workers"
            )


def _check_evaluations(space: Space, file: str) -> None:
    tasks = [evaluation.task for evaluation in space.evaluations]
    needed = {"out_of_distribution", "finetune_python", "finetune_math"} & set(tasks)
    for corpus in dict.fromkeys(cell.corpus for cell in space.cells):
        missing = sorted(needed - set(corpus.sources())) if corpus.sources() else []
        if missing:
            raise UserError(
                f"{file}: evaluations: the corpus {corpus.name} has no {missing[0]}: give it sources, or drop the task"
            )
    for i, task in enumerate(tasks):
        if task in tasks[:i]:
            raise UserError(f"{file}: evaluations[{i}].task: {task} is listed twice")
        evaluation = space.evaluations[i]
        if isinstance(evaluation, finetune.Settings):
            longest = max(cell.sequence_length for cell in space.cells)
            if evaluation.tokens < evaluation.batch_size * longest:
                raise UserError(
                    f"{file}: evaluations[{i}].tokens: {evaluation.tokens} is less than one step of batch_size "
                    f"{evaluation.batch_size} x sequence_length {longest} = {evaluation.batch_size * longest}"
                )


def _axes(content: Any, file: str, where: str) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for name, values in _mapping(content, file, where).items():
        here = f"{where}.{name}"
        _known_field(name, file, here)
        if not isinstance(values, list):
            raise UserError(f"{file}: {here}: a list of values is needed, not {_show(values)}")
        if not values:
            raise UserError(f"{file}: {here}: the list is empty; give at least one value or remove the axis")
        axes[name] = [_value(name, value, file, f"{here}[{i}]") for i, value in enumerate(values)]
        for i, value in enumerate(axes[name]):
            if value in axes[name][:i]:
                raise UserError(f"{file}: {here}[{i}]: {_show(values[i])} is in the list twice")
    return axes


def _product(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _known_field(name: Any, file: str, where: str) -> None:
    if name not in Cell.model_fields:
        raise UserError(f"{file}: {where}: unknown field; {_allowed(name, Cell.model_fields)}")


def _value(name: Any, value: Any, file: str, where: str) -> Any:
    """One value of one field, validated by the field's own type."""
    _known_field(name, file, where)
    field = Cell.model_fields[name]
    try:
        kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{file}: {_explain(error, where, value)}") from None


def _validated(kind: Any, values: dict[str, Any], file: str, where: str, chosen: dict[str, Any] | None = None) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        at = f" (at {', '.join(f'{k}={_show(v)}' for k, v in chosen.items())})" if chosen else ""
        raise UserError(f"{file}: {_explain(error, where, values)}{at}") from None


def _explain(error: ValidationError, where: str, root: Any) -> str:
    """The first problem of a pydantic error as `key: what is wrong, not <what was found>`."""
    # A misspelt field is also a missing one; the misspelling is what helps.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    key = where
    for part in first["loc"]:
        if isinstance(part, int):
            key += f"[{part}]"
        # Tags of a union and names of validators appear in pydantic's location; only real keys help the reader.
        elif isinstance(part, str) and re.fullmatch(r"[a-z_0-9]+", part) and part not in evaluate.TASKS:
            key += f".{part}" if key else part
    kind, found, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "missing":
        return f"{key}: missing"
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        return f"{key}: unknown field{_hint(name, _siblings(first['loc'], root))}"
    if "error" in context:
        message = str(context["error"])
    elif kind == "tuple_type":
        message = "a list is needed"
    else:
        message = first["msg"][:1].lower() + first["msg"][1:]
    if kind == "value_error" and isinstance(found, BaseModel | dict):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, not {_show(found)}"


def _siblings(location: tuple[int | str, ...], root: Any) -> list[str]:
    """What could have stood where an unknown field was found."""
    if "evaluations" in location:
        evaluation = root["evaluations"][location[location.index("evaluations") + 1]]
        return list(evaluate.TASKS[evaluation["task"]].Settings.model_fields)
    models: dict[int | str, type[BaseModel]] = {
        "train": TrainResources,
        "evaluate": EvaluateResources,
        "resources": Resources,
    }
    for part in reversed(location[:-1]):
        if part in models:
            return list(models[part].model_fields)
    # One value of one field, which is a mapping only for these two.
    fields = Size.model_fields if not isinstance(root, dict) or "name" not in root else corpora.Corpus.model_fields
    return list(fields)


def _mapping(value: Any, file: str, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file}: {where}: a mapping of names to values is needed, not {_show(value)}")
    return value


def _allowed(found: Any, allowed: Any) -> str:
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(found), names, n=1)
    return f"allowed: {', '.join(names)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _hint(found: str, allowed: list[str]) -> str:
    return f"; {_allowed(found, allowed)}" if allowed else ""


def _show(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    text = ""
    try:
        # Piece by piece: YAML's aliases make values of a few lines that would fill the memory when written out.
        for piece in json.JSONEncoder(default=str).iterencode(value):
            text += piece
            if len(text) > 60:
                return text[:57] + "..."
    except (ValueError, TypeError, RecursionError):
        return f"{text}... ({type(value).__name__})"
    return text


def _short(count: int) -> str:
    """32000000000 -> `32B`; at most four significant digits, since the hash tells the rest."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:.4g}{name}"
    return str(count)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `32e9` as text, `010` as 8 and `1:30` as 90, and keeps the last of two equal keys; a search space means
    none of that."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "merge keys (<<) are not for search spaces: write the keys out", key_node.start_mark
                )
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _plain_integer(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", text):
        raise yaml.constructor.ConstructorError(
            None, None, f"{text!r} is not written as a whole number is in decimal", node.start_mark
        )
    return int(text.replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _plain_integer)
