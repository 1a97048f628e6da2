"""A model file that is damaged, foreign or hostile is refused in one sentence before anything is scored.

Files are read in another process: a file that crashes the reader must fail a test, not end the test run.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from uplift_spark.forest.training import Params, fit_table
from uplift_spark.roles import Roles

READER = """
import json, sys
from uplift_spark import load_model
from uplift_spark.errors import ModelFileError
for path in sys.argv[1:]:
    try:
        load_model(path)
        verdict = "loaded"
    except ModelFileError as error:
        verdict = str(error)
    except Exception as error:
        verdict = f"{type(error).__name__}: {error}"
    print(json.dumps([path, verdict]), flush=True)
"""


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


@pytest.fixture(scope="module")
def model_bytes():
    rng = np.random.default_rng(2)
    n = 200
    rows = pa.table(
        {
            "unit_id": [f"u{i}" for i in range(n)],
            "treatment": np.where(np.arange(n) % 2, "offer", "none"),
            "visit": rng.normal(size=n),
            "recency": rng.uniform(size=n),
            "zip": [f"z{i % 3}" for i in range(n)],
        }
    )
    roles = Roles("unit_id", "treatment", "visit", ("recency", "zip"), control="none")
    return fit_table(rows, roles, Params(n_trees=4, seed=1)).to_bytes()


def read_all(paths: list[Path]) -> dict[Path, str]:
    """{path: 'loaded', the refusal, or how the reader died of it}; after a death the next reader goes on."""
    verdicts: dict[Path, str] = {}
    while left := [path for path in paths if path not in verdicts]:
        process = subprocess.run(
            [sys.executable, "-c", READER, *map(str, left)], capture_output=True, text=True, timeout=300, check=False
        )
        verdicts |= {Path(path): verdict for path, verdict in map(json.loads, process.stdout.splitlines())}
        if process.returncode:
            victim = next(path for path in left if path not in verdicts)
            verdicts[victim] = f"killed the reader (exit {process.returncode}): {process.stderr[-200:]}"
    return verdicts


def check_refused(verdicts: dict[Path, str]) -> None:
    """Every file has one sentence of its own: a ModelFileError naming the file."""
    wrong = {p.name: v for p, v in verdicts.items() if str(p) not in v or "Error:" in v or "\n" in v}
    assert wrong == {}


def test_an_intact_file_loads(model_bytes, tmp_path):
    path = tmp_path / "a b#c%2e.uplift"
    path.write_bytes(model_bytes)
    assert read_all([path]) == {path: "loaded"}


@pytest.mark.slow
def test_truncated_and_padded_files_are_refused(model_bytes, tmp_path):
    size = len(model_bytes)
    ends = sorted({0, 1, 6, 8, 40, 64, size // 3, size // 2, size - 64, size - 33, size - 32, size - 8, size - 1})
    files = {tmp_path / f"cut_{end}": model_bytes[:end] for end in ends}
    files[tmp_path / "longer_by_zeros"] = model_bytes + bytes(64)
    files[tmp_path / "twice"] = model_bytes * 2
    files[tmp_path / "zeros"] = bytes(size)
    for path, content in files.items():
        path.write_bytes(content)
    check_refused(read_all(list(files)))


def test_a_file_with_one_changed_bit_is_refused_wherever_it_is(model_bytes, tmp_path):
    """About 250 places, in header, manifest, arrays, offsets and footer; flipped low and high."""
    files = []
    for index, offset in enumerate(range(0, len(model_bytes), max(1, len(model_bytes) // 250))):
        path = tmp_path / f"bit_{offset}"
        changed = bytearray(model_bytes)
        changed[offset] ^= (1, 128)[index % 2]
        path.write_bytes(changed)
        files.append(path)
    check_refused(read_all(files))


@pytest.mark.slow
def test_files_that_were_never_a_model_are_refused(model_bytes, tmp_path):
    table = pa.table({"nodes": [1, 2], "sums": [3, 4]})
    named = table.replace_schema_metadata({"uplift_manifest": '{"format": 1}', "uplift_checksum": "0" * 64})
    for name, foreign in {"arrow_file": table, "named_like_a_model": named}.items():
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, foreign.schema) as writer:
            writer.write_table(foreign)
    with pa.OSFile(str(tmp_path / "arrow_stream"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "text").write_text("not a model\n" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken_link").symlink_to(tmp_path / "nothing")
    (tmp_path / "endless_link").symlink_to(tmp_path / "endless_link")
    (tmp_path / "link_out").symlink_to("/etc/hostname")
    files = [*tmp_path.iterdir(), tmp_path / "missing", Path(f"{tmp_path}/folder/../text"), Path(os.devnull)]
    assert len(files) == 11
    check_refused(read_all(files))


def test_pickles_are_refused_and_never_executed(model_bytes, tmp_path):
    """As the whole file, and in place of the manifest and of each array."""
    canary = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(canary))
    (tmp_path / "whole_file").write_bytes(bomb)
    (tmp_path / "before").write_bytes(bomb + model_bytes)
    (tmp_path / "after").write_bytes(model_bytes + bomb)
    arrays = ["nodes", "node_start", "sets", "set_start", "leaf_start", "sums"]
    slots = {name: pa.array([bomb]) for name in arrays}
    for hit in (*arrays, "uplift_manifest", "uplift_checksum"):
        columns = {name: slots[name] if name == hit else pa.array([[1]], pa.large_list(pa.int64())) for name in arrays}
        metadata = {"uplift_manifest": b"{}", "uplift_checksum": b"0"} | ({hit: bomb} if hit not in arrays else {})
        table = pa.table(columns).replace_schema_metadata(metadata)
        with pa.OSFile(str(tmp_path / f"slot_{hit}"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    check_refused(read_all(list(tmp_path.iterdir())))
    assert not canary.exists()
    pickle.loads(bomb)
    assert canary.exists(), "the bomb must be live for this test to mean anything"
