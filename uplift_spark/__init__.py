"""Causal forests on Spark: who should be treated, at which level, and what it brings.

Estimators are `CausalForest`, `InstrumentalForest` and `MetaLearner`; they and `load_model` give an `UpliftModel`.
`Roles` says which column plays which part. `average_effects` needs no model, `library_metrics` reports a ranking as
other libraries do. `Campaign` reads what the jobs of a campaign have written. Names are found on first use, so that
`import uplift_spark` costs nothing and no module is loaded that a caller does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uplift_spark.campaign import Campaign
    from uplift_spark.estimators import (
        CausalForest,
        InstrumentalForest,
        MetaLearner,
        UpliftModel,
        average_effects,
        load_model,
    )
    from uplift_spark.roles import Roles
    from uplift_spark.stats.curves import library_metrics

__version__ = "0.1.0"
__all__ = [
    "Campaign",
    "CausalForest",
    "InstrumentalForest",
    "MetaLearner",
    "Roles",
    "UpliftModel",
    "__version__",
    "average_effects",
    "library_metrics",
    "load_model",
]

_HOME = {
    "Campaign": "uplift_spark.campaign",
    "CausalForest": "uplift_spark.estimators",
    "InstrumentalForest": "uplift_spark.estimators",
    "MetaLearner": "uplift_spark.estimators",
    "UpliftModel": "uplift_spark.estimators",
    "average_effects": "uplift_spark.estimators",
    "library_metrics": "uplift_spark.stats.curves",
    "load_model": "uplift_spark.estimators",
    "Roles": "uplift_spark.roles",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(_HOME[name])
    except ImportError as error:
        from uplift_spark.errors import NO_SPARK, SPARK_PACKAGES, EnvironmentProblem

        if (error.name or "").partition(".")[0] not in SPARK_PACKAGES:
            raise
        raise EnvironmentProblem(f"{name}: {NO_SPARK}") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
