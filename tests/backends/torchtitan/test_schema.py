"""The snapshot of TorchTitan's keys is fresh, whole, and leads to keys that exist."""

from __future__ import annotations

from primus.backends.schema_snapshot import fields_of
from primus.backends.torchtitan import TorchTitanBackend, generate_schema
from primus.config.keys import keys


def test_the_snapshot_is_fresh() -> None:
    assert generate_schema.SNAPSHOT.read_text(encoding="utf-8") == generate_schema.text(), (
        "run `python -m primus.backends.torchtitan.generate_schema`"
    )


def test_every_field_is_offered_or_left_out_for_a_reason() -> None:
    fields = {
        f"{section}.{name}" for section, classes in generate_schema.sections().items() for name in fields_of(classes)
    }
    offered = set(TorchTitanBackend().native_schema().keys)
    assert fields == offered | (set(generate_schema.OMITTED) & fields)
    assert set(generate_schema.PORTABLE) <= offered
    assert set(generate_schema.OMITTED) <= fields


def test_portable_keys_exist() -> None:
    for key, portable in generate_schema.PORTABLE.items():
        assert portable in keys(), f"{key} points at {portable}"


def test_keys_carry_what_a_reader_needs() -> None:
    schema = TorchTitanBackend().native_schema()
    assert schema.engine == {"torchtitan": "0.3.0"}
    backend = schema.keys["parallelism.spmd_backend"]
    assert backend.choices == ("partial_dtensor", "full_dtensor", "spmd_types")
    assert backend.default == "partial_dtensor"
    assert schema.keys["training.steps"].portable == "train.steps"
    described = [key for key in schema.keys.values() if key.description]
    assert len(described) > 0.9 * len(schema.keys)
