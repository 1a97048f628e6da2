"""Differential privacy: forests and lift tables from which nobody can be picked out, and a ledger of what was spent.

What is published about a campaign may tell that a person was in it, or what she bought: leaves with few rows, lift of
small segments. Here every published number that rests on the persons comes from integer sums with noise, so that it is
almost as likely with any one person as without her (`stats.noise.PrivacyBudget`). The price is wider intervals, which
know of the noise.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem
from uplift_spark.estimators import CausalForest, UpliftModel, frame_rows
from uplift_spark.forest.binning import NumberColumn, encode_features
from uplift_spark.forest.encode import check_parts, encode_numbers, encode_treatment
from uplift_spark.forest.private import exact_sums, private_table, unbounded_parts
from uplift_spark.roles import Roles, level_text
from uplift_spark.stats.moments import normal_quantile
from uplift_spark.stats.noise import (
    NOISE_MARGIN,
    OutcomeEnds,
    PrivacyBudget,
    epsilon_of,
    noise_sd,
    opendp_prelude,
    with_integer_noise,
)
from uplift_spark.stats.sampling import unit_hashes

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
        EnvironmentProblem: on use, the file cannot be read or written.

    Example:
        >>> ledger = PrivacyLedger(folder / "ledger.db", PrivacyBudget(2.0))
        >>> ledger.spend(PrivacyBudget(1.0), "forest of the spring campaign")
        >>> round(ledger.spent, 2)
        1.0
    """

    path: Path | str
    budget: PrivacyBudget

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        file = Path(self.path).absolute()  # so that no name means a database in memory, which forgets
        try:
            with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS spent (at TEXT NOT NULL, what TEXT NOT NULL, rho REAL NOT NULL, "
                    "epsilon REAL NOT NULL, delta REAL NOT NULL)"
                )
                whole = "whole (one INTEGER PRIMARY KEY CHECK (one = 1), e REAL, d REAL)"
                connection.execute(f"CREATE TABLE IF NOT EXISTS {whole}")
                self._check_whole(connection)
                yield connection
        except sqlite3.Error as error:
            raise EnvironmentProblem(
                f"the privacy ledger {file} cannot be read or written ({error}), so that nothing may be published: see "
                "to its folder and rights, or bring back its copy; a new one would not know what was spent"
            ) from error

    def _check_whole(self, connection: sqlite3.Connection) -> None:
        mine = (self.budget.epsilon, self.budget.delta)
        connection.execute("INSERT OR IGNORE INTO whole VALUES (1, ?, ?)", mine)
        if (known := connection.execute("SELECT e, d FROM whole").fetchone()) != mine:
            raise ConfigError(
                f"the privacy ledger {self.path} was begun with ε = {known[0]:g}, δ = {known[1]:g}, which hold for "
                "all: open it with these"
            )

    def spend(self, budget: PrivacyBudget, what: str) -> None:
        """Enter a release; call it before the release is made, so that a crash costs budget and not privacy.

        Args:
            budget: of this release.
            what: the release, in words that say to others what it was.

        Raises:
            ConfigError: the ledger was begun with another budget.
            ConflictError: the ledger's budget does not suffice; nothing is entered.
            EnvironmentProblem: the file cannot be read or written.
        """
        with self._opened() as connection:
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
        with self._opened() as connection:
            return epsilon_of(_total(connection), self.budget.delta)

    def entries(self) -> pd.DataFrame:
        """All releases in their order: at (UTC, text), what, rho, epsilon, delta."""
        import pandas as pd

        with self._opened() as connection:
            rows = connection.execute("SELECT at, what, rho, epsilon, delta FROM spent ORDER BY rowid").fetchall()
        return pd.DataFrame(rows, columns=["at", "what", "rho", "epsilon", "delta"])


def _enter(ledger: PrivacyLedger | None, budget: PrivacyBudget, what: str) -> None:
    """Enter a release, if there is a ledger: the last thing before its noise, when all else is known to be right."""
    if ledger is not None:
        ledger.spend(budget, what)


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
    outcome: tuple[float, float] | None = None,
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
        outcome: least and largest outcome that can be, stated without looking; others are cut off there. None: 0 and 1,
            and others are refused.
        rows_per_person: rows of a person that count; further ones are left out.
        ledger: where the release is entered, or refused.

    Returns:
        A model like every other, whose `uplift_se` contain the noise. Two calls give two models.

    Raises:
        ConfigError: the roles or arguments allow no bound, or OpenDP is not installed.
        ConflictError: the ledger's budget does not suffice.
        DataError: rows are bad, or have a level that no public row has; or the noise is more than any leaf holds, which
            is the one that is seen when the budget is spent.

    References:
        Bun & Steinke (2016), concentrated differential privacy; Canonne, Kamath & Steinke (2020), discrete noise.
        Noisy leaves of trees that the data chose would still leak through the splits: Fletcher & Islam (2019).
    """
    opendp_prelude()
    table, rows = (frame_rows(one).in_memory(roles.columns) for one in (frame, public))
    check_parts({field.name: field.type for field in table.schema}, roles)
    ends = _ends_for(encode_numbers(table, [roles.outcome])[roles.outcome], outcome, roles.outcome)
    splits = learner.fit(public, roles).forest
    exact = exact_sums(table, splits, ends, rows_per_person)
    _enter(ledger, budget, f"forest of the effects on {roles.outcome}")
    spent = (budget.rho, budget.epsilon, budget.delta)
    return UpliftModel(private_table(rows, splits, exact, ends, spent, rows_per_person))


def synthetic_units(
    frame: pd.DataFrame,
    roles: Roles,
    levels: Sequence[str],
    values: Mapping[str, tuple[float, float] | Sequence[str]],
    budget: PrivacyBudget,
    outcome: tuple[float, float] | None = None,
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
        levels: treatment levels, the control among them, stated without looking; units of others are left out.
        values: of each feature, its least and largest number, or its categories, stated without looking.
        budget: of this release; that of the forest comes on top.
        outcome: as for `private_forest`.
        seed: of the draws, not of the noise.
        ledger: where the release is entered, or refused.

    Returns:
        About as many rows as the frame has, at least 1,000 and at most a million, with the columns of the roles.

    Raises:
        ConfigError: values of a feature are missing, the control is no level, the roles have weights, propensities,
            doses or further outcomes, or OpenDP is not installed.
        ConflictError: the ledger's budget does not suffice.
        DataError: a person has several rows, a column is missing or of another kind, or an outcome is missing.
    """
    if missing := [name for name in roles.features if name not in values]:
        raise ConfigError(f"values lack feature {missing[0]!r}: give its least and largest, or its categories")
    table, names, arm, size, ends = _measured(frame, roles, roles.features, levels, outcome)
    bins = {name: _bins_of(table, name, values[name]) for name in roles.features}  # {name: (codes, bins, value_in)}
    sums = np.zeros((2, len(bins), _BINS, len(names)), np.int64)
    for place, (codes, _, _) in enumerate(bins.values()):
        known = (arm >= 0) & (codes >= 0)
        np.add.at(sums[0, place], (codes[known], arm[known]), 1)
        np.add.at(sums[1, place], (codes[known], arm[known]), size[known])
    _enter(ledger, budget, f"synthetic units for {roles.outcome}")
    length = math.sqrt(len(bins))  # a person is in one bin of each feature
    sums[0] = with_integer_noise(sums[0], length, budget.rho / 2.0)
    sums[1] = with_integer_noise(sums[1], length * ends.most, budget.rho / 2.0)
    sds = tuple(noise_sd(length * one, budget.rho / 2.0) for one in (1, math.ldexp(ends.most, -ends.bits)))
    # Before what is below 0 is cut off: noise on many empty bins would else make rows of its own.
    rows = int(np.clip(sums[0].sum(axis=(1, 2)).mean(), *_SYNTHETIC))
    n, y = np.maximum(sums[0], 0).astype(np.float64), np.ldexp(sums[1].astype(np.float64), -ends.bits)
    values_of = [one[1:] for one in bins.values()]
    return _sampled_from(roles, names, values_of, (n, y), (sds[0], sds[1]), ends, (rows, seed))


_BINS = 32  # of a numeric feature, of the same width between its ends; and categories at most
_SYNTHETIC = (1000, 1_000_000)  # units at least and at most: what trees grow on
ValueIn = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _sampled_from(
    roles: Roles,
    names: Sequence[str],
    values: Sequence[tuple[int, ValueIn]],
    sums: tuple[np.ndarray, np.ndarray],
    sds: tuple[float, float],
    ends: OutcomeEnds,
    of_draws: tuple[int, int],
) -> pd.DataFrame:
    """So many units, drawn by a seed, as noisy rows and outcomes by feature, bin and level [p, bins, K] have them."""
    import pandas as pd

    (n, y), (rows, seed) = sums, of_draws
    rng = np.random.default_rng(seed)
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


def _bins_of(table: pa.Table, name: str, of: tuple[float, float] | Sequence[object]) -> tuple[np.ndarray, int, ValueIn]:
    """(bin of each row, -1 if it has none; number of bins; what draws a value of each of some bins)."""
    if len(of) == 2 and not any(isinstance(one, str) for one in of):
        low, high = float(of[0]), float(of[1])  # type: ignore[arg-type]
        if not (math.isfinite(high - low) and low < high):
            raise ConfigError(f"values of feature {name!r} are {low} to {high}: give its least and its largest")
        column = encode_features(table, [name])[name]
        if not isinstance(column, NumberColumn):
            raise DataError(f"column {name!r} is no number, and its values are {low} to {high}: name its categories")
        width = (high - low) / _BINS
        places = np.floor((column.values - low) / width)
        codes = np.where(np.isfinite(places), np.clip(places, 0, _BINS - 1), -1).astype(np.int64)
        return codes, _BINS, lambda code, rng: low + width * (code + rng.random(len(code)))
    kept = _stated(of, f"values of feature {name!r} name")
    if not 0 < len(kept) <= _BINS:
        raise ConfigError(
            f"values of feature {name!r} are {len(kept)} categories, of 1 to {_BINS}: name the most common ones"
        )
    return _codes(table, name, kept), len(kept), lambda code, rng: np.array(kept, object)[code]


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
    outcome: tuple[float, float] | None = None,
    ledger: PrivacyLedger | None = None,
) -> pd.DataFrame:
    """Publish the lift of every level, over all units and by segment, with noise on counts and sums.

    Args:
        frame: a row per person, with the columns of treatment and outcome, and the segments. With `roles.cluster` a
            cluster is a person.
        roles: of which unit, cluster, treatment, outcome and control count.
        levels: treatment levels, the control among them, stated without looking; units of others are left out.
        segments: of each segment column the values that the table has rows of, stated without looking; units with
            other values count in the rows of all units alone.
        budget: of this table.
        outcome: as for `private_forest`.
        ledger: where the table is entered, or refused.

    Returns:
        A row per segment and treated level: `segment`, `value` (text), `treatment`, `n_treated`, `n_control` (noisy,
        float64), `lift`, `lift_se`, `lift_lower`, `lift_upper` (float64, 95 %), null where the noise is more than a
        quarter of an arm's units (`low_sample`). Errors hold the noise and, of outcomes that are no conversions, a
        variance that is known with noise.

    Raises:
        ConfigError: the control is no level, a level or value is named twice, the roles have weights, propensities,
            doses or further outcomes, or OpenDP is not installed.
        ConflictError: the ledger's budget does not suffice.
        DataError: a person has several rows, a column is missing or of another kind, or an outcome is missing.
    """
    import pandas as pd

    table, names, arm, size, ends = _measured(frame, roles, tuple(segments), levels, outcome)
    stated = {name: _stated(of, f"segment {name!r} names") for name, of in segments.items()}
    cells = [("all", "all", np.zeros(len(table), np.int64))]
    cells += [(name, value, _codes(table, name, [value])) for name, of in stated.items() for value in of]
    sums, squares = np.zeros((len(cells), len(names), 2), np.int64), np.zeros(len(names), np.int64)
    np.add.at(squares, arm[arm >= 0], ends.squares(size[arm >= 0]))
    for row, (_, _, here) in enumerate(cells):
        chosen = (arm >= 0) & (here == 0)
        np.add.at(sums[row, :, 0], arm[chosen], 1)
        np.add.at(sums[row, :, 1], arm[chosen], size[chosen])
    _enter(ledger, budget, f"lift of {roles.outcome} by {', '.join(segments) or 'nothing'}")
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
    frame: pd.DataFrame,
    roles: Roles,
    columns: Sequence[str],
    levels: Sequence[object],
    outcome: tuple[float, float] | None,
) -> tuple[pa.Table, list[str], np.ndarray, np.ndarray, OutcomeEnds]:
    """(rows with these columns and those of the roles; levels, control first; level's place of each row, -1 if it is
    none; outcomes from the middle of their ends in fixed point; these ends). Raises as `private_lift` says."""
    opendp_prelude()
    if parts := unbounded_parts(roles):
        raise ConfigError(f"the roles have {parts[0]}, which no sum with noise allows for: leave them out of the roles")
    stated = _stated(levels, "levels name")
    if roles.control not in stated or len(stated) < 2:
        lack = f"the control {roles.control!r}" if roles.control not in stated else "a treated level"
        raise ConfigError(f"levels lack {lack}: name it among them")
    person = roles.unit if roles.cluster is None else roles.cluster
    table = frame_rows(frame).in_memory(tuple(dict.fromkeys([*roles.columns[: -len(roles.features)], *columns])))
    check_parts({field.name: field.type for field in table.schema}, roles)
    y, ids = encode_numbers(table, [roles.outcome])[roles.outcome], unit_hashes(table.column(person), person)
    if unknown := int((~np.isfinite(y)).sum()):
        raise DataError(f"column {roles.outcome!r} is missing or infinite in {unknown} rows: leave these units out")
    ends = _ends_for(y, outcome, roles.outcome)
    if repeated := len(ids) - len(np.unique(ids)):
        raise DataError(f"column {person!r} repeats a person in {repeated} rows: keep one row per person")
    size = np.clip(np.rint(np.ldexp(ends.from_middle(y), ends.bits)).astype(np.int64), -ends.most, ends.most)
    names = [roles.control, *(name for name in stated if name != roles.control)]
    return table, names, _codes(table, roles.treatment, names), size, ends


def _ends_for(values: np.ndarray, outcome: tuple[float, float] | None, name: str) -> OutcomeEnds:
    """The ends that a caller states, or 0 and 1. Raises DataError where none are stated and values lie beyond these."""
    if outcome is not None:
        return OutcomeEnds(*map(float, outcome))
    if beyond := int(((values < 0) | (values > 1)).sum()):
        raise DataError(
            f"column {name!r} is below 0 or above 1 in {beyond} rows: state the least and the largest that can be as "
            "`outcome`, so that it is not taken for a conversion"
        )
    return OutcomeEnds(0.0, 1.0)


def _stated(values: Sequence[object], what: str) -> list[str]:
    """Levels or categories that a caller states, as texts; one may be given alone. Raises ConfigError for repeats."""
    texts = [level_text(value) for value in ((values,) if isinstance(values, str) else values)]
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise ConfigError(f"{what} the value {twice[0]!r} twice, so that a unit would count twice: name it once")
    return texts


def _codes(table: pa.Table, name: str, stated: Sequence[str]) -> np.ndarray:
    """Place of each row's value among the stated texts, -1 where it is none of them: int64 [n]."""
    return encode_treatment(table, name).coded_by(stated)


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
