"""Small frames with a known effect, shared by the forest's tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark.roles import Roles
from uplift_spark.stats.sampling import BUCKET_SALT, mix64_all, unit_hashes

FEATURES = ("age", "spend", "region", "member")


def ordered_roles(**more) -> Roles:
    return Roles("unit", "arm", "y", FEATURES, "none", dose={"none": 0, "5%": 5, "10%": 10}, **more)


def arm_roles(**more) -> Roles:
    return Roles("unit", "arm", "y", FEATURES, "none", **more)


def ordered_frame(n: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Dose effect `tau` of 0.1 per point for ages above 40, twice that in the north; some values missing."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "unit": [f"u{i:06d}" for i in range(n)],
            "arm": rng.choice(["none", "5%", "10%"], n),
            "age": np.where(rng.random(n) < 0.05, np.nan, rng.integers(18, 80, n)),
            "spend": rng.lognormal(size=n),
            "region": rng.choice(["north", "south", "east", None], n),
            "member": rng.random(n) < 0.4,
        }
    )
    dose = frame["arm"].map({"none": 0.0, "5%": 5.0, "10%": 10.0})
    frame["tau"] = 0.1 * (frame["age"].fillna(0) > 40) * np.where(frame["region"] == "north", 2.0, 1.0)
    frame["y"] = frame["tau"] * dose + rng.normal(size=n)
    return frame


def plain_roles(frame: pd.DataFrame, **more) -> Roles:
    """Roles of `plain_frame` and of frames made from it: every column that starts with x is a feature."""
    features = tuple(column for column in frame.columns if column.startswith("x"))
    return Roles("unit", "w", "y", features, "0", **more)


def plain_frame(n: int, seed: int = 0, p: int = 5) -> pd.DataFrame:
    """Treated or not, an effect `tau` of one where x0 is above a half, unit noise."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.random((n, p)), columns=[f"x{i}" for i in range(p)])
    frame["unit"], frame["w"] = np.arange(n), rng.integers(0, 2, n)
    frame["tau"] = 1.0 * (frame["x0"] > 0.5)
    frame["y"] = frame["tau"] * frame["w"] + rng.normal(size=n)
    return frame


def buckets_of(frame: pd.DataFrame, n_buckets: int, seed: int = 7, column: str = "unit") -> np.ndarray:
    """The bucket that a forest with this seed puts each row in."""
    hashes = mix64_all(unit_hashes(pa.array(frame[column]), column), np.uint64(seed), BUCKET_SALT)
    return (hashes % np.uint64(n_buckets)).astype(int)


SPOILED = {3: "single arm", 5: "empty", 11: "constant outcome", 17: "missing features", 23: "constant features"}


def thousand_buckets() -> tuple[pd.DataFrame, dict[int, str]]:
    """20,000 rows for 1,000 buckets, five of them SPOILED, and every bucket's status as anyone can count it."""
    frame = plain_frame(20_000)
    bucket = buckets_of(frame, 1000)
    frame.loc[bucket == 3, "w"] = 0
    frame.loc[bucket == 11, "y"] = 2.0
    frame.loc[bucket == 17, ["x0", "x1", "x2", "x3", "x4"]] = np.nan
    frame.loc[bucket == 23, ["x0", "x1", "x2", "x3", "x4"]] = 0.25
    frame, bucket = frame[bucket != 5].reset_index(drop=True), bucket[bucket != 5]
    arms = frame.groupby(bucket)["w"].nunique()
    return frame, {b: SPOILED.get(b, "single arm" if arms.get(b) == 1 else "ok") for b in range(1000)}
