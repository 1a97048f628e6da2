"""Differential privacy: forests and lift tables from which nobody can be picked out, and a ledger of what was spent.

What is published about a campaign may tell that a person was in it, or what she bought: leaves with few rows, lift of
small segments. Here every published number that rests on the persons comes from integer sums with noise, so that it is
almost as likely with any one person as without her (`stats.noise.PrivacyBudget`). The price is wider intervals, which
know of the noise.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.estimators import CausalForest, UpliftModel, frame_rows
from uplift_spark.forest.private import private_table
from uplift_spark.roles import Roles
from uplift_spark.stats.moments import normal_quantile
from uplift_spark.stats.noise import NOISE_MARGIN, OutcomeEnds, PrivacyBudget, epsilon_of, noise_sd, with_integer_noise

if TYPE_CHECKING:
    import pandas as pd

    from uplift_spark.estimators import Frame

_Z95 = normal_quantile(0.95)


# --------------------------------------------------------------------------------------------------------------------
# The ledger: budgets add up, so somebody has to add them up.


@dataclass(frozen=True)
class PrivacyLedger:
    """What has been spent of one population's budget; a file that every release is entered into before it is made.

    path    SQLite file, made if it is not there; on a disk that all who publish share
    budget  of everything that is ever published about these persons; the file keeps the first one that it is given

    Raises:
        ConfigError: on use, the file was begun with another budget.

    Example:
        >>> ledger = PrivacyLedger(folder / "ledger.db", PrivacyBudget(2.0))
        >>> ledger.spend(PrivacyBudget(1.0), "forest of the spring campaign")
        >>> round(ledger.spent, 2)
        1.0
    """

    path: Path | str
    budget: PrivacyBudget

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS spent (at TEXT NOT NULL, what TEXT NOT NULL, rho REAL NOT NULL, "
            "epsilon REAL NOT NULL, delta REAL NOT NULL)"
        )
        connection.execute("CREATE TABLE IF NOT EXISTS whole (one INTEGER PRIMARY KEY CHECK (one = 1), e REAL, d REAL)")
        mine = (self.budget.epsilon, self.budget.delta)
        connection.execute("INSERT OR IGNORE INTO whole VALUES (1, ?, ?)", mine)
        if (known := connection.execute("SELECT e, d FROM whole").fetchone()) != mine:
            connection.close()
            raise ConfigError(
                f"the privacy ledger {self.path} was begun with ε = {known[0]:g}, δ = {known[1]:g}, which hold for "
                "all: open it with these"
            )
        return connection

    def spend(self, budget: PrivacyBudget, what: str) -> None:
        """Enter a release; call it before the release is made, so that a crash costs budget and not privacy.

        Args:
            budget: of this release.
            what: the release, in words that say to others what it was.

        Raises:
            ConflictError: the ledger's budget does not suffice; nothing is entered.
        """
        with closing(self._opened()) as connection:
            connection.execute("BEGIN IMMEDIATE")  # two who spend at once: one after the other
            before = _total(connection)
            # Rounding must not refuse the last part of a budget that was divided.
            if before + budget.rho > self.budget.rho * (1.0 + 1e-9):
                connection.execute("ROLLBACK")
                left = max(0.0, self.budget.rho - before)
                raise ConflictError(
                    f"the privacy ledger {self.path} has ε = {epsilon_of(left, self.budget.delta):.3g} left of "
                    f"{self.budget.epsilon:.3g}, and {what!r} asks for {budget.epsilon:.3g}: ask for less, or publish "
                    "no more"
                )
            entry = (datetime.now(UTC).isoformat(timespec="seconds"), what, budget.rho, budget.epsilon, budget.delta)
            connection.execute("INSERT INTO spent VALUES (?, ?, ?, ?, ?)", entry)
            connection.execute("COMMIT")

    @property
    def spent(self) -> float:
        """The ε, at the δ of the ledger's budget, of all releases together; 0 before the first."""
        with closing(self._opened()) as connection:
            return epsilon_of(_total(connection), self.budget.delta)

    def entries(self) -> pd.DataFrame:
        """All releases in their order: at (UTC, text), what, rho, epsilon, delta."""
        import pandas as pd

        with closing(self._opened()) as connection:
            rows = connection.execute("SELECT at, what, rho, epsilon, delta FROM spent ORDER BY rowid").fetchall()
        return pd.DataFrame(rows, columns=["at", "what", "rho", "epsilon", "delta"])


def _total(connection: sqlite3.Connection) -> float:
    return math.fsum(rho for (rho,) in connection.execute("SELECT rho FROM spent"))


# --------------------------------------------------------------------------------------------------------------------
# Forests.


def private_forest(
    learner: CausalForest,
    public: Frame,
    frame: Frame,
    roles: Roles,
    budget: PrivacyBudget,
    outcome: tuple[float, float] = (0.0, 1.0),
    rows_per_person: int = 1,
    ledger: PrivacyLedger | None = None,
) -> UpliftModel:
    """Fit a causal forest whose file tells next to nothing about any one person of `frame`.

    Trees grow on the public rows alone; the private rows fill their leaves, with noise. Few, large leaves suffer least:
    noise on an effect is about 2 √(T/rho) over the units of each level in a leaf, over √T.

    Args:
        learner: how trees grow; its `min_leaf` and `n_trees` (60 will do) are worth a thought.
        public: rows with every column of the roles that are nobody's secret: units that agreed, an earlier campaign
            that is public, or `synthetic_units`.
        frame: the private rows, pandas or Spark; those of a Spark frame are brought into memory. With `roles.cluster`
            a cluster is a person.
        roles: columns; without weights, propensities, doses or further outcomes.
        budget: what may become known of a person, of this release.
        outcome: least and largest outcome that can be, stated without looking; others are cut off there.
        rows_per_person: rows of a person that count; further ones are left out.
        ledger: where the release is entered, or refused.

    Returns:
        A model like every other, whose `uplift_se` contain the noise. Two calls give two models.

    Raises:
        ConfigError: the roles or arguments allow no bound, or OpenDP is not installed.
        ConflictError: the ledger's budget does not suffice.
        DataError: rows are bad, or have a level that no public row has; or the noise is more than any leaf holds, which
            is seen when the budget is spent.

    References:
        Bun & Steinke (2016), concentrated differential privacy; Canonne, Kamath & Steinke (2020), discrete noise.
        Noisy leaves of trees that the data chose would still leak through the splits: Fletcher & Islam (2019).
    """
    ends = OutcomeEnds(*map(float, outcome))
    splits = learner.fit(public, roles)
    tables = (frame_rows(public).in_memory(roles.columns), frame_rows(frame).in_memory(roles.columns))
    if ledger is not None:
        ledger.spend(budget, f"forest of the effects on {roles.outcome}")
    spent = (budget.rho, budget.epsilon, budget.delta)
    return UpliftModel(private_table(tables, splits.forest, ends, spent, rows_per_person))


def synthetic_units(
    frame: pd.DataFrame,
    roles: Roles,
    levels: Sequence[str],
    values: Mapping[str, tuple[float, float] | Sequence[str]],
    budget: PrivacyBudget,
    outcome: tuple[float, float] = (0.0, 1.0),
    seed: int = 7,
    ledger: PrivacyLedger | None = None,
) -> pd.DataFrame:
    """Draw synthetic units, which are nobody, as public rows for `private_forest` where there are none.

    Noisy counts and sums of outcomes by each feature's bins and by level are all that they rest on. Features are drawn
    from these one by one, outcomes as what each feature adds, so trees grown on them find who gains more by single
    features, and not what only several features tell together.

    Args:
        frame: the private rows, one per person.
        roles: columns, as for `private_forest`.
        levels: treatment levels, the control among them, stated without looking.
        values: of each feature, its least and largest number, or its categories, stated without looking.
        budget: of this release; that of the forest comes on top.
        outcome: least and largest outcome that can be; others are cut off there.
        seed: of the draws, not of the noise.
        ledger: where the release is entered, or refused.

    Returns:
        About as many rows as the frame has, with the columns of the roles.

    Raises:
        ConfigError: values of a feature are missing, the control is no level, or OpenDP is not installed.
        ConflictError: the ledger's budget does not suffice.
        DataError: a person has several rows, or an outcome is missing.
    """

    if missing := [name for name in roles.features if name not in values]:
        raise ConfigError(f"values lack feature {missing[0]!r}: give its least and largest, or its categories")
    person = roles.unit if roles.cluster is None else roles.cluster
    names, arm, size, ends = _measured(frame, roles, person, levels, outcome)
    bins = {name: _bins_of(frame[name], values[name]) for name in roles.features}  # {name: (codes, bins, value_in)}
    sums = np.zeros((2, len(bins), _BINS, len(names)), np.int64)
    for place, (codes, _, _) in enumerate(bins.values()):
        known = (arm >= 0) & (codes >= 0)
        np.add.at(sums[0, place], (codes[known], arm[known]), 1)
        np.add.at(sums[1, place], (codes[known], arm[known]), size[known])
    if ledger is not None:
        ledger.spend(budget, f"synthetic units for {roles.outcome}")
    length = math.sqrt(len(bins))  # a person is in one bin of each feature
    sums[0] = with_integer_noise(sums[0], length, budget.rho / 2.0)
    sums[1] = with_integer_noise(sums[1], length * ends.most, budget.rho / 2.0)
    sds = tuple(noise_sd(length * one, budget.rho / 2.0) for one in (1, math.ldexp(ends.most, -ends.bits)))
    n, y = np.maximum(sums[0], 0).astype(np.float64), np.ldexp(sums[1].astype(np.float64), -ends.bits)
    return _sampled_from(roles, names, [one[1:] for one in bins.values()], (n, y), (sds[0], sds[1]), ends, seed)


_BINS = 32  # of a numeric feature, of the same width between its ends; and categories at most
ValueIn = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _sampled_from(
    roles: Roles,
    names: Sequence[str],
    values: Sequence[tuple[int, ValueIn]],
    sums: tuple[np.ndarray, np.ndarray],
    sds: tuple[float, float],
    ends: OutcomeEnds,
    seed: int,
) -> pd.DataFrame:
    """Units as noisy rows and outcomes by feature, bin and level [p, bins, K] have them."""
    import pandas as pd

    n, y = sums
    rows, rng = max(1000, int(n.sum(axis=(1, 2)).mean())), np.random.default_rng(seed)
    mean = y.sum(axis=(0, 1)) / np.maximum(n.sum(axis=(0, 1)), 1.0)
    level = rng.integers(0, len(names), rows)
    outcome_mean, columns = mean[level], {roles.unit: np.arange(rows)}
    for place, (name, (size, value_in)) in enumerate(zip(roles.features, values, strict=True)):
        shares = np.maximum(n[place, :size].sum(axis=1), 1e-9)
        code = rng.choice(size, rows, p=shares / shares.sum())
        columns[name] = value_in(code, rng)
        outcome_mean = outcome_mean + _added(n[place], y[place], mean, sds)[code, level]
    outcome_mean = np.clip(outcome_mean, -ends.half, ends.half)
    spread = np.sqrt((ends.half - outcome_mean) * (ends.half + outcome_mean))
    columns[roles.treatment] = np.array(names, object)[level]
    columns[roles.outcome] = ends.middle + outcome_mean + spread * rng.normal(size=rows)
    if roles.cluster is not None:
        columns[roles.cluster] = columns[roles.unit]
    return pd.DataFrame(columns)


def _bins_of(column: pd.Series, of: tuple[float, float] | Sequence[str]) -> tuple[np.ndarray, int, ValueIn]:
    """(bin of each row, -1 if it has none; number of bins; what draws a value of each of some bins)."""
    if len(of) == 2 and not any(isinstance(one, str) for one in of):
        low, high = map(float, of)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"values of feature {column.name!r} are {low} to {high}: give its least and its largest")
        width = (high - low) / _BINS
        places = np.floor((column.to_numpy(np.float64) - low) / width)
        codes = np.where(np.isfinite(places), np.clip(places, 0, _BINS - 1), -1).astype(np.int64)
        return codes, _BINS, lambda code, rng: low + width * (code + rng.random(len(code)))
    kept = [str(one) for one in of]
    if not 0 < len(kept) <= _BINS:
        raise ConfigError(
            f"values of feature {column.name!r} are {len(kept)} categories, of 1 to {_BINS}: name the most common ones"
        )
    return _codes(column, kept), len(kept), lambda code, rng: np.array(kept, object)[code]


def _added(n: np.ndarray, y: np.ndarray, mean: np.ndarray, sds: tuple[float, float]) -> np.ndarray:
    """What a feature's bins add to each level's mean outcome [bins, K], drawn to nothing as far as it is noise.

    Of the control by itself, of the treated levels in their effects (James & Stein 1961).
    """
    units = np.maximum(n, NOISE_MARGIN * sds[0])
    apart = np.where(n > NOISE_MARGIN * sds[0], y / units - mean, 0.0)
    noise = (0.25 + sds[1] ** 2 / units) / units
    effect, of_effect = apart - apart[:, :1], noise + noise[:, :1]
    effect[:, 0], of_effect[:, 0] = apart[:, 0], noise[:, 0]
    weight = n / np.maximum(n.sum(axis=0), 1.0)
    observed, by_noise = (weight * effect**2).sum(axis=0), (weight * of_effect).sum(axis=0)
    effect = effect * np.maximum(0.0, 1.0 - by_noise / np.maximum(observed, 1e-300))
    return np.hstack([effect[:, :1], effect[:, :1] + effect[:, 1:]])


# --------------------------------------------------------------------------------------------------------------------
# Lift tables.


def private_lift(
    frame: pd.DataFrame,
    roles: Roles,
    levels: Sequence[str],
    segments: Mapping[str, Sequence[str]],
    budget: PrivacyBudget,
    outcome: tuple[float, float] = (0.0, 1.0),
    ledger: PrivacyLedger | None = None,
) -> pd.DataFrame:
    """Publish the lift of every level, over all units and by segment, with noise on counts and sums.

    Args:
        frame: a row per unit, with the columns of treatment and outcome, and the segments.
        roles: of which unit, treatment, outcome and control count.
        levels: treatment levels, the control among them, stated without looking.
        segments: of each segment column the values that the table has rows of, stated without looking; units with
            other values count in the rows of all units alone.
        budget: of this table.
        outcome: least and largest outcome that can be; others are cut off there.
        ledger: where the table is entered, or refused.

    Returns:
        A row per segment and treated level: `segment`, `value` (text), `treatment`, `n_treated`, `n_control` (noisy,
        float64), `lift`, `lift_se`, `lift_lower`, `lift_upper` (float64, 95 %), null where the noise is more than a
        quarter of an arm's units (`low_sample`). Errors hold the noise and, of outcomes that are no conversions, a
        variance that is known with noise.

    Raises:
        ConfigError: the control is no level, a value is named twice, or OpenDP is not installed.
        ConflictError: the ledger's budget does not suffice.
        DataError: a unit has several rows, or an outcome is missing.
    """
    import pandas as pd

    names, arm, size, ends = _measured(frame, roles, roles.unit, levels, outcome)
    for name, of in segments.items():
        texts = [str(value) for value in of]
        if twice := [text for text in texts if texts.count(text) > 1]:
            raise ConfigError(f"segment {name!r} names the value {twice[0]!r} twice, so that a unit would count twice")
    cells = [("all", "all", np.zeros(len(frame), np.int64))]
    cells += [(name, str(value), _codes(frame[name], [value])) for name, of in segments.items() for value in of]
    sums, squares = np.zeros((len(cells), len(names), 2), np.int64), np.zeros(len(names), np.int64)
    np.add.at(squares, arm[arm >= 0], ends.squares(size[arm >= 0]))
    for row, (_, _, here) in enumerate(cells):
        chosen = (arm >= 0) & (here == 0)
        np.add.at(sums[row, :, 0], arm[chosen], 1)
        np.add.at(sums[row, :, 1], arm[chosen], size[chosen])
    if ledger is not None:
        ledger.spend(budget, f"lift of {roles.outcome} by {', '.join(segments) or 'nothing'}")
    # A unit is in one row of all units, and in one of each segment column.
    n, y_sums, shares, sds = _with_noise(sums, squares, ends, math.sqrt(1 + len(segments)), budget.rho)
    parts = [
        _lift_rows((segment, value), names, (n[row], y_sums[row]), (ends.half, shares), sds)
        for row, (segment, value, _) in enumerate(cells)
    ]
    return pd.DataFrame([one for part in parts for one in part])


def _with_noise(
    sums: np.ndarray, squares: np.ndarray, ends: OutcomeEnds, length: float, rho: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """(noisy units, noisy outcomes from the middle, [cells, K] each; each level's variance as a share of the largest,
    [K]; standard deviations of the noise on units and on outcomes) of exact ones, of which the first cell is all units.

    length: by how many cells a unit moves counts, in Euclidean length.
    """
    rhos, sensitivities = [rho * part for part in ends.parts], (length, length * ends.most, ends.most_square)
    noisy = [with_integer_noise(sums[..., part], sensitivities[part], rhos[part]) for part in (0, 1)]
    sds = (noise_sd(sensitivities[0], rhos[0]), math.ldexp(noise_sd(sensitivities[1], rhos[1]), -ends.bits))
    n, y = noisy[0].astype(np.float64), np.ldexp(noisy[1].astype(np.float64), -ends.bits)
    if not rhos[2] > 0:
        return n, y, np.ones(len(squares)), sds
    of_all = with_integer_noise(squares, sensitivities[2], rhos[2]).astype(np.float64)
    units = np.maximum(n[0], 1.0)
    mean = np.clip(y[0] / units, -ends.half, ends.half)
    of_mean = (np.hypot(sds[1], mean * sds[0]) / units, sds[0] / units, noise_sd(sensitivities[2], rhos[2]))
    return n, y, ends.variance_shares(units, mean, of_all, of_mean), sds


def _measured(
    frame: pd.DataFrame, roles: Roles, person: str, levels: Sequence[str], outcome: tuple[float, float]
) -> tuple[list[str], np.ndarray, np.ndarray, OutcomeEnds]:
    """(levels, control first; level's place of each row, -1 if it is none; outcomes from the middle of their ends in
    fixed point; these ends). Raises as `private_lift` says."""
    ends = OutcomeEnds(*map(float, outcome))
    if roles.control not in levels:
        raise ConfigError(f"levels lack the control {roles.control!r}: name it among them")
    y = frame[roles.outcome].to_numpy(np.float64)
    if unknown := int((~np.isfinite(y)).sum()):
        raise DataError(f"column {roles.outcome!r} is missing or infinite in {unknown} rows: leave these units out")
    if repeated := int(frame[person].duplicated().sum()):
        raise DataError(f"column {person!r} repeats a person in {repeated} rows: keep one row per person")
    size = np.clip(np.rint(np.ldexp(ends.from_middle(y), ends.bits)).astype(np.int64), -ends.most, ends.most)
    names = [roles.control, *(name for name in levels if name != roles.control)]
    return names, _codes(frame[roles.treatment], names), size, ends


def _codes(column: pd.Series, names: Sequence[str]) -> np.ndarray:
    """Place of each row's text in `names`, -1 where it is none of them: int64 [n]."""
    places = {str(name): place for place, name in enumerate(names)}
    return column.astype(str).map(places).fillna(-1).to_numpy(np.int64)


def _lift_rows(
    place: tuple[str, str],
    names: Sequence[str],
    sums: tuple[np.ndarray, np.ndarray],
    spread: tuple[float, np.ndarray],
    sds: tuple[float, float],
) -> list[dict[str, object]]:
    """Rows of one segment's treated levels from noisy units and outcomes from the middle, [K] each.

    spread: half of the outcome's range, and each level's `OutcomeEnds.variance_shares`.
    """
    (n, y), (half, shares) = sums, spread
    units = np.maximum(n, 1.0)
    mean = y / units
    variance = shares * np.maximum((half - mean) * (half + mean), 0.0) / units
    variance += (sds[1] ** 2 + mean**2 * sds[0] ** 2) / units**2
    rows = []
    for k in range(1, len(names)):
        low = bool(min(n[0], n[k]) <= NOISE_MARGIN * sds[0])
        lift, error = (np.nan, np.nan) if low else (mean[k] - mean[0], math.sqrt(variance[k] + variance[0]))
        rows.append(
            {
                **dict(zip(("segment", "value"), place, strict=True)),
                "treatment": names[k],
                "n_treated": float(n[k]),
                "n_control": float(n[0]),
                "lift": lift,
                "lift_se": error,
                "lift_lower": lift - _Z95 * error,
                "lift_upper": lift + _Z95 * error,
                "low_sample": low,
            }
        )
    return rows
