"""Causal forests on Spark: who should be treated, at which level, and what it brings.

The public names are `Campaign`, `CausalForest`, `InstrumentalForest`, `MetaLearner`, `Roles` and `load_model`. They are
found on first use, so that `import uplift_spark` costs nothing and no module is loaded that a caller does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uplift_spark.campaign import Campaign
    from uplift_spark.estimators import CausalForest, InstrumentalForest, MetaLearner, load_model
    from uplift_spark.roles import Roles

__version__ = "0.1.0"
__all__ = ["Campaign", "CausalForest", "InstrumentalForest", "MetaLearner", "Roles", "__version__", "load_model"]

_HOME = {
    "Campaign": "uplift_spark.campaign",
    "CausalForest": "uplift_spark.estimators",
    "InstrumentalForest": "uplift_spark.estimators",
    "MetaLearner": "uplift_spark.estimators",
    "load_model": "uplift_spark.estimators",
    "Roles": "uplift_spark.roles",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
