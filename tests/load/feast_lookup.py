"""Median microseconds of Feast's lookup of one unit's features in its SQLite store; run by a Python that has Feast."""

import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Bool, Float64, String


def main() -> None:
    """Write the rows of a Parquet file into a store, and look up one after the other."""
    file, lookups = sys.argv[1], int(sys.argv[2])
    frame = pd.read_parquet(file)
    names = [name for name in frame if name not in ("unit_id", "event_timestamp")]
    with tempfile.TemporaryDirectory() as home:
        config = RepoConfig(
            project="load", provider="local", registry=f"{home}/registry.db", entity_key_serialization_version=3,
            online_store={"type": "sqlite", "path": f"{home}/online.db"}, offline_store={"type": "file"},
        )  # fmt: skip
        store = FeatureStore(config=config)
        unit = Entity(name="unit", join_keys=["unit_id"], value_type=ValueType.STRING)
        kinds = {name: _kind(frame[name]) for name in names}
        view = FeatureView(
            name="units", entities=[unit], ttl=timedelta(days=1), online=True,
            schema=[Field(name=name, dtype=kind) for name, kind in kinds.items()],
            source=FileSource(path=str(Path(file).absolute()), timestamp_field="event_timestamp"),
        )  # fmt: skip
        store.apply([unit, view])
        store.write_to_online_store("units", frame)
        times = []
        for i in range(lookups):
            row = {"unit_id": frame["unit_id"][i % len(frame)]}
            start = time.perf_counter()
            store.get_online_features([f"units:{name}" for name in names], [row]).to_dict()
            times.append(time.perf_counter() - start)
    print(1e6 * sorted(times)[len(times) // 2])


def _kind(column: pd.Series) -> object:
    if pd.api.types.is_bool_dtype(column):
        return Bool
    return Float64 if pd.api.types.is_numeric_dtype(column) else String


if __name__ == "__main__":
    main()
