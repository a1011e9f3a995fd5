"""Tables of earlier versions, and of a version to come, without a change of the code."""

from typing import Annotated, Any

import pyarrow as pa
import pytest
from tiny import make_cell

from raysweep.space.cell import Cell
from raysweep.space.fields import Column, Number
from raysweep.store import schemas, tables

ROW = make_cell().describe()


def written_under(version: str, without: tuple[str, ...] = (), *, change: bool = False) -> bytes:
    """A plan as an earlier raysweep wrote it, or as a damaged file holds it."""
    schema = pa.schema(
        [field for field in schemas.PLAN if field.name not in without], metadata={"raysweep_schema": version}
    )
    row = {name: value for name, value in ROW.items() if name not in without}
    content = tables.encode([row], schema)
    if change:
        table = tables.read_parquet(pa.BufferReader(content))
        changed = table.set_column(
            table.column_names.index("seed"), schema.field("seed"), pa.array([7], pa.int64())
        ).replace_schema_metadata(table.schema.metadata)
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(changed, sink, write_page_checksum=True)
        content = sink.getvalue().to_pybytes()
    return content


def test_what_an_earlier_version_did_not_have_is_what_every_cell_had_then() -> None:
    since_6 = ("head_bottleneck", "optimizer", "weight_decay_on", "z_loss", "precision")
    since_5 = ("schedule", "decay_fraction", "weight_tying", "qk_norm", "mlp_ratio")
    since_3 = ("block", "effective_rank_target", "effective_rank_penalty", "spectral_norm_cap", "reports")
    for version in ("1", "2", "3", "4", "5"):
        missing = since_6 + (since_5 if version < "5" else ()) + (since_3 if version < "3" else ())
        (row,) = tables.decode(written_under(version, missing), schemas.PLAN).to_pylist()
        assert row == ROW
        assert [row[name] for name in since_5] == ["cosine", None, False, False, 4]
        assert [row[name] for name in since_6] == [None, "adamw", "all", 0.0, None]
        assert list(row) == schemas.PLAN.names


def test_a_setting_that_was_always_there_may_not_be_missing() -> None:
    with pytest.raises(tables.Damaged):
        tables.decode(written_under("2", ("seed",)), schemas.PLAN)


def test_a_changed_row_is_damage_and_a_later_version_is_not() -> None:
    with pytest.raises(tables.Damaged, match="its rows are not what was written"):
        tables.decode(written_under(schemas.SCHEMA_VERSION, change=True), schemas.PLAN)
    with pytest.raises(tables.OtherVersion, match="9"):
        tables.decode(written_under("9"), schemas.PLAN)


def test_a_new_field_of_a_cell_is_a_new_column_and_leaves_ids_alone() -> None:
    """What CONTRIBUTING.md promises: the field, its unit and its version are all that is written."""

    class Wider(Cell):
        momentum: Annotated[Number, Column("of SGD", since=4)] = 0.9

    settings: dict[str, Any] = make_cell().model_dump()
    assert Wider.model_validate(settings).id == make_cell().id
    assert Wider.model_validate(settings | {"momentum": 0.5}).id != make_cell().id
    assert schemas._column(Wider.model_fields["momentum"]) == Column("of SGD", 4)
    assert schemas._arrow_type(Wider.model_fields["momentum"]) == pa.float64()
    assert list(Wider.model_validate(settings).describe())[-1] == "momentum"
    assert list(make_cell().describe()) == schemas.PLAN.names


@pytest.mark.parametrize(
    ("version", "new"),
    [("3", ("device", "device_name", "precision", "kernels", "compiled", "gpus")), ("6", ("gpus",))],
)
def test_what_computed_older_numbers_is_not_known(version: str, new: tuple[str, ...]) -> None:
    older = pa.schema([f for f in schemas.TIMINGS if f.name not in new], metadata={"raysweep_schema": version})
    written = {"cell": "c", "stage": "train", "seconds": 1.0, "tokens_per_second": 2.0, "starts": 1, "host": "h"}
    (row,) = tables.decode(tables.encode([written], older), schemas.TIMINGS).to_pylist()
    assert row == dict.fromkeys(schemas.TIMINGS.names) | written
