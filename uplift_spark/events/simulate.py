"""Simulated campaigns and trials with known individual effects. numpy and pyarrow only, no Spark.

`BENCHMARKS` are generated trials of the literature, `draw_customers` draws the attributes of a shop's customers,
`CampaignSimulator` makes campaigns of any size.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.errors import ConfigError
from uplift_spark.roles import Levels

# --------------------------------------------------------------------------------------------------------------------
# Generated trials of the literature, on which forests are measured.


@dataclass(frozen=True)
class Benchmark:
    """A generated trial of n units, p features and K levels (control first).

    X    float64 [n, p]      features
    w    int64 [n]           level received, 0 = control
    y    float64 [n]         outcome
    tau  float64 [n, K - 1]  true effect of each treated level against control
    e    float64 [n, K]      true probability of each level
    """

    X: np.ndarray
    w: np.ndarray
    y: np.ndarray
    tau: np.ndarray
    e: np.ndarray

    @property
    def propensity(self) -> np.ndarray:
        """Probability of the level each unit received, [n]: what a trial logs."""
        return self.e[np.arange(len(self.w)), self.w]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _varsigma(x: np.ndarray) -> np.ndarray:
    """Wager and Athey (2018), equation 28: a step from 1 to 2 at one third."""
    return 1.0 + _sigmoid(20.0 * (x - 1.0 / 3.0))


def _step_effect(x: np.ndarray) -> np.ndarray:
    return _varsigma(x[:, 0]) * _varsigma(x[:, 1])


def _responders(x: np.ndarray) -> np.ndarray:
    """Share of the largest lift a unit shows, in (0, 1): two smooth steps that multiply."""
    return _sigmoid(12.0 * (x[:, 0] - 0.5)) * (0.3 + 0.7 * _sigmoid(12.0 * (x[:, 1] - 0.4)))


def _concave(levels: int) -> np.ndarray:
    """Dose response k - .08 k² of levels 1 .. K-1."""
    k = np.arange(1, levels)
    return k - 0.08 * k**2


def _draw_binary(rng: np.random.Generator, p_treated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w = (rng.random(len(p_treated)) < p_treated).astype(np.int64)
    return w, np.column_stack([1.0 - p_treated, p_treated])


def _with_control(tau: np.ndarray) -> np.ndarray:
    return np.column_stack([np.zeros(len(tau)), tau])


def _effect_at_level(tau: np.ndarray, w: np.ndarray) -> np.ndarray:
    return _with_control(tau)[np.arange(len(w)), w]


def rct(n: int, seed: int, p: int = 20) -> Benchmark:
    """Wager and Athey (2018), design 2: τ=ς(x₀)ς(x₁), Y=(W-½)τ+N(0,1), e=½, X uniform."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = _step_effect(x)
    w, e = _draw_binary(rng, np.full(n, 0.5))
    return Benchmark(x, w, (w - 0.5) * tau + rng.standard_normal(n), tau[:, None], e)


def no_effect(n: int, seed: int, p: int = 20) -> Benchmark:
    """Wager and Athey (2018), design 1: no effect, confounded: τ=0, Y=2x₀-1+N(0,1), e=¼(1+β₂,₄(x₀)), X uniform."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    w, e = _draw_binary(rng, 0.25 * (1.0 + 20.0 * x[:, 0] * (1.0 - x[:, 0]) ** 3))
    return Benchmark(x, w, 2.0 * x[:, 0] - 1.0 + rng.standard_normal(n), np.zeros((n, 1)), e)


def peak(n: int, seed: int, p: int = 20) -> Benchmark:
    """Wager and Athey (2018), their second table: `rct` with a peak, τ=4/[(1+exp(-12(x₀-½)))(1+exp(-12(x₁-½)))]."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = 4.0 * _sigmoid(12.0 * (x[:, 0] - 0.5)) * _sigmoid(12.0 * (x[:, 1] - 0.5))
    w, e = _draw_binary(rng, np.full(n, 0.5))
    return Benchmark(x, w, (w - 0.5) * tau + rng.standard_normal(n), tau[:, None], e)


def conf(n: int, seed: int, p: int = 20) -> Benchmark:
    """`rct` with a main effect 2x₀-1 and confounded treatment, e=¼(1+β₂,₄(x₀)), as in their design 3."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = _step_effect(x)
    w, e = _draw_binary(rng, 0.25 * (1.0 + 20.0 * x[:, 0] * (1.0 - x[:, 0]) ** 3))
    y = 2.0 * x[:, 0] - 1.0 + (w - 0.5) * tau + rng.standard_normal(n)
    return Benchmark(x, w, y, tau[:, None], e)


def conv(n: int, seed: int, p: int = 20) -> Benchmark:
    """Rare conversions: base .05·exp(1.2(x₂-½)+.8(x₃-½)), lift up to 3 points, e=½."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    base = 0.05 * np.exp(1.2 * (x[:, 2] - 0.5) + 0.8 * (x[:, 3] - 0.5))
    tau = 0.03 * _responders(x)
    w, e = _draw_binary(rng, np.full(n, 0.5))
    y = (rng.random(n) < base + w * tau).astype(np.float64)
    return Benchmark(x, w, y, tau[:, None], e)


def multi(n: int, seed: int, p: int = 20, levels: int = 5) -> Benchmark:
    """Ordered levels with a concave response: Y=2x₂-1+.4·ς(x₀)ς(x₁)·(k-.08k²)+N(0,1), equal propensities."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = 0.4 * _step_effect(x)[:, None] * _concave(levels)
    w = rng.integers(0, levels, n)
    y = 2.0 * x[:, 2] - 1.0 + _effect_at_level(tau, w) + rng.standard_normal(n)
    return Benchmark(x, w, y, tau, np.full((n, levels), 1.0 / levels))


def mconv(n: int, seed: int, p: int = 20, levels: int = 5) -> Benchmark:
    """`conv` with ordered levels: lift .015·responders·(k-.08k²), base .05·exp(1.2(x₂-½)), equal propensities."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    base = 0.05 * np.exp(1.2 * (x[:, 2] - 0.5))
    tau = 0.015 * _responders(x)[:, None] * _concave(levels)
    w = rng.integers(0, levels, n)
    y = (rng.random(n) < base + _effect_at_level(tau, w)).astype(np.float64)
    return Benchmark(x, w, y, tau, np.full((n, levels), 1.0 / levels))


def _plus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def _setup_a(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wave = np.sin(np.pi * x[:, 0] * x[:, 1])
    base = wave + 2.0 * (x[:, 2] - 0.5) ** 2 + x[:, 3] + 0.5 * x[:, 4]
    return base, np.clip(wave, 0.1, 0.9), (x[:, 0] + x[:, 1]) / 2.0


def _setup_b(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = np.maximum(_plus(x[:, 0] + x[:, 1]), x[:, 2]) + _plus(x[:, 3] + x[:, 4])
    return base, np.full(len(x), 0.5), x[:, 0] + np.log1p(np.exp(x[:, 1]))


def _setup_c(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = 2.0 * np.log1p(np.exp(x[:, 0] + x[:, 1] + x[:, 2]))
    return base, _sigmoid(-(x[:, 1] + x[:, 2])), np.ones(len(x))


def _setup_d(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second = _plus(x[:, 0] + x[:, 1] + x[:, 2]), _plus(x[:, 3] + x[:, 4])
    return (first + second) / 2.0, 1.0 / (1.0 + np.exp(-x[:, 0]) + np.exp(-x[:, 1])), first - second


_SETUPS = {"a": _setup_a, "b": _setup_b, "c": _setup_c, "d": _setup_d}


def nie_wager(n: int, seed: int, p: int = 6, *, setup: str = "a", sigma: float = 1.0) -> Benchmark:
    """Nie and Wager (2021), section 4, set-ups A to D: Y=b(X)+(W-½)τ(X)+sigma·N(0,1).

    X is uniform in set-up A and standard normal in the others; p is at least 5.
    """
    rng = np.random.default_rng(seed)
    x = rng.random((n, p)) if setup == "a" else rng.standard_normal((n, p))
    base, propensity, tau = _SETUPS[setup](x)
    w, e = _draw_binary(rng, propensity)
    return Benchmark(x, w, base + (w - 0.5) * tau + sigma * rng.standard_normal(n), tau[:, None], e)


BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "rct": rct,
    "no_effect": no_effect,
    "peak": peak,
    "conf": conf,
    "conv": conv,
    "multi": multi,
    "mconv": mconv,
    **{f"nie_wager_{setup}": partial(nie_wager, setup=setup) for setup in _SETUPS},
}


# --------------------------------------------------------------------------------------------------------------------
# Customers of a simulated shop: twenty correlated, skewed, partly missing attributes.
# Attributes come from three hidden traits (activity, price sensitivity, wealth). Values are missing for reasons that
# a shop knows: without an order there is no average basket, without consent there is no open rate.

REGIONS = ("north", "south", "east", "west", "islands")
DEVICES = ("mobile", "desktop", "tablet")
CHANNELS = ("web", "store", "app")
CATEGORIES = {"region": REGIONS, "device": DEVICES, "channel": CHANNELS}

Columns = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + np.exp(-x))


def draw_customers(rng: np.random.Generator, n: int) -> Columns:
    """Attributes of n customers: 17 float64 columns (NaN = missing) and 3 int8 code columns (-1 = missing).

    The codes of `region`, `device` and `channel` index `CATEGORIES`.
    """
    activity, thrift, wealth = rng.standard_normal((3, n))
    columns = _purchases(rng, activity, thrift, wealth)
    columns |= _engagement(rng, activity)
    columns |= _person(rng, n)
    return columns | _categories(rng, activity)


def _purchases(rng: np.random.Generator, activity: np.ndarray, thrift: np.ndarray, wealth: np.ndarray) -> Columns:
    n = len(activity)
    orders = rng.poisson(2.0 * np.exp(0.8 * activity - 0.32)).astype(np.float64)
    bought = orders > 0
    basket = np.round(np.exp(3.8 + 0.5 * wealth), 2)
    return {
        "recency_days": np.floor(np.minimum(45.0 * np.exp(-0.7 * activity) * rng.standard_exponential(n), 720.0)),
        "orders_12m": orders,
        "avg_basket": np.where(bought, basket, np.nan),
        "items_per_order": np.where(bought, np.round(1.0 + rng.gamma(1.5, 1.2, n), 1), np.nan),
        "discount_share": np.round(sigmoid(-0.4 + 1.1 * thrift + 0.5 * rng.standard_normal(n)), 3),
        "returns_rate": np.where(bought, np.round(rng.beta(1.2, 10.0, n), 3), np.nan),
    }


def _engagement(rng: np.random.Generator, activity: np.ndarray) -> Columns:
    n = len(activity)
    opens = np.round(sigmoid(-0.9 + 0.8 * activity + 0.9 * rng.standard_normal(n)), 3)
    app_user = rng.random(n) < sigmoid(-0.5 + 0.5 * activity)
    return {
        "email_open_rate": np.where(rng.random(n) < 0.12, np.nan, opens),
        "days_since_email": np.floor(np.minimum(1.0 + 12.0 * rng.standard_exponential(n), 180.0)),
        "app_sessions_30d": app_user * rng.poisson(rng.gamma(1.2, 5.0, n)).astype(np.float64),
        "web_visits_30d": rng.poisson(3.0 * np.exp(0.5 * activity) * rng.standard_exponential(n)).astype(np.float64),
        "cart_adds_30d": rng.poisson(1.5 * np.exp(0.6 * activity - 0.18)).astype(np.float64),
        "wishlist_items": rng.poisson(rng.gamma(0.5, 5.0, n)).astype(np.float64),
        "support_contacts_12m": rng.poisson(0.3, n).astype(np.float64),
    }


def _person(rng: np.random.Generator, n: int) -> Columns:
    tenure = np.floor(np.minimum(rng.gamma(1.5, 20.0, n), 240.0))
    age = np.floor(np.clip(rng.normal(44.0, 15.0, n), 18.0, 95.0))
    household = 1.0 + np.minimum(rng.poisson(1.3, n), 7)
    return {
        "tenure_months": tenure,
        "loyalty_points": np.floor(tenure * rng.lognormal(2.0, 1.0, n)),
        "age": np.where(rng.random(n) < 0.08, np.nan, age),
        "household_size": np.where(rng.random(n) < 0.15, np.nan, household),
    }


def _categories(rng: np.random.Generator, activity: np.ndarray) -> Columns:
    n = len(activity)
    region = np.searchsorted(np.cumsum([0.34, 0.26, 0.2, 0.16]), rng.random(n))
    device = np.searchsorted(np.cumsum([0.58, 0.32]), rng.random(n))
    channel = np.where(rng.random(n) < sigmoid(0.4 * activity - 0.6), 2, rng.random(n) < 0.35)
    known = rng.random(n) >= 0.03
    return {
        "region": region.astype(np.int8),
        "device": device.astype(np.int8),
        "channel": np.where(known, channel, -1).astype(np.int8),
    }


# --------------------------------------------------------------------------------------------------------------------
# Campaigns of any size, made chunk by chunk.
# A chunk's content depends on the simulator's fields and the chunk's index alone. So a unit's data do not depend on how
# many chunks are made, in which order, or by which worker.

CHUNK = 20_000
OUTCOMES = ("conversion", "revenue")
MAX_DELAY_HOURS = 240.0
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


ArmsOf = Callable[[tuple[str, ...], list[str]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class CampaignSimulator:
    """A campaign's data-generating process.

    design       'binary' (control and one discount), 'ordered' (discounts of 5, 10, ... percent, concave response) or
                 'unordered' (packages that different customers respond to)
    arms         number of levels with control, 2 for binary, 2 to 20 else
    confounding  in [0, 1]: 0 gives all units the same propensities; towards 1 likely buyers get higher levels
    noise        multiplies what no attribute explains: spread of the buying rate between equal customers, and of money
    seed         same seed, same campaign
    prefix       unit ids are prefix and a ten-digit number
    max_lift     the largest effect on the buying rate, at most 0.1: with it the largest rate, 0.9, is 1
    arms_of      of a designed trial: from level names and unit ids to level codes (-1 takes no part) and propensities
    days         on which units come, each on a random one
    wave         another number: the same customers come again, and days and outcomes are left to chance anew

    Outcomes: `conversion` (0/1; base rate 5 % on average, lift 0 to `max_lift`) and `revenue` (money, 0 without
    conversion, lognormal tail; a discount also lowers it, so its effect can be negative). Both fall within ten days.
    Every confounder is among the attributes and never missing, so assignment is ignorable given them.
    """

    design: str = "ordered"
    arms: int = 3
    confounding: float = 0.0
    noise: float = 1.0
    seed: int = 7
    prefix: str = "u"
    max_lift: float = 0.03
    arms_of: ArmsOf | None = None
    days: int = 1
    wave: int = 0

    def __post_init__(self) -> None:
        if self.design not in ("binary", "ordered", "unordered"):
            raise ConfigError(f"simulation design {self.design!r} is unknown: use binary, ordered or unordered")
        if not 2 <= self.arms <= 20 or (self.design == "binary" and self.arms != 2):
            allowed = "2" if self.design == "binary" else "2 to 20"
            raise ConfigError(f"a simulated {self.design} campaign has {allowed} arms, not {self.arms}")
        if not 0 <= self.confounding <= 1 or not self.noise >= 0:
            raise ConfigError("simulation confounding must be in [0, 1] and noise must be >= 0")
        if not 0 <= self.max_lift <= 0.1:
            raise ConfigError(f"simulation max_lift must be in [0, 0.1], not {self.max_lift}")

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
        treated level: the expected effect given the attributes; where units come on several days, the day (from 0). The
        treatment of a unit that takes no part in a designed trial is null.
        """
        rng = np.random.default_rng([self.seed % 2**64, index])
        customers = draw_customers(rng, CHUNK)
        score = _score(customers)
        if self.wave:
            rng = np.random.default_rng([self.seed % 2**64, index, self.wave])
        propensity = self._propensity(score)
        level_code = (np.cumsum(propensity, axis=1)[:, :-1] < rng.random(CHUNK)[:, None]).sum(axis=1)
        logged, ids = propensity[np.arange(CHUNK), level_code], _unit_ids(self.prefix, index * CHUNK)
        if self.arms_of is not None:
            level_code, logged = self.arms_of(self.levels.names, ids.to_pylist())
        columns = {
            "unit_id": ids,
            "treatment": _text(level_code, self.levels.names),
            "propensity": pa.array(logged, from_pandas=True),
            **_attribute_arrays(customers),
            **self._outcomes(rng, customers, score, np.maximum(level_code, 0)),
        }
        if self.days > 1:
            columns["day"] = rng.integers(0, self.days, CHUNK).astype(np.float64)
        return pa.RecordBatch.from_pydict(columns).slice(0, size)

    def units(self, n: int) -> pa.Table:
        """The first n units in memory, columns as in `chunk`."""
        return pa.Table.from_batches([self.chunk(i, size) for i, size in chunk_sizes(n)])

    def _propensity(self, score: np.ndarray) -> np.ndarray:
        """Probability of each level, [n, arms]; each at least FLOOR / arms."""
        standard_score = np.clip((score - _SCORE_MEAN) / _SCORE_SD, -2.5, 2.5)
        weights = np.exp(self.confounding * np.outer(standard_score, np.linspace(0.0, 1.0, self.arms)))
        return (1.0 - FLOOR) * weights / weights.sum(axis=1, keepdims=True) + FLOOR / self.arms

    def _lift(self, customers: Columns) -> np.ndarray:
        """True effect of every level on the conversion rate, [n, arms], control's 0."""
        if self.design == "unordered":
            treated = [_RESPONSES[k % len(_RESPONSES)](customers) for k in range(self.arms - 1)]
            fade = [1.0 / (1.0 + 0.5 * (k // len(_RESPONSES))) for k in range(self.arms - 1)]
            shares = (f * r for f, r in zip(fade, treated, strict=True))
            return self.max_lift * np.column_stack([np.zeros(CHUNK), *shares])
        doses = np.array(self.levels.doses)
        strength = (1.0 - np.exp(-doses / 10.0)) / (1.0 - np.exp(-doses[-1] / 10.0))
        return self.max_lift * np.outer(_bargain(customers), strength)

    def _outcomes(
        self, rng: np.random.Generator, customers: Columns, score: np.ndarray, level_code: np.ndarray
    ) -> Columns:
        names, doses = self.levels.names, self.levels.doses or (0.0,) * self.arms
        rows = np.arange(CHUNK)
        lift, base = self._lift(customers), BASE_RATE * np.exp(score - _LOG_MEAN_EXP)
        basket = customers["avg_basket"]
        amount = np.outer(np.where(np.isnan(basket), _USUAL_BASKET, basket), 1.0 - np.array(doses) / 100.0)
        rate = np.minimum(base * _mean_one(rng, 0.3 * self.noise), 0.9) + lift[rows, level_code]
        conversion = (rng.random(CHUNK) < rate).astype(np.float64)
        spent = amount[rows, level_code] * _mean_one(rng, 0.8 * self.noise)
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
    location = 0.2 * (c["region"] == 0) - 0.2 * (c["region"] == 3) + 0.25 * (c["device"] == 1)
    return habits + interest + location


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
