"""What the engine is compared with: ourselves and every peer behind one small face, from arrays to effects.

A peer keeps its own defaults but for trees, threads and seed. Those that know two arms only get one model per treated
level against the control. A peer that cannot do a trial raises Unsupported; one that is not installed is left out.
"""

from __future__ import annotations

import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark.events.simulate import Benchmark
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.roles import Roles
from uplift_spark.stats.moments import normal_quantile

Z95 = normal_quantile(0.95)
Effects = tuple[np.ndarray, np.ndarray | None]  # effect [n, K-1], its standard error or None


class Unsupported(Exception):
    """The peer has no model for this trial."""


@dataclass(frozen=True)
class Options:
    """What every peer is told: number of trees, threads and seed."""

    trees: int = 200
    threads: int = 2
    seed: int = 7


class Peer(Protocol):
    """A model under comparison. `clock` holds the figures a peer takes itself: fit_s, predict_s, peak."""

    clock: dict[str, float]

    def fit(self, trial: Benchmark) -> None: ...

    def predict(self, x: np.ndarray) -> Effects: ...

    def size(self) -> int: ...


def columns_of(x: np.ndarray) -> dict[str, np.ndarray]:
    """Feature name to its column."""
    return {f"x{j}": column for j, column in enumerate(x.T)}


def table_of(x: np.ndarray) -> pa.Table:
    """Rows [n, p] as an Arrow table of a unit id and the features x0, x1, ..."""
    return pa.table({"unit": np.arange(len(x)), **columns_of(x)})


def forest_of(trial: Benchmark, params: Params) -> Forest:
    """Our forest of a generated trial; levels beyond two are ordered."""
    rows = table_of(trial.X).append_column("w", pa.array(trial.w)).append_column("y", pa.array(trial.y))
    levels = trial.tau.shape[1] + 1
    dose = {str(k): float(k) for k in range(levels)} if levels > 2 else None
    return fit_table(rows, Roles("unit", "w", "y", tuple(columns_of(trial.X)), "0", dose), params)


@dataclass
class Ours:
    """`fit_table` and `Forest.effect_arrays`."""

    options: Options
    clock: dict[str, float] = field(default_factory=dict)

    def fit(self, trial: Benchmark) -> None:
        """From arrays to forest; the Arrow table is made here."""
        self.forest = forest_of(trial, Params(n_trees=self.options.trees, seed=self.options.seed))

    def predict(self, x: np.ndarray) -> Effects:
        """Effects and standard errors of raw rows."""
        effect, se, _ = self.forest.effect_arrays(table_of(x), threads=self.options.threads)
        return effect, se

    def size(self) -> int:
        """Bytes of the model file."""
        return len(self.forest.to_bytes())


@dataclass
class LightGBM:
    """T-learner: one booster per level, as many rounds as others have trees."""

    options: Options
    clock: dict[str, float] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)

    def fit(self, trial: Benchmark) -> None:
        """One model of the outcome per level."""
        from lightgbm import LGBMRegressor

        chosen = {"n_estimators": self.options.trees, "n_jobs": self.options.threads, "verbose": -1, **self.tuned}
        levels = range(trial.tau.shape[1] + 1)
        self.models = [
            LGBMRegressor(random_state=self.options.seed, **chosen).fit(trial.X[trial.w == k], trial.y[trial.w == k])
            for k in levels
        ]

    def predict(self, x: np.ndarray) -> Effects:
        """Differences of the predicted outcomes."""
        control, *treated = (model.predict(x) for model in self.models)
        return np.column_stack([one - control for one in treated]), None

    def size(self) -> int:
        """Pickled bytes."""
        return len(pickle.dumps(self.models))


@dataclass
class EconML:
    """`econml.grf.CausalForest`: all levels in one forest, intervals by little bags."""

    options: Options
    clock: dict[str, float] = field(default_factory=dict)

    def fit(self, trial: Benchmark) -> None:
        """Levels as indicators."""
        from econml.grf import CausalForest

        chosen = {"n_estimators": self.options.trees, "n_jobs": self.options.threads}
        arms = (trial.w[:, None] == np.arange(1, trial.tau.shape[1] + 1)).astype(np.float64)
        self.model = CausalForest(random_state=self.options.seed, **chosen).fit(trial.X, arms, trial.y)

    def predict(self, x: np.ndarray) -> Effects:
        """Effects and standard errors, from the 95 % interval."""
        effect, low, high = self.model.predict(x, interval=True, alpha=0.05)
        return effect.reshape(len(x), -1), (high - low).reshape(len(x), -1) / (2 * Z95)

    def size(self) -> int:
        """Pickled bytes."""
        return len(pickle.dumps(self.model))


@dataclass
class EconMLDML:
    """`econml.dml.CausalForestDML`: nuisances cross-fitted by its automatic choice of models."""

    options: Options
    clock: dict[str, float] = field(default_factory=dict)

    def fit(self, trial: Benchmark) -> None:
        """Nuisances and forest."""
        from econml.dml import CausalForestDML

        chosen = {"n_estimators": self.options.trees, "n_jobs": self.options.threads}
        self.model = CausalForestDML(discrete_treatment=True, random_state=self.options.seed, **chosen)
        self.model.fit(trial.y, trial.w, X=trial.X)

    def predict(self, x: np.ndarray) -> Effects:
        """Effects and standard errors."""
        inference = self.model.const_marginal_effect_inference(x)
        return inference.point_estimate.reshape(len(x), -1), inference.stderr.reshape(len(x), -1)

    def size(self) -> int:
        """Pickled bytes."""
        return len(pickle.dumps(self.model))


@dataclass
class PerLevel:
    """A peer of two arms: one model per treated level on that level's units and the control's."""

    options: Options
    clock: dict[str, float] = field(default_factory=dict)
    models: list[Any] = field(default_factory=list)

    def fit(self, trial: Benchmark) -> None:
        """One model per treated level."""
        self.models = []
        for k in range(1, trial.tau.shape[1] + 1):
            mine = (trial.w == 0) | (trial.w == k)
            self.models.append(self.fit_one(trial.X[mine], (trial.w[mine] == k).astype(np.int64), trial.y[mine]))

    def fit_one(self, x: np.ndarray, treated: np.ndarray, y: np.ndarray) -> Any:
        raise NotImplementedError

    def predict(self, x: np.ndarray) -> Effects:
        """Effects; none of these peers has a standard error that new rows can be given at this size."""
        return np.column_stack([self.predict_one(model, x) for model in self.models]), None

    def predict_one(self, model: Any, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def size(self) -> int:
        """Bytes of all models."""
        return sum(len(self.packed(model)) for model in self.models)

    def packed(self, model: Any) -> bytes:
        return pickle.dumps(model)


@dataclass
class CausalML(PerLevel):
    """`CausalRandomForestRegressor`. Its errors need an array of training rows by new rows, so none are asked for."""

    def fit_one(self, x: np.ndarray, treated: np.ndarray, y: np.ndarray) -> Any:
        from causalml.inference.tree import CausalRandomForestRegressor

        chosen = {"n_estimators": self.options.trees, "n_jobs": self.options.threads}
        return CausalRandomForestRegressor(random_state=self.options.seed, **chosen).fit(x, treatment=treated, y=y)

    def predict_one(self, model: Any, x: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(x)).reshape(len(x))


@dataclass
class ScikitUplift(PerLevel):
    """scikit-uplift's learners over LightGBM: `solo` (treatment is a feature), `two` (the second model is given the
    first one's prediction), `class` (transformed outcomes)."""

    kind: str = "solo"

    def fit_one(self, x: np.ndarray, treated: np.ndarray, y: np.ndarray) -> Any:
        from lightgbm import LGBMClassifier, LGBMRegressor
        from sklift.models import ClassTransformation, ClassTransformationReg, SoloModel, TwoModels

        chosen = {"n_estimators": self.options.trees, "n_jobs": self.options.threads, "verbose": -1}
        classes, share = two_valued(y), float(treated.mean())
        # The transformed class is right for arms of one size only; for others it has a transformed number.
        whole = self.kind == "class" and not (classes and abs(share - 0.5) < 0.02)
        base = LGBMClassifier if classes and not whole else LGBMRegressor
        one, other = (base(random_state=self.options.seed, **chosen) for _ in range(2))
        models = {
            "solo": lambda: SoloModel(one),
            "two": lambda: TwoModels(one, other, method="ddr_control"),
            "class": lambda: ClassTransformationReg(one, propensity_val=share) if whole else ClassTransformation(one),
        }
        # It joins columns to what it is given, which it does to frames alone where values are missing.
        return models[self.kind]().fit(pd.DataFrame(columns_of(x)), pd.Series(y), pd.Series(treated))

    def predict_one(self, model: Any, x: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(pd.DataFrame(columns_of(x))), np.float64).reshape(len(x))


@dataclass
class YDF(PerLevel):
    """Uplift forest of YDF; a two-valued outcome is a class."""

    def fit_one(self, x: np.ndarray, treated: np.ndarray, y: np.ndarray) -> Any:
        import ydf

        ydf.verbose(0)
        classes = two_valued(y)
        task = ydf.Task.CATEGORICAL_UPLIFT if classes else ydf.Task.NUMERICAL_UPLIFT
        learner = ydf.RandomForestLearner(
            "y",
            task,
            uplift_treatment="w",
            num_trees=self.options.trees,
            num_threads=self.options.threads,
            random_seed=self.options.seed,
            **({"label_classes": ["0", "1"]} if classes else {"uplift_split_score": "EUCLIDEAN_DISTANCE"}),
        )
        arms, label = treated.astype(str), y.astype(np.int64).astype(str) if classes else y
        # It takes the commoner arm for the control.
        sign = 1.0 if 2 * treated.sum() <= treated.size else -1.0
        return learner.train({**columns_of(x), "w": arms, "y": label}), sign

    def predict_one(self, model: Any, x: np.ndarray) -> np.ndarray:
        forest, sign = model
        return sign * np.asarray(forest.predict(columns_of(x))).reshape(len(x))

    def packed(self, model: Any) -> bytes:
        return model[0].serialize()


@dataclass
class H2O(PerLevel):
    """Uplift DRF of H2O in a JVM of its own; two-valued outcomes only."""

    def fit_one(self, x: np.ndarray, treated: np.ndarray, y: np.ndarray) -> Any:
        if not two_valued(y):
            raise Unsupported("knows two-valued outcomes only")
        import h2o
        from h2o.estimators import H2OUpliftRandomForestEstimator

        h2o.init(nthreads=self.options.threads, max_mem_size="8G", verbose=False)
        h2o.no_progress()
        frame = h2o.H2OFrame(np.column_stack([x, treated, y]), column_names=[*columns_of(x), "w", "y"])
        frame["w"], frame["y"] = frame["w"].asfactor(), frame["y"].asfactor()
        model = H2OUpliftRandomForestEstimator(ntrees=self.options.trees, seed=self.options.seed, treatment_column="w")
        model.train(x=list(columns_of(x)), y="y", training_frame=frame)
        return model

    def predict_one(self, model: Any, x: np.ndarray) -> np.ndarray:
        import h2o

        frame = h2o.H2OFrame(x, column_names=list(columns_of(x)))
        return model.predict(frame)["uplift_predict"].as_data_frame(use_multi_thread=False).to_numpy().ravel()

    def packed(self, model: Any) -> bytes:
        import h2o

        with tempfile.TemporaryDirectory() as folder:
            return Path(h2o.save_model(model, folder)).read_bytes()


@dataclass
class Grf:
    """grf in R, given the arrays as files; its seconds and memory are taken inside R, around the calls alone."""

    options: Options
    clock: dict[str, float] = field(default_factory=dict)

    def fit(self, trial: Benchmark) -> None:
        """`causal_forest`, or `multi_arm_causal_forest` for more levels; nuisances by its own regression forests."""
        self.folder = tempfile.TemporaryDirectory(prefix="bench-grf-")
        self.treated = trial.tau.shape[1]
        for name, values in {"x": trial.X.T, "w": trial.w.astype(np.float64), "y": trial.y}.items():
            Path(self.folder.name, name).write_bytes(np.ascontiguousarray(values).tobytes())
        self.run("fit")

    def predict(self, x: np.ndarray) -> Effects:
        """Effects and standard errors."""
        Path(self.folder.name, "new").write_bytes(np.ascontiguousarray(x.T).tobytes())
        self.run("predict")
        effect, variance = (np.fromfile(Path(self.folder.name, name)) for name in ("effect", "variance"))
        return effect.reshape(self.treated, -1).T, np.sqrt(variance.reshape(self.treated, -1).T)

    def size(self) -> int:
        """Bytes of R's serialised model, not compressed."""
        return Path(self.folder.name, "model").stat().st_size

    def run(self, step: str) -> None:
        """One step in R, which leaves `seconds` and `peak` (bytes) in a file."""
        options = [self.options.trees, self.options.threads, self.options.seed]
        script = str(Path(__file__).with_name("engine_grf.R"))
        subprocess.run(["Rscript", script, step, self.folder.name, *map(str, options)], check=True, capture_output=True)
        seconds, peak = np.fromfile(Path(self.folder.name, "clock"))
        self.clock |= {f"{step}_s": float(seconds)} | ({"peak": float(peak)} if step == "fit" else {})


def grf_is_there() -> bool:
    """Whether R can load grf."""
    if shutil.which("Rscript") is None:
        return False
    return subprocess.run(["Rscript", "-e", "library(grf)"], capture_output=True, check=False).returncode == 0


PEERS: dict[str, Callable[[Options], Peer]] = {
    "ours": Ours,
    "lightgbm": LightGBM,
    "lightgbm_slow": partial(LightGBM, tuned={"learning_rate": 0.05}),  # half the default: more accurate, as fast
    # Against weak signals: small trees, few rounds.
    "lightgbm_small": partial(
        LightGBM, tuned={"n_estimators": 100, "learning_rate": 0.05, "num_leaves": 8, "min_child_samples": 100}
    ),
    "econml": EconML,
    "econml_dml": EconMLDML,
    "causalml": CausalML,
    "sklift_solo": partial(ScikitUplift, kind="solo"),
    "sklift_two": partial(ScikitUplift, kind="two"),
    "sklift_class": partial(ScikitUplift, kind="class"),
    "ydf": YDF,
    "h2o": H2O,
    "grf": Grf,
}


def missing(name: str) -> str | None:
    """Why a peer cannot run here, None when it can."""
    if name == "grf":
        return None if grf_is_there() else "R with the package grf is not installed"
    package = {"ours": "uplift_spark"}.get(name, name.partition("_")[0])
    if find_spec(package) is None:
        return f"{package} is not installed"
    return "Java is not installed" if name == "h2o" and shutil.which("java") is None else None


def two_valued(y: np.ndarray) -> bool:
    """Whether the outcome is 0 or 1 throughout."""
    return bool(np.all((y == 0) | (y == 1)))
