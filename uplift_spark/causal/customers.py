"""Customers of a simulated shop: twenty correlated, skewed, partly missing attributes. numpy only.

Attributes come from three hidden traits (activity, price sensitivity, wealth). What is missing is missing for a reason
a shop knows: no order yet means no average basket, no consent means no open rate.
"""

from __future__ import annotations

import numpy as np

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
