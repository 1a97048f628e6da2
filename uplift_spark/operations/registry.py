"""Registered models: log with all that a retrain needs, find by version, alias or run, load only if unchanged.

A registered model is one file of arrays plus the script `mlflow_model.py`; this package reads only that file back, so
nothing stored with a model is ever executed here. Models missing mandatory metadata are refused (R6.1, R1.6).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uplift_spark.causal.forest import Forest, average_effect
from uplift_spark.causal.instrument import Instrumental
from uplift_spark.causal.learned import AnyModel, Learned, kind_of, load_any
from uplift_spark.causal.training import describe
from uplift_spark.config import Config
from uplift_spark.operations.mlflow_store import Store, open_store
from uplift_spark.vocabulary import (
    TREATMENT,
    ConfigError,
    EnvironmentProblem,
    ModelFileError,
    Roles,
    checked_name,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHAMPION = "champion"
_PACKAGE = Path(__file__).resolve().parents[1]
_FILE = "forest.uplift"
# What the registered script imports beside MLflow, which adds itself. Pinned as installed: inference is slow.
_REQUIREMENTS = ("numpy", "numba", "pandas", "pyarrow", "pydantic", "PyYAML", "scikit-learn", "skops")


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, all of it mandatory.

    run_id           the train run; a run registers at most one version
    roles            columns it was trained on
    inputs           column -> 'double' | 'string': the unit and every feature, as the training table has them
    data_versions    table -> Delta version read
    feature_version  Delta version of the table its features come from
    git_version      see `runs.code_version`
    params           arguments of `CausalForest` or `MetaLearner`, those left open as None
    erasure_of       version whose trees it has, with leaf sums that never saw units erased since; None: it was trained
    refresh          {of: version whose trees it has, half_life_days}, with sums of other rows; None: it was trained
    """

    run_id: str
    roles: Roles
    inputs: Mapping[str, str]
    data_versions: Mapping[str, int]
    feature_version: int
    git_version: str
    params: Mapping[str, Any]
    erasure_of: int | None = None
    refresh: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Registered:
    """One version of a registered model: `run_id` is ours, `source_run` the MLflow run that keeps its files."""

    name: str
    version: int
    run_id: str
    source_run: str
    sha256: str
    data_versions: Mapping[str, int]
    git_version: str
    params: Mapping[str, Any]
    erasure_of: int | None = None
    refresh: Mapping[str, Any] | None = None


class Registry:
    """Models of one MLflow store. Opening it proves that the store answers, else raises EnvironmentProblem."""

    def __init__(self, store: Store):
        self.store = store
        self._client: MlflowClient = store.client()

    @classmethod
    def of(cls, config: Config) -> Registry:
        return cls(open_store(config.lakehouse, config.registry.tracking_uri))

    def log_model(
        self, name: str, model: bytes, origin: Origin, params: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> Registered:
        """Log `model` (a model's file) as a new MLflow run and register it as the next version of `name`.

        A train run has one version: of two that register it at the same time, the later one gives way to the first.
        Raises ConfigError when the signature or another mandatory part of `origin` is missing.
        """
        checked_name(name, "model name")
        _check_origin(name, origin)
        tags = _tags(origin, hashlib.sha256(model).hexdigest())
        with self.store.calls(), self._run(name, origin.run_id, tags) as run:
            self._client.log_batch(run.info.run_id, _metrics(metrics), _params(params))
            with tempfile.TemporaryDirectory() as folder:
                _save(Path(folder), model, origin, run.info.run_id)
                self._client.log_artifacts(run.info.run_id, f"{folder}/model", "model")
            self._create_model(self.store.model(name))
            made = self._client.create_model_version(
                self.store.model(name), f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags
            )
        return self._first_of_run(name, _registered(made))

    def _first_of_run(self, name: str, made: Registered) -> Registered:
        first = self.version_for_run(name, made.run_id)
        if first is None or first.version == made.version:
            return made
        with self.store.calls():
            self._client.delete_model_version(self.store.model(name), str(made.version))
        return first

    def version_for_run(self, name: str, run_id: str) -> Registered | None:
        """The version that train run `run_id` registered, None if it has not (yet)."""
        full = self.store.model(checked_name(name, "model name"))
        with self.store.calls():
            found = [v for v in self._versions(full) if v.tags.get("uplift_run_id") == run_id]
        return min(map(_registered, found), key=lambda version: version.version, default=None)

    def find(self, name: str, version: int | str = CHAMPION) -> Registered:
        """A version by number or alias; ConfigError when there is none, ModelFileError when it is not a forest."""
        full = self.store.model(checked_name(name, "model name"))
        found = self.known(name, version)
        if found is None:
            wanted = f"version {version}" if isinstance(version, int) else f"alias {version!r}"
            raise ConfigError(
                f"model {full!r} has no {wanted} in {self.store.shown}: run `uplift train` with registry.champion, "
                "or set registry.version to a version that exists"
            )
        return found

    def known(self, name: str, version: int | str = CHAMPION) -> Registered | None:
        """A version by number or alias, None when there is none; ModelFileError when it is not a forest."""
        full = self.store.model(checked_name(name, "model name"))
        with self.store.calls():
            found = self._get(full, version)
        if found is not None and "uplift_sha256" not in found.tags:
            raise ModelFileError(f"model {full!r} version {found.version} is no forest: register it by `uplift train`")
        return None if found is None else _registered(found)

    def current(self, model: Registered) -> Registered:
        """The version that came of `model` by erasing units, the last one if there were several; else itself."""
        with self.store.calls():
            versions = [_registered(v) for v in self._versions(model.name) if "uplift_erasure_of" in v.tags]
        for version in sorted(versions, key=lambda version: version.version):
            model = version if version.erasure_of == model.version else model
        return model

    def trees_of(self, model: Registered) -> Registered:
        """The version that the trees of a refreshed one were grown for, which holds their corrections; else itself."""
        return model if model.refresh is None else self.find(model.name, model.refresh["of"])

    def set_data_versions(self, model: Registered, versions: Mapping[str, int]) -> None:
        """The version's training rows lie elsewhere from now on; what the MLflow run recorded stays."""
        with self.store.calls():
            self._client.set_model_version_tag(
                model.name, str(model.version), "uplift_data_versions", _version_tag(versions)
            )

    def set_champion(self, model: Registered, alias: str = CHAMPION) -> None:
        """Point the alias at this version."""
        with self.store.calls():
            self._client.set_registered_model_alias(model.name, checked_name(alias, "alias"), str(model.version))

    def load(self, model: Registered) -> AnyModel:
        """The model, after its bytes matched the checksum taken when it was registered.

        Raises ModelFileError for a file that is missing, truncated, edited or replaced; none of it is executed.
        """
        where = f"model {model.name!r} version {model.version}"
        with tempfile.TemporaryDirectory() as folder:
            try:
                with self.store.calls():
                    path = Path(self._client.download_artifacts(model.source_run, f"model/artifacts/{_FILE}", folder))
            except EnvironmentProblem as error:
                raise ModelFileError(f"{where} cannot be read: {error}") from error
            content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != model.sha256:
            raise ModelFileError(f"{where} is not the file that was registered: restore it or train again")
        return load_any(content)

    def log_evaluation(
        self, name: str, run_id: str, tags: Mapping[str, str], metrics: Mapping[str, float], files: Sequence[Path]
    ) -> None:
        """Log figures and files of a run that registers nothing, once: a rerun finds what it logged."""
        if self.logged_metrics(name, run_id) is not None:
            return
        with self.store.calls(), self._run(name, run_id, {**tags, "uplift_run_id": run_id}) as run:
            self._client.log_batch(run.info.run_id, _metrics(metrics))
            for file in files:
                self._client.log_artifact(run.info.run_id, str(file))

    def logged_metrics(self, name: str, run_id: str) -> dict[str, float] | None:
        """Figures that `log_evaluation` logged of a run, None if it has not (yet)."""
        mine = f"tags.uplift_run_id = '{run_id}' and attributes.status = 'FINISHED'"
        with self.store.calls():
            found = self._client.search_runs([self._experiment(name)], mine, max_results=1)
        return dict(found[0].data.metrics) if found else None

    @contextmanager
    def _run(self, name: str, run_id: str, tags: Mapping[str, str]) -> Iterator[Any]:
        """An MLflow run that ends FINISHED, or FAILED when the body raises."""
        named = {"mlflow.runName": run_id, "mlflow.source.name": "uplift train", **tags}
        run = self._client.create_run(self._experiment(name), tags=named)
        try:
            yield run
        except BaseException:
            self._client.set_terminated(run.info.run_id, "FAILED")
            raise
        self._client.set_terminated(run.info.run_id, "FINISHED")

    def _experiment(self, name: str) -> str:
        title = self.store.experiment(name)
        found = self._client.get_experiment_by_name(title)
        return found.experiment_id if found else self._client.create_experiment(title, self.store.artifact_root)

    def _create_model(self, full: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(full)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise

    def _versions(self, full: str) -> Iterator[ModelVersion]:
        token = None
        while True:
            page = self._client.search_model_versions(f"name='{full}'", page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _get(self, full: str, version: int | str) -> ModelVersion | None:
        from mlflow.exceptions import MlflowException

        try:
            if isinstance(version, int):
                return self._client.get_model_version(full, str(version))
            return self._client.get_model_version_by_alias(full, version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                return None
            raise


def _check_origin(name: str, origin: Origin) -> None:
    missing = [part for part in ("run_id", "data_versions", "git_version", "params") if not getattr(origin, part)]
    if origin.feature_version is None:
        missing.append("feature_version")
    unsigned = [c for c in (origin.roles.unit, *origin.roles.features) if c not in origin.inputs]
    if unsigned:
        missing.append(f"signature of {len(unsigned)} input column(s) such as {unsigned[0]!r}")
    if missing:
        raise ConfigError(f"model {name!r} is not registered without its {', '.join(missing)}: pass them")


def _tags(origin: Origin, sha256: str) -> dict[str, str]:
    roles = origin.roles
    parts = {
        "outcome": roles.outcome,
        "more_outcomes": roles.more_outcomes,
        "treatment": roles.treatment,
        "control": roles.control,
        "dose": roles.dose,
    }
    erasure = {} if origin.erasure_of is None else {"uplift_erasure_of": str(origin.erasure_of)}
    refresh = {} if origin.refresh is None else {"uplift_refresh": json.dumps(origin.refresh)}
    return {
        **erasure,
        **refresh,
        "uplift_run_id": origin.run_id,
        "uplift_sha256": sha256,
        "uplift_data_versions": _version_tag(origin.data_versions),
        "uplift_feature_version": str(origin.feature_version),
        "uplift_git_version": origin.git_version,
        "uplift_params": json.dumps(dict(origin.params), sort_keys=True),
        "uplift_roles": json.dumps(parts),
    }


def _version_tag(versions: Mapping[str, int]) -> str:
    return json.dumps(dict(versions), sort_keys=True)


def _registered(found: ModelVersion) -> Registered:
    return Registered(
        name=found.name,
        version=int(found.version),
        run_id=found.tags["uplift_run_id"],
        source_run=str(found.run_id),
        sha256=found.tags["uplift_sha256"],
        data_versions=json.loads(found.tags["uplift_data_versions"]),
        git_version=found.tags["uplift_git_version"],
        params=json.loads(found.tags["uplift_params"]),
        erasure_of=int(found.tags["uplift_erasure_of"]) if "uplift_erasure_of" in found.tags else None,
        refresh=json.loads(found.tags["uplift_refresh"]) if "uplift_refresh" in found.tags else None,
    )


def _save(folder: Path, model: bytes, origin: Origin, run_id: str) -> None:
    """Write MLflow's model folder `folder/model`: MLmodel, the script, this package's source, the forest's file."""
    from mlflow.models import Model as MlflowModel
    from mlflow.pyfunc import save_model

    file = folder / _FILE
    file.write_bytes(model)
    save_model(
        str(folder / "model"),
        python_model=str(_PACKAGE / "operations" / "mlflow_model.py"),
        artifacts={"forest": str(file)},
        code_paths=[str(_PACKAGE)],
        signature=_signature(origin),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIREMENTS],
        mlflow_model=MlflowModel(artifact_path="model", run_id=run_id),
    )


def _signature(origin: Origin) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    unit = ColSpec(origin.inputs[origin.roles.unit], origin.roles.unit)
    features: list[Any] = [ColSpec(origin.inputs[c], c) for c in origin.roles.features]
    numbers = [ColSpec("double", c) for c in ("uplift", "uplift_se", "uplift_lower", "uplift_upper")]
    outputs: list[Any] = [unit, ColSpec("string", TREATMENT), *numbers, ColSpec("boolean", "low_support")]
    return ModelSignature(Schema([unit, *features]), Schema(outputs))


def _metrics(values: Mapping[str, float]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, 0) for key, value in values.items()]


def _params(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, str(value)[:500]) for key, value in values.items()]


def level_suffix(place: int, level: str) -> str:
    """A level in the name of a metric; its place keeps levels apart whose signs MLflow refuses: `<5` and `>5`."""
    return f"{place}_{re.sub(r'[^A-Za-z0-9_.-]', '_', level)}"


def facts_of(model: AnyModel, seconds: float) -> tuple[dict[str, Any], dict[str, float]]:
    """(parameters, metrics) of a trained model for the log."""
    if isinstance(model, Forest | Instrumental):
        return _forest_facts(model if isinstance(model, Forest) else model.forest, seconds)
    named = {"kind": kind_of(model), "levels": list(model.levels.names)}
    if isinstance(model, Learned):
        metrics = {"rows": model.facts["rows"], "rows_taken": model.facts["rows_taken"], "fit_seconds": seconds}
        return {**named, **vars(model.params)}, metrics
    pairs = enumerate(model.pairs, 1)
    rows = {f"rows.{level_suffix(k, level)}": float(one.facts["rows"]) for k, (level, one) in pairs}
    return named, {**rows, "fit_seconds": seconds}


def _forest_facts(forest: Forest, seconds: float) -> tuple[dict[str, Any], dict[str, float]]:
    facts, buckets = forest.facts, forest.facts["buckets"]
    metrics = {
        "rows": facts["rows"],
        "leaves": forest.structure.n_leaves,
        "buckets_without_trees": sum(bucket["trees"] == 0 for bucket in buckets),
        "fit_seconds": seconds,
    }
    averages = average_effect(forest)
    for index, level in enumerate(forest.levels.names):
        suffix = level_suffix(index, level)
        metrics[f"rows.{suffix}"] = facts["level_rows"].get(level, 0)
        if level in averages:
            metrics[f"average_effect.{suffix}"] = averages[level]
    return dict(describe(forest.plan)), metrics
