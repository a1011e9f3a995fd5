"""The tables that come with raysweep, tables of one's own, and which models and checkpoints a suite file means."""

import itertools
from pathlib import Path

import pandas as pd
import pytest

from raysweep.errors import UserError
from raysweep.space.read import load
from raysweep.space.yaml_file import YamlFile
from raysweep.suites.read import Revisions, is_suite, load_suite
from raysweep.suites.table import SHIPPED, PublishedModel, Table, read_table, shipped

# Settings that only name a model.
NAMES = {"size", "length", "seed"}


@pytest.mark.parametrize("name", shipped())
def test_every_setting_of_a_shipped_table_says_where_it_is_from(name: str) -> None:
    table = read_table(name, Path())
    assert set(table.settings) - NAMES <= set(table.facts)
    assert all(fact.source for fact in table.facts.values())
    assert table.source.startswith("https://")
    # What is said to be unknown is not there all the same.
    assert not set(table.unknown) & {
        s for s in table.settings if all(m.settings.get(s) is not None for m in table.models)
    }


@pytest.mark.parametrize("name", shipped())
def test_tokens_are_those_of_the_steps(name: str) -> None:
    for model in read_table(name, Path()).models:
        tokens, steps, batch, length = (
            model.settings.get(key) for key in ("tokens", "steps", "batch_size", "sequence_length")
        )
        if None not in (tokens, steps, batch, length):
            assert tokens == pytest.approx(steps * batch * length, rel=1e-9), model.id  # type: ignore[operator]


def test_datadecide_has_the_models_that_its_paper_counts() -> None:
    """1,050 models: 25 corpora, 14 sizes, 3 seeds (arXiv 2504.11393, abstract and section 2)."""
    table = read_table("datadecide", Path())
    settings = [model.settings for model in table.models]
    assert len(table.models) == 1050
    assert [len({str(s[name]) for s in settings}) for name in ("corpus", "size")] == [25, 14]
    seeds = {(s["corpus"], s["size"]): 0 for s in settings}
    for s in settings:
        seeds[s["corpus"], s["size"]] += 1
    assert set(seeds.values()) == {3}
    four = next(model for model in table.models if model.settings["size"] == "4M")
    assert four.repository.startswith("allenai/DataDecide-")
    assert four.step(f"step5725-seed-{four.settings['seed']}") == 5725
    assert four.step("step5725-seed-another") is None


@pytest.mark.parametrize("name", ["datadecide", "pythia", "polypythias"])
def test_parameters_are_those_of_the_architecture(name: str) -> None:
    """Counted here in another way than the table's: tensor by tensor."""
    for model in read_table(name, Path()).models:
        d, depth, rows = (int(model.settings[key]) for key in ("width", "depth", "vocabulary"))  # type: ignore[arg-type]
        if name == "datadecide":  # SwiGLU of ratio 8, RMS norms, no biases (OLMo's scripts/ladder.py).
            block = sum(a * b for a, b in [(3 * d, d), (d, d), (8 * d, d), (d, 4 * d)]) + 2 * d
            norms = d
        else:  # GPT-NeoX: biases everywhere, two layer norms with bias a block, and one at the end.
            block = sum(a * b + a for a, b in [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]) + 4 * d
            norms = 2 * d
        assert model.settings["parameters"] == depth * block + norms + rows * d, model.id


def test_a_checkpoint_is_known_by_its_name() -> None:
    one = PublishedModel("a", "o/a", "stage1-step{step}-tokens{*}B", {})
    assert one.step("stage1-step1000-tokens3B") == 1000
    assert one.step("stage2-step1000-tokens3B") is None
    assert one.step("stage1-step1000") is None
    # One that is there once is the last.
    alone = PublishedModel("a", "o/a", "main", {"steps": 500})
    assert (alone.step("main"), alone.step("step3")) == (500, None)


def test_tokens_of_a_checkpoint_are_known_where_enough_is() -> None:
    step = "step{step}"
    assert PublishedModel("a", "o/a", step, {"batch_size": 4, "sequence_length": 8}).tokens(10) == 320
    assert PublishedModel("a", "o/a", step, {"tokens": 1000, "steps": 100}).tokens(10) == 100
    assert PublishedModel("a", "o/a", step, {"tokens": 1000}).tokens(10) is None
    # Of one that is there once, all of them, whatever its step.
    assert PublishedModel("a", "o/a", "main", {"tokens": 1000}).tokens(0) == 1000
    assert PublishedModel("a", "o/a", "main", {"batch_size": 4, "sequence_length": 8}).tokens(0) is None


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({}, [143]),
        ({"last": 3}, [141, 142, 143]),
        ({"evenly": 2}, [0, 143]),
        ({"evenly": 3}, [0, 71, 143]),  # 71.5 is as far from 72; the first of them.
        ({"last": 1, "evenly": 3}, [0, 71, 143]),
        ({"last": 2, "steps": [7]}, [7, 142, 143]),
        ({"evenly": 500}, list(range(144))),
    ],
)
def test_checkpoints_are_chosen_from_all_over_the_training(asked: dict[str, int], chosen: list[int]) -> None:
    revisions = Revisions.model_validate(asked)
    assert revisions.chosen(list(range(144))) == chosen


def test_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no checkpoint of step 5"):
        Revisions(steps=(5,)).chosen([0, 10])


TABLE = """name: mine
models:
  - id: "{size}-{seed}"
    repository: "me/model-{size}"
    revision: "step{step}"
    cross:
      size: {small: {width: 8, batch_size: 4}, large: {width: 16}}
      seed: [1, 2]
settings: {sequence_length: 128}
facts: {width: {how: known, source: "Table 1"}}
unknown: [weight_decay]
"""


def write(folder: Path, table: str, suite: str = "suite: mine.yaml\n") -> Path:
    (folder / "mine.yaml").write_text(table)
    (folder / "ask.yaml").write_text(f"name: ask\n{suite}")
    return folder / "ask.yaml"


def test_a_table_is_a_grid_and_knows_what_it_does_not(tmp_path: Path) -> None:
    loaded = load_suite(
        write(tmp_path, TABLE, "suite: mine.yaml\nselect: \"seed == 2 and size in ['small', 'large']\"\n")
    )
    assert [model.id for model in loaded.models] == ["small-2", "large-2"]
    small, large = loaded.models
    assert small.repository == "me/model-small"
    assert small.settings == {"width": 8, "batch_size": 4, "sequence_length": 128, "size": "small", "seed": 2}
    assert loaded.table.unknown_of(small) == ["weight_decay"]
    assert loaded.table.unknown_of(large) == ["batch_size", "weight_decay"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("id: \"{size}-{seed}\"", "id: \"{size}\""), r"mine\.yaml:3: models\[0\]\.id: two models would have the id small"),
        (("me/model-{size}", "me/{depth}"), r"mine\.yaml:3: models\[0\]: repository me/\{depth\} needs the setting depth"),
        (("me/model-{size}", "nowhere"), r"nowhere is neither a folder beside .* nor owner/name"),
        (("width: 8", "width: wide"), r"width is 'wide', and must be a number"),
        (("{width: {how", "{widht: {how"), r"mine\.yaml:10: facts\.widht: no model has this .*did you mean 'width'"),
        (("how: known", "how: heard"), r"mine\.yaml:10: facts\.width\.how"),
        (("revision:", "revison:"), r"mine\.yaml:5: .*revison"),
        (("id: \"{size}-{seed}\"", "id: \"../{size}\""), r"id \.\./small: letters, digits"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_table_is_said_with_its_place(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in TABLE
    with pytest.raises(UserError, match=message):
        load_suite(write(tmp_path, TABLE.replace(*change)))


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("suite: pythai\n", r"ask\.yaml:2: suite: no suite pythai; .*did you mean 'pythia'"),
        ("suite: none.yaml\n", r"none\.yaml: no such table of models"),
        ("suite: mine.yaml\nselect: width > 100\n", r"ask\.yaml:3: select: .* holds for none of the 4 models"),
        ("suite: mine.yaml\nselect: widht > 1\n", r"ask\.yaml:3: select: widht is no setting of this suite"),
        ("suite: mine.yaml\nrevision: {last: 1}\n", r"ask\.yaml:3: revision: unknown key of a suite; .*'revisions'"),
        ("suite: mine.yaml\nrevisions: {last: 0}\n", r"ask\.yaml:3: revisions\.last"),
        (
            "suite: mine.yaml\nevaluations: [{task: finetune_python, relative_to: cell}]\n",
            r"ask\.yaml:3: evaluations\[0\]\.relative_to: of published models it is the rule's rate for the size",
        ),
        (
            "suite: mine.yaml\nevaluations: [in_distribtion]\n",
            r"ask\.yaml:3: evaluations\[0\]: 'in_distribtion' is neither",
        ),
        ("suite: mine.yaml\nmeasure: [{of: [gradients.*]}]\n", r"ask\.yaml:3: measure\[0\]\.of: .* no gradients"),
        ("suite: mine.yaml\nmeasure: [{of: unembedding, when: [1.0]}]\n", r"ask\.yaml:3: measure\[0\]\.when"),
        ("suite: mine.yaml\nmirror: nowhere\n", r"ask\.yaml:3: mirror: .*nowhere is no folder"),
        ("suite: mine.yaml\nresources: {disk: 0}\n", r"ask\.yaml:3: resources\.disk"),
    ],
)
def test_what_is_wrong_in_a_suite_file_is_said_with_its_place(suite: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(write(tmp_path, TABLE, suite))


def test_a_table_of_ones_own_is_a_csv_beside_the_models(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    rows = [
        {"repository": "a", "seed": 1, "weight_decay": None},
        {"repository": "you/b", "seed": 2, "weight_decay": 0.1},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "models.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "models.parquet")
    for file in ("models.csv", "models.parquet"):
        a, b = load_suite(write(tmp_path, TABLE, f"suite: {file}\n")).models
        assert (a.id, a.folder, a.settings) == ("a", (tmp_path / "a").resolve(), {"seed": 1})
        assert (b.id, b.folder, b.repository, b.settings) == ("b", None, "you/b", {"seed": 2, "weight_decay": 0.1})
    rows.append({"repository": "other/b", "seed": 3, "weight_decay": 0.1})
    pd.DataFrame(rows).to_csv(tmp_path / "models.csv", index=False)
    with pytest.raises(UserError, match=r"models\.csv:4: a model of the id b is there already"):
        load_suite(write(tmp_path, TABLE, "suite: models.csv\n"))


def test_a_command_for_search_spaces_says_that_this_is_none(tmp_path: Path) -> None:
    file = write(tmp_path, TABLE)
    assert is_suite(file)
    assert not is_suite("search_spaces/demo.yaml")
    with pytest.raises(UserError, match=r"ask\.yaml:2: suite: .* others have trained: plan, run, .* take it"):
        load(file)


def test_the_files_that_ask_shipped_suites_are_in_order() -> None:
    asking = [path for path in Path("search_spaces").glob("*.yaml") if is_suite(path)]
    assert {YamlFile(path).content["suite"] for path in asking} >= {"pythia", "datadecide"}
    for path in asking:
        loaded = load_suite(path)
        assert loaded.models
        assert isinstance(loaded.table, Table)


def test_no_two_shipped_models_are_the_same() -> None:
    tables = [read_table(name, Path()) for name in shipped()]
    assert len(list(SHIPPED.glob("*.yaml"))) == len(tables)
    for one, other in itertools.combinations(tables, 2):
        places = [{(model.repository, model.revision) for model in table.models} for table in (one, other)]
        assert not places[0] & places[1], (one.name, other.name)
