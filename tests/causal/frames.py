"""Small frames with a known effect, shared by the forest's tests."""

from __future__ import annotations

import numpy as np
import pandas as pd

from uplift_spark.vocabulary import Roles

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
