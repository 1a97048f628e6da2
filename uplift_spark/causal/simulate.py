"""Campaigns of any size with known individual effects, made chunk by chunk. numpy and pyarrow only, no Spark.

A chunk's content depends on the simulator's fields and the chunk's index alone, so a unit's data do not depend on how
many chunks are made, in which order, or by whom. `BENCHMARKS` are the published generators (`causal.benchmarks`).
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.causal.benchmarks import BENCHMARKS, Benchmark
from uplift_spark.causal.customers import CATEGORIES, Columns, draw_customers, sigmoid
from uplift_spark.vocabulary import ConfigError, Levels

__all__ = ["ATTRIBUTES", "BENCHMARKS", "CHUNK", "OUTCOMES", "Benchmark", "CampaignSimulator", "effect_column"]

CHUNK = 20_000
OUTCOMES = ("conversion", "revenue")
MAX_DELAY_HOURS = 240.0
MAX_LIFT = 0.03
BASE_RATE = 0.05
FLOOR = 0.05

# log E[exp(score)], mean and standard deviation of `_score` over draw_customers, from 20 million customers.
_LOG_MEAN_EXP, _SCORE_MEAN, _SCORE_SD = 1.0126, 0.9169, 0.4316

_USUAL_BASKET = 45.0


def _draw_names() -> tuple[str, ...]:
    return tuple(draw_customers(np.random.default_rng(0), 1))


ATTRIBUTES = _draw_names()


def effect_column(outcome: str, level: str) -> str:
    """Name of the column of a chunk that holds the true effect of `level` on `outcome`."""
    return f"effect:{outcome}:{level}"


@dataclass(frozen=True)
class CampaignSimulator:
    """A campaign's data-generating process.

    design       'binary' (control and one discount), 'ordered' (discounts of 5, 10, ... percent, concave response) or
                 'unordered' (packages that different customers respond to)
    arms         number of levels with control, 2 for binary, 2 to 20 else
    confounding  in [0, 1]: 0 gives every level the same odds for everyone; towards 1 likely buyers get higher levels
    noise        multiplies what no attribute explains: spread of the buying rate between equal customers, and of money
    seed         same seed, same campaign
    prefix       unit ids are prefix and a ten-digit number

    Outcomes: `conversion` (0/1; base rate 5 % on average, lift 0 to 3 points) and `revenue` (money, 0 without
    conversion, lognormal tail; a discount also lowers it, so its effect can be negative). Both fall within ten days.
    Every confounder is among the attributes and never missing, so assignment is ignorable given them.
    """

    design: str = "ordered"
    arms: int = 3
    confounding: float = 0.0
    noise: float = 1.0
    seed: int = 7
    prefix: str = "u"

    def __post_init__(self) -> None:
        if self.design not in ("binary", "ordered", "unordered"):
            raise ConfigError(f"simulation design {self.design!r} is unknown: use binary, ordered or unordered")
        if not 2 <= self.arms <= 20 or (self.design == "binary" and self.arms != 2):
            allowed = "2" if self.design == "binary" else "2 to 20"
            raise ConfigError(f"a simulated {self.design} campaign has {allowed} arms, not {self.arms}")
        if not 0 <= self.confounding <= 1 or not self.noise >= 0:
            raise ConfigError("simulation confounding must be in [0, 1] and noise must be >= 0")

    @property
    def levels(self) -> Levels:
        """Level names, control 'none' first, and their doses in percent unless the arms have no order."""
        if self.design == "unordered":
            return Levels(("none", *(f"package_{c}" for c in string.ascii_lowercase[: self.arms - 1])))
        doses = tuple(5.0 * k for k in range(self.arms))
        return Levels(("none", *(f"{dose:.0f}%" for dose in doses[1:])), doses)

    def chunk(self, index: int, size: int = CHUNK) -> pa.RecordBatch:
        """The first `size` (<= CHUNK) units of chunk `index`.

        Columns: unit_id, treatment, propensity (of the level received), the attributes (float64 | string, null when
        missing), conversion, revenue, delay_hours (from assignment to outcome) and one `effect_column` per outcome and
        treated level: the expected effect given the attributes.
        """
        rng = np.random.default_rng([self.seed % 2**64, index])
        customers = draw_customers(rng, CHUNK)
        score = _score(customers)
        odds = self._odds(score)
        received = (np.cumsum(odds, axis=1)[:, :-1] < rng.random(CHUNK)[:, None]).sum(axis=1)
        columns = {
            "unit_id": _unit_ids(self.prefix, index * CHUNK),
            "treatment": _text(received, self.levels.names),
            "propensity": pa.array(odds[np.arange(CHUNK), received]),
            **_attribute_arrays(customers),
            **self._outcomes(rng, customers, score, received),
        }
        return pa.RecordBatch.from_pydict(columns).slice(0, size)

    def units(self, n: int) -> pa.Table:
        """The first n units in memory, columns as in `chunk`."""
        return pa.Table.from_batches([self.chunk(i, size) for i, size in chunk_sizes(n)])

    def _odds(self, score: np.ndarray) -> np.ndarray:
        """Probability of each level, [n, arms]; each at least FLOOR / arms."""
        pull = np.clip((score - _SCORE_MEAN) / _SCORE_SD, -2.5, 2.5)
        weights = np.exp(self.confounding * np.outer(pull, np.linspace(0.0, 1.0, self.arms)))
        return (1.0 - FLOOR) * weights / weights.sum(axis=1, keepdims=True) + FLOOR / self.arms

    def _lift(self, customers: Columns) -> np.ndarray:
        """True effect of every level on the conversion rate, [n, arms], control's 0."""
        if self.design == "unordered":
            treated = [_RESPONSES[k % len(_RESPONSES)](customers) for k in range(self.arms - 1)]
            fade = [1.0 / (1.0 + 0.5 * (k // len(_RESPONSES))) for k in range(self.arms - 1)]
            return MAX_LIFT * np.column_stack([np.zeros(CHUNK), *(f * r for f, r in zip(fade, treated, strict=True))])
        doses = np.array(self.levels.doses)
        strength = (1.0 - np.exp(-doses / 10.0)) / (1.0 - np.exp(-doses[-1] / 10.0))
        return MAX_LIFT * np.outer(_bargain(customers), strength)

    def _outcomes(
        self, rng: np.random.Generator, customers: Columns, score: np.ndarray, received: np.ndarray
    ) -> Columns:
        names, doses = self.levels.names, self.levels.doses or (0.0,) * self.arms
        rows = np.arange(CHUNK)
        lift, base = self._lift(customers), BASE_RATE * np.exp(score - _LOG_MEAN_EXP)
        basket = customers["avg_basket"]
        amount = np.outer(np.where(np.isnan(basket), _USUAL_BASKET, basket), 1.0 - np.array(doses) / 100.0)
        rate = np.minimum(base * _mean_one(rng, 0.3 * self.noise), 0.9) + lift[rows, received]
        conversion = (rng.random(CHUNK) < rate).astype(np.float64)
        spent = amount[rows, received] * _mean_one(rng, 0.8 * self.noise)
        value = (base[:, None] + lift) * amount
        effects = {"conversion": lift, "revenue": value - value[:, :1]}
        return {
            "conversion": conversion,
            "revenue": np.where(conversion > 0, np.maximum(np.round(spent, 2), 0.01), 0.0),
            "delay_hours": np.round(MAX_DELAY_HOURS * rng.random(CHUNK), 3),
            **{effect_column(o, names[k]): effects[o][:, k] for o in OUTCOMES for k in range(1, self.arms)},
        }


def chunk_sizes(n: int) -> list[tuple[int, int]]:
    """(index, size) of the chunks that hold the first n units; all but the last are full."""
    return [(index, min(CHUNK, n - index * CHUNK)) for index in range(-(-n // CHUNK))]


def _mean_one(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """CHUNK lognormal factors with mean 1."""
    return np.exp(sigma * rng.standard_normal(CHUNK) - sigma**2 / 2.0)


def _score(c: Columns) -> np.ndarray:
    """Log buying rate of a customer left alone, up to a constant; uses attributes that are never missing."""
    habits = 0.5 * np.exp(-c["recency_days"] / 60.0) + 0.3 * np.log1p(c["orders_12m"])
    interest = 0.2 * np.log1p(c["cart_adds_30d"]) + 0.1 * np.log1p(c["web_visits_30d"])
    place = 0.2 * (c["region"] == 0) - 0.2 * (c["region"] == 3) + 0.25 * (c["device"] == 1)
    return habits + interest + place


def _opens(c: Columns) -> np.ndarray:
    """Open rate; who gave no consent opens nothing."""
    return np.nan_to_num(c["email_open_rate"], nan=0.0)


def _bargain(c: Columns) -> np.ndarray:
    """Share in (0, 1) of the largest lift: bargain hunters who read their mail."""
    return sigmoid(9.0 * (c["discount_share"] - 0.45)) * (0.3 + 0.7 * sigmoid(12.0 * (_opens(c) - 0.3)))


def _win_back(c: Columns) -> np.ndarray:
    """Long-standing customers who have stayed away."""
    return sigmoid((c["recency_days"] - 45.0) / 12.0) * (0.3 + 0.7 * sigmoid((c["tenure_months"] - 24.0) / 8.0))


def _reminder(c: Columns) -> np.ndarray:
    """People with a full cart, most of all on the phone."""
    return sigmoid(1.5 * (c["cart_adds_30d"] - 1.5)) * (0.3 + 0.7 * (c["device"] == 0))


def _treat(c: Columns) -> np.ndarray:
    """Large baskets in the north and the east."""
    basket = np.nan_to_num(c["avg_basket"], nan=_USUAL_BASKET)
    return sigmoid((basket - 50.0) / 12.0) * (0.3 + 0.7 * np.isin(c["region"], (0, 2)))


_RESPONSES = (_bargain, _win_back, _reminder, _treat)


def _unit_ids(prefix: str, first: int) -> pa.Array:
    numbers = pc.utf8_lpad(pa.array(np.arange(first + 1, first + CHUNK + 1)).cast(pa.string()), 10, "0")
    return pc.binary_join_element_wise(pa.scalar(prefix), numbers, pa.scalar(""))


def _text(codes: np.ndarray, names: tuple[str, ...]) -> pa.Array:
    """Strings of codes into names; a negative code is null."""
    indices = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names)).cast(pa.string())


def _attribute_arrays(customers: Columns) -> dict[str, pa.Array]:
    return {
        name: _text(values, CATEGORIES[name]) if name in CATEGORIES else pa.array(values, from_pandas=True)
        for name, values in customers.items()
    }
