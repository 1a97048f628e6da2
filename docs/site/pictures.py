"""Draw the pictures of the concepts from small simulations, with the package itself; no Spark.

python docs/site/pictures.py      # writes docs/concepts/*.svg and prints the figures that the pages quote
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from uplift_spark import CausalForest, MetaLearner, Roles
from uplift_spark.evaluation.metrics import curve_table
from uplift_spark.evaluation.svg import bars_svg, curves_svg, whiskers_svg
from uplift_spark.experiments.frames import ReadoutColumns, readout
from uplift_spark.experiments.health import ReadoutDesign
from uplift_spark.experiments.readout import ReadoutMetric

FOLDER = Path(__file__).resolve().parents[1] / "concepts"
POINTS = 100  # effects on a rate are shown in percentage points
# The colours of the report's pictures in its light scheme; an image cannot take those of the page around it.
STYLE = Markup(
    "<style>text{font:12px sans-serif;fill:#222}.tick{fill:#6b6b6b}.title{font-weight:600}.grid{stroke:#e6e6e6}"
    ".zero{stroke:#6b6b6b}.bar{fill:#0072b2;opacity:.75}.whisker{stroke:#222;stroke-width:1.5}"
    ".diamond{fill:#d55e00}.band{fill:#0072b2;opacity:.18}.curve{fill:none;stroke:#0072b2;stroke-width:2}"
    ".random{fill:none;stroke:#6b6b6b;stroke-dasharray:4 4}.dot{fill:#0072b2}"
    ".hollow{fill:#fff;stroke:#d55e00;stroke-width:2}</style>"
)
# Kind of customer: who buys without a mailing, and what the mailing adds to that.
KINDS = {
    "buys anyway": (0.60, 0.00),
    "can be persuaded": (0.10, 0.15),
    "never buys": (0.02, 0.00),
    "is put off": (0.30, -0.08),
}
ROLES = Roles(unit="customer", treatment="mailing", outcome="bought", features=["x1", "x2"], control="none")


def trial(n: int, seed: int, effect: float = 0.0, gap: float = 0.0) -> pd.DataFrame:
    """A trial of a mailing: half of `n` customers get it, at random.

    Args:
        n: Customers.
        seed: Of the draw.
        effect: What the mailing adds to the buying rate of the average customer.
        gap: How much more it adds where x1 is 1 than where it is 0.

    Returns:
        customer, mailing (`none` or `mail`), bought (0 or 1), and two features between 0 and 1.
    """
    rng = np.random.default_rng(seed)
    x1, x2 = rng.random(n), rng.random(n)
    mailed = rng.permutation(n) < n // 2
    rate = 0.15 + 0.1 * x2 + mailed * (effect + gap * (x1 - 0.5))
    return pd.DataFrame(
        {
            "customer": np.arange(n),
            "mailing": np.where(mailed, "mail", "none"),
            "bought": (rng.random(n) < rate).astype(int),
            "x1": x1,
            "x2": x2,
        }
    )


def kinds(n: int = 60_000, seed: int = 4) -> pd.DataFrame:
    """Effect of the mailing by kind of customer, and beside it the buying rate without: a row a kind."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, len(KINDS), n)
    base, added = np.array(list(KINDS.values())).T
    mailed = rng.permutation(n) < n // 2
    bought = (rng.random(n) < base[kind] + added[kind] * mailed).astype(int)
    rows = pd.DataFrame({"customer": np.arange(n), "mailing": np.where(mailed, "mail", "none"), "bought": bought})
    read = [{"bucket": name, "low_sample": False, **effect(rows[kind == k])} for k, name in enumerate(KINDS)]
    return pd.DataFrame(read)


def effect(rows: pd.DataFrame) -> dict[str, float]:
    """What the mailing adds to the buying rate in a trial, with its 95 % interval."""
    metric = ReadoutMetric("bought", "bought", role="primary")
    columns = ReadoutColumns(unit="customer", treatment="mailing")
    read = (
        readout(rows, [metric], ReadoutDesign({"none": 0.5, "mail": 0.5}, randomised="customer"), columns)
        .table()
        .iloc[0]
    )
    return {
        "without": read["control"],
        "uplift": read["effect"],
        "uplift_lower": read["lower"],
        "uplift_upper": read["upper"],
    }


def honest() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Deciles of a learner on the rows that it was fitted on, and on others, where the mailing does nothing at all."""
    rows = trial(8000, seed=11)
    seen, rest = rows[:4000], rows[4000:]
    model = MetaLearner("t_learner", replicates=0).fit(seen, ROLES)
    lifts = [model.lift(part) for part in (seen, rest)]
    first, second = (lift[lift["cut"] == "decile"] for lift in lifts)
    return first, second


def repeated(times: int = 20, n: int = 4000, true: float = 0.05) -> pd.DataFrame:
    """The same trial again and again: the estimate less the true effect, hollow where the interval misses it."""
    rows = []
    for number in range(1, times + 1):
        one = trial(n, seed=200 + number, effect=true)
        figures = effect(one)
        less = {name: figures[name] - true for name in ("uplift", "uplift_lower", "uplift_upper")}
        misses = not less["uplift_lower"] <= 0 <= less["uplift_upper"]
        rows.append({"bucket": f"trial {number}", "low_sample": misses, **less})
    return pd.DataFrame(rows)


def gains() -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """{title: (curve, Qini)} of a campaign whose effects differ, and of one with the same effect on everybody."""
    found = {}
    for title, gap in (("effects differ", 0.3), ("effects are alike", 0.0)):
        rows = trial(12_000, seed=5, effect=0.05, gap=gap)
        model = CausalForest(n_trees=48, seed=7).fit(rows[:6000], ROLES)
        found[title] = curve_table(model._evaluated(rows[6000:], None)), model.qini(rows[6000:])
    return found


def pictures() -> dict[str, str]:
    """{name of the file: SVG}."""
    unit = "percentage points"
    first, second = honest()
    curves = {title: curve for title, (curve, _) in gains().items()}
    return {
        "kinds.svg": _file(whiskers_svg(kinds(), POINTS, unit)),
        "on_the_training_rows.svg": _file(bars_svg(first, POINTS, f"On the rows it was fitted on, {unit}")),
        "on_other_rows.svg": _file(bars_svg(second, POINTS, f"On other rows, {unit}")),
        "intervals.svg": _file(whiskers_svg(repeated(), POINTS, "points off the truth")),
        **{
            f"{title.replace(' ', '_')}.svg": _file(curves_svg(title, curve, POINTS, unit))
            for title, curve in curves.items()
        },
    }


def _file(svg: Markup) -> str:
    """A picture as a file of its own, on white."""
    head, _, rest = str(svg).partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n'


def main() -> None:
    """Write the pictures and print the figures."""
    for name, svg in pictures().items():
        (FOLDER / name).write_text(svg)
        print(f"{name}: {len(svg):,} bytes")
    print(kinds().round(3).to_string())
    print(int(repeated()["low_sample"].sum()), "intervals of 20 miss")
    for title, (_, qini) in gains().items():
        print(title, qini[["value", "lower", "upper"]].round(4).to_dict("records"))


if __name__ == "__main__":
    main()
