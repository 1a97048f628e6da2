"""One small frame, and every kind of model trained on it: name -> what is digested of it. Public names only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tests.golden.digest import Digests, table_digest
from uplift_spark import CausalForest, InstrumentalForest, MetaLearner, Roles, load_model

ROWS, NEW_ROWS = 1500, 200
FEATURES = ("age", "spend", "visits", "region", "member")
DOSE = {"none": 0.0, "5%": 5.0, "10%": 10.0}
PLANS = {"none": (0.0, 0.0), "5% weekly": (5.0, 4.0), "5% monthly": (5.0, 1.0), "10% weekly": (10.0, 4.0)}
LEARNERS = ("t_learner", "s_learner", "x_learner", "r_learner", "dr_learner", "class_transformation")


def golden_frame(rows: int = ROWS, seed: int = 20250106) -> pd.DataFrame:
    """Numeric, categorical, boolean and missing features; treatments of every kind, each with an outcome of its own."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "unit": [f"u{i:06d}" for i in range(rows)],
            "age": np.where(rng.random(rows) < 0.05, np.nan, rng.integers(18, 80, rows)),
            "spend": rng.integers(1, 2000, rows) / 16,
            "visits": rng.integers(0, 12, rows),
            "region": rng.choice(np.array(["north", "south", "east", None], object), rows),
            "member": rng.random(rows) < 0.4,
            "household": rng.integers(0, rows // 3, rows),
            "weight": rng.choice([0.5, 1.0, 2.0], rows),
            "day": rng.integers(0, 30, rows),
            "mailed": rng.choice(["0", "1"], rows),
            "arm": rng.choice(list(DOSE), rows),
            "mail": rng.choice(["none", "mens", "womens", "kids"], rows),
            "spent": rng.integers(0, 161, rows) / 16,
            "plan": rng.choice(list(PLANS), rows),
        }
    )
    tau: pd.Series = 0.1 * (frame["age"].fillna(0) > 40) * np.where(frame["region"] == "north", 2.0, 1.0)
    noise = frame["visits"] / 8 + rng.integers(-64, 65, rows) / 32
    frame["y_mailed"] = 10 * tau * (frame["mailed"] == "1") + noise
    frame["y_arm"] = tau * frame["arm"].map(DOSE) + noise
    frame["y_mail"] = frame["mail"].map({"none": 0.0, "mens": 0.5, "womens": 1.0, "kids": 0.0}) * 5 * tau + noise
    frame["y_spent"] = tau * np.minimum(frame["spent"], 6) + noise
    frame["y_plan"] = tau * frame["plan"].map(lambda plan: PLANS[plan][0] + PLANS[plan][1]) + noise
    frame["bought"] = (frame["y_arm"] > 1).astype(int)
    frame["delivered"] = 1.0 * ((frame["mailed"] == "1") & (noise < 1.5))
    frame["y_delivered"] = 10 * tau * frame["delivered"] + noise
    expected = frame["visits"] / 8
    rows_of = zip(expected.tolist(), frame["y_arm"].tolist(), frame["arm"].tolist(), strict=True)
    scores = [{level: e + (3.0 * (y - e) if level == got else 0.0) for level in DOSE} for e, y, got in rows_of]
    frame["scores"] = pd.Series(scores, dtype=object)
    return frame


def new_frame() -> pd.DataFrame:
    """Units that no model was trained on."""
    return golden_frame(NEW_ROWS, 20250107)


MAILED = Roles("unit", "mailed", "y_mailed", FEATURES, "0")
ORDERED = Roles("unit", "arm", "y_arm", FEATURES, "none", dose=DOSE)
MAIL = Roles("unit", "mail", "y_mail", FEATURES, "none")
SPENT = Roles("unit", "spent", "y_spent", FEATURES, "0", grid=(2.0, 5.0, 8.0))
PLAN = Roles("unit", "plan", "y_plan", FEATURES, "none", dose=PLANS)


def forest(**more: Any) -> CausalForest:
    """A small causal forest."""
    return CausalForest(**{"n_trees": 16, "seed": 7, **more})


def _learn(kind: str, roles: Roles, frame: pd.DataFrame) -> Any:
    return MetaLearner(kind, replicates=2, rows=400).fit(frame, roles)


@dataclass(frozen=True)
class Case:
    """What is fitted to the frame, and what else than effects is asked of the model."""

    fit: Callable[[pd.DataFrame], Any]
    outcomes: tuple[str | None, ...] = (None,)
    explains: bool = False
    more: Callable[[Any, pd.DataFrame, pd.DataFrame], Iterator[tuple[str, Any]]] | None = None


def _refreshed(model: Any, frame: pd.DataFrame, new: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """The same trees with more rows, with rows that fade, and with fewer rows."""
    both = pd.concat([frame, new.assign(unit="new-" + new["unit"])], ignore_index=True)
    yield "refresh", model.refresh(both)
    yield "refresh half_life", model.refresh(both, half_life=10, day="day")
    yield "estimate", model.estimate(frame.iloc[3:])


def _other_doses(model: Any, frame: pd.DataFrame, new: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    yield "at", model.at([3, 7])
    yield "at partial", model.at([3, 7], partial=True)


CASES: dict[str, Case] = {
    "forest binary": Case(lambda f: forest().fit(f, MAILED), explains=True, more=_refreshed),
    "forest ordered": Case(lambda f: forest().fit(f, ORDERED), explains=True, more=_refreshed),
    "forest grid spline": Case(lambda f: forest(criterion="spline").fit(f, SPENT)),
    "forest arms": Case(lambda f: forest().fit(f, MAIL), explains=True),
    "forest grid": Case(lambda f: forest().fit(f, SPENT), explains=True, more=_other_doses),
    "forest vector dose": Case(lambda f: forest().fit(f, PLAN)),
    "forest per_level": Case(lambda f: forest(per_level=True).fit(f, ORDERED)),
    "forest monotone": Case(lambda f: forest(monotone="increasing").fit(f, ORDERED)),
    "forest more_outcomes": Case(
        lambda f: forest().fit(f, replace(ORDERED, more_outcomes=("bought",))), (None, "bought")
    ),
    "forest cluster": Case(lambda f: forest().fit(f, replace(ORDERED, cluster="household"))),
    "forest weight": Case(lambda f: forest().fit(f, replace(ORDERED, weight="weight"))),
    "forest scores": Case(lambda f: forest().fit(f, replace(ORDERED, scores="scores"))),
    "forest fixed": Case(
        lambda f: forest(min_leaf=10, n_buckets=4, max_bins=16, max_depth=5, centre=False, debias=False).fit(f, ORDERED)
    ),
    "instrumental": Case(
        lambda f: InstrumentalForest(n_trees=16, seed=7).fit(f, replace(MAILED, outcome="y_delivered"), "delivered")
    ),
    **{kind: Case(partial(_learn, kind, MAILED)) for kind in LEARNERS},
    "dr_learner ordered": Case(partial(_learn, "dr_learner", ORDERED)),
    "x_learner arms": Case(partial(_learn, "x_learner", MAIL)),
}

# {case: columns} of effects whose last bits are not the same in two runs: their first ten digits count. None was found.
ROUNDED: dict[str, tuple[str, ...]] = {}

UNSTABLE_FILE = "not digested: learners' files hold other bytes each time they are written, though they tell the same"


def case_digests(name: str) -> dict[str, Digests]:
    """{what: digest}: the model file, effects of new units, explanations, and whatever else the case asks for."""
    case, frame, new = CASES[name], golden_frame(), new_frame()
    model = case.fit(frame)
    found = dict(_told(name, model, new, case.outcomes))
    if case.explains:
        found[f"{name}: explain"] = _digest(model.explain(new), name)
    for step, other in case.more(model, frame, new) if case.more else ():
        found |= dict(_told(f"{name}: {step}", other, new, (None,)))
    return found


def _told(name: str, model: Any, new: pd.DataFrame, outcomes: tuple[str | None, ...]) -> Iterator[tuple[str, Digests]]:
    content = model.to_bytes()
    stable = name.split()[0] not in LEARNERS
    yield f"{name}: model file", {"sha256": hashlib.sha256(content).hexdigest() if stable else UNSTABLE_FILE}
    again = load_model(content)
    for outcome in outcomes:
        effects = model.effect(new, outcome)
        assert effects.equals(again.effect(new, outcome)), f"{name}: a saved model gives other effects"
        yield f"{name}: effect" + (f" on {outcome}" if outcome else ""), _digest(effects, name)


def _digest(frame: pd.DataFrame, name: str) -> Digests:
    return table_digest(pa.Table.from_pandas(frame, preserve_index=False), rounded=ROUNDED.get(name, ()))


def portable_digest() -> Digests:
    """Effects that ONNX Runtime gives for the file of one level; raises ImportError without the extra."""
    onnxruntime = import_module("onnxruntime")
    new = new_frame()
    model = CASES["forest ordered"].fit(golden_frame())
    session = onnxruntime.InferenceSession(model.to_onnx("10%"))
    texts = {one.name for one in session.get_inputs() if one.type == "tensor(string)"}
    given = {one.name: _fed(new[one.name], one.name in texts) for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    told = dict(zip(names, session.run(names, given), strict=True))
    return table_digest(pa.table({name: pa.array(np.asarray(values).ravel()) for name, values in told.items()}))


def _fed(column: pd.Series, text: bool) -> np.ndarray:
    if text:
        return column.fillna("").to_numpy(str).astype(object).reshape(-1, 1)
    return column.to_numpy(float).reshape(-1, 1)
