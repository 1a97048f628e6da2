"""The model registry: where models are kept, logged, found, loaded and rebuilt."""

from __future__ import annotations

import hashlib
import hmac
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

from uplift_spark import __version__
from uplift_spark.config import DAY, Config, Signature
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem, ModelFileError
from uplift_spark.estimators import UpliftModel, train_model
from uplift_spark.forest.forest import Forest, average_effect
from uplift_spark.forest.instrument import Instrumental
from uplift_spark.forest.training import describe
from uplift_spark.lake.tables import Lake
from uplift_spark.learners.metalearners import AnyModel, Learned, PerLevel, load_any
from uplift_spark.registry.store import Store, open_store
from uplift_spark.roles import TREATMENT, Roles, checked_name
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, no_progress, secret_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from pyspark.sql import DataFrame


# --------------------------------------------------------------------------------------------------------------------
# Registered models: log with all that a retrain needs, find by version, alias or run, load only if unchanged.
# A registered model is one file of arrays and no code; this package reads only that file back, so nothing stored with a
# model is ever executed here. Models missing mandatory metadata are refused, and with `registry.signature` those that
# were not signed with its key.

CHAMPION, CHALLENGER = "champion", "challenger"
_FILE = "forest.uplift"
_PLACES = ("data", "artifacts")  # folders of the file within the model's: today's, and that of 0.1.0
_SIGNATURE = "uplift_signature"
# What a signature is of: every tag of ours but itself and the versions of tables, which an erasure moves on.
_UNSIGNED = (_SIGNATURE, "uplift_data_versions")
# What scoring imports beside MLflow, which adds itself. Pinned as installed: other versions may compute differently.
_REQUIREMENTS = ("numpy", "numba", "pandas", "pyarrow", "pydantic", "PyYAML", "scikit-learn", "skops")


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, all of it mandatory.

    run_id           the train run; a run registers at most one version
    roles            columns it was trained on
    inputs           column -> 'double' | 'string': the unit and every feature, as the training table has them
    data_versions    table -> Delta version read
    feature_version  Delta version of the table its features come from
    git_version      see `runtime.code_version`
    params           kind of the learner and arguments of its estimator, those left open as None
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
    """Models of one MLflow store. Opening it proves that the store answers, else raises EnvironmentProblem.

    With a `signature` versions are signed when they are registered, and one that was not signed with its key is not
    loaded.
    """

    def __init__(self, store: Store, signature: Signature | None = None):
        self.store, self.signature = store, signature
        self._client: MlflowClient = store.client()

    @classmethod
    def of(cls, config: Config) -> Registry:
        return cls(open_store(config.lakehouse, config.registry.tracking_uri), config.registry.signature)

    def log_model(
        self, name: str, model: bytes, origin: Origin, params: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> Registered:
        """Log `model` (a model's file) as a new MLflow run and register it as the next version of `name`.

        A train run has one version: of two that register it at the same time, the later one gives way to the first.
        Raises ConfigError when the signature or another mandatory part of `origin` is missing.
        """
        checked_name(name, "model name")
        _check_origin(name, origin)
        tags, full = _tags(origin, hashlib.sha256(model).hexdigest()), self.store.model(name)
        self._signed(full, "", tags)  # a key that is not there shows before anything is written
        with self.store.calls(), self._run(name, origin.run_id, tags) as run:
            self._client.log_batch(run.info.run_id, _metrics(metrics), _params(params))
            with tempfile.TemporaryDirectory() as folder:
                _save(Path(folder), model, origin, run.info.run_id)
                self._client.log_artifacts(run.info.run_id, f"{folder}/model", "model")
            self._create_model(full)
            created = self._client.create_model_version(
                full,
                f"{run.info.artifact_uri}/model",
                run.info.run_id,
                tags=tags | self._signed(full, run.info.run_id, tags),
            )
        return self._first_of_run(name, _registered(created))

    def _first_of_run(self, name: str, registered: Registered) -> Registered:
        first = self.version_for_run(name, registered.run_id)
        if first is None or first.version == registered.version:
            return registered
        with self.store.calls():
            self._client.delete_model_version(self.store.model(name), str(registered.version))
        return first

    def version_for_run(self, name: str, run_id: str) -> Registered | None:
        """The version that train run `run_id` registered, None if it has not (yet)."""
        full = self.store.model(checked_name(name, "model name"))
        with self.store.calls():
            versions = [v for v in self._versions(full) if v.tags.get("uplift_run_id") == run_id]
        return min(map(_registered, versions), key=lambda version: version.version, default=None)

    def find(self, name: str, version: int | str = CHAMPION) -> Registered:
        """A version by number or alias; ConfigError when there is none, ModelFileError when it is not a forest."""
        registered = self.known(name, version)
        if registered is None:
            full = self.store.model(name)
            with self.store.calls():
                there = sorted(int(one.version) for one in self._versions(full))
            wanted = f"version {version}" if isinstance(version, int) else f"alias {version!r}"
            remedy = (
                f"choose one of those that exist ({', '.join(map(str, there[-10:]))})"
                if isinstance(version, int) and there
                else "correct campaign, run `uplift train` with registry.champion, or set registry.version to one "
                "that exists"
            )
            raise ConfigError(f"model {full!r} has no {wanted} in {self.store.shown}: {remedy}")
        return registered

    def known(self, name: str, version: int | str = CHAMPION) -> Registered | None:
        """A version by number or alias, None when there is none; ModelFileError when it is not a forest."""
        full = self.store.model(checked_name(name, "model name"))
        with self.store.calls():
            model_version = self._get(full, version)
        if model_version is not None and "uplift_sha256" not in model_version.tags:
            raise ModelFileError(
                f"model {full!r} version {model_version.version} is no forest: register it by `uplift train`"
            )
        return None if model_version is None else _registered(model_version)

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

    def environment(self, model: Registered) -> dict[str, str]:
        """The environment that a version was trained in.

        Args:
            model: The version.

        Returns:
            {`python` or a distribution: version}; empty where the registry holds no record of it.
        """
        import yaml

        texts = []
        with tempfile.TemporaryDirectory() as folder:
            for name in ("requirements.txt", "python_env.yaml"):
                try:
                    with self.store.calls():
                        place = self._client.download_artifacts(model.source_run, f"model/{name}", folder)
                    texts.append(Path(place).read_text())
                except EnvironmentProblem:
                    return {}
        pinned = (line.partition("==") for line in texts[0].splitlines())
        packages = {name: version for name, equals, version in pinned if equals}
        python = (yaml.safe_load(texts[1]) or {}).get("python")
        return {"python": str(python), **packages} if python else {}

    def set_data_versions(self, model: Registered, versions: Mapping[str, int]) -> None:
        """The version's training rows lie elsewhere from now on; what the MLflow run recorded stays."""
        self.set_tags(model, {"uplift_data_versions": _version_tag(versions)})

    def set_tags(self, model: Registered, tags: Mapping[str, str]) -> None:
        """Tag a version."""
        with self.store.calls():
            for name, text in tags.items():
                self._client.set_model_version_tag(model.name, str(model.version), name, text)

    def log_files(self, model: Registered, files: Sequence[Path], folder: str) -> None:
        """Keep files beside a version, in a folder of its MLflow run; those of the same name are replaced.

        Raises EnvironmentProblem where the store does not take them.
        """
        with self.store.calls():
            for file in files:
                self._client.log_artifact(model.source_run, str(file), folder)

    def set_alias(self, model: Registered, alias: str) -> None:
        """Point an alias, such as champion, at this version; another version loses it."""
        with self.store.calls():
            self._client.set_registered_model_alias(model.name, checked_name(alias, "alias"), str(model.version))

    def drop_alias(self, name: str, alias: str) -> None:
        """Take an alias away; without one nothing happens."""
        with self.store.calls():
            self._client.delete_registered_model_alias(self.store.model(name), checked_name(alias, "alias"))

    def load(self, model: Registered) -> AnyModel:
        """The model, after its signature and its bytes matched what was taken of them when it was registered.

        Raises ModelFileError for a file that is missing, truncated, edited or replaced, or a version that was not
        signed as `registry.signature` says; none of it is executed. Raises ConfigError where the key is not there.
        """
        if self.signature is not None:
            self._check_signature(model, self.signature.required)
        return self._load(model)

    def sign(self, model: Registered) -> None:
        """Sign a version that was registered without a key, or with another one, as it is now.

        Raises ModelFileError as `load`, and ConfigError without `registry.signature`.
        """
        if self.signature is None:
            raise ConfigError("registry.signature is not set: name the key that versions are signed with")
        self._load(model)
        with self.store.calls():
            version = self._client.get_model_version(model.name, str(model.version))
            signed = self._signed(model.name, model.source_run, {**version.tags, "uplift_sha256": model.sha256})
            self._client.set_model_version_tag(model.name, str(model.version), _SIGNATURE, signed[_SIGNATURE])

    def _load(self, model: Registered) -> AnyModel:
        content = self._content(model)
        if hashlib.sha256(content).hexdigest() != model.sha256:
            raise ModelFileError(f"{_version(model)} is not the file that was registered: restore it or train again")
        try:
            return load_any(content)
        except ModelFileError as error:
            raise ModelFileError(f"{_version(model)}: {error}") from error

    def _content(self, model: Registered) -> bytes:
        missing = None
        for place in _PLACES:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with self.store.calls():
                        where = f"model/{place}/{_FILE}"
                        return Path(self._client.download_artifacts(model.source_run, where, folder)).read_bytes()
                except EnvironmentProblem as error:
                    missing = missing or error
        raise ModelFileError(f"{_version(model)} cannot be read: {missing}") from missing

    def _signed(self, full: str, source_run: str, tags: Mapping[str, str]) -> dict[str, str]:
        """The tag that signs a version: HMAC-SHA256 of its name, its run and its tags; none without a key."""
        if self.signature is None:
            return {}
        ours = {tag: text for tag, text in tags.items() if tag.startswith("uplift_") and tag not in _UNSIGNED}
        text = json.dumps([full, source_run, ours], sort_keys=True, separators=(",", ":")).encode()
        return {_SIGNATURE: hmac.digest(secret_key("registry.signature", self.signature), text, "sha256").hex()}

    def _check_signature(self, model: Registered, required: bool) -> None:
        with self.store.calls():
            version = self._client.get_model_version(model.name, str(model.version))
        known = version.tags.get(_SIGNATURE)
        if known is None and not required:
            return
        if known is None:
            raise ModelFileError(
                f"{_version(model)} has no signature, and registry.signature requires one: train again, or have "
                "Registry.sign sign it"
            )
        now = self._signed(model.name, str(version.run_id), version.tags)[_SIGNATURE]
        same = version.tags.get("uplift_sha256") == model.sha256 and version.run_id == model.source_run
        if not (same and hmac.compare_digest(known.encode(), now.encode())):
            raise ModelFileError(
                f"{_version(model)} was not signed with the key of registry.signature: its tags or its file were "
                "changed, or another key signed it; restore it, or train again"
            )

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
            runs = self._client.search_runs([self._experiment(name)], mine, max_results=1)
        return dict(runs[0].data.metrics) if runs else None

    def figures_of(self, registered: Registered) -> dict[str, float]:
        """Figures of the run that registered a version, also of one that failed after that."""
        with self.store.calls():
            return dict(self._client.get_run(registered.source_run).data.metrics)

    @contextmanager
    def _run(self, name: str, run_id: str, tags: Mapping[str, str]) -> Iterator[Any]:
        """An MLflow run that ends FINISHED, or FAILED when the body raises."""
        named = {"mlflow.runName": run_id, "mlflow.source.name": "uplift train", **tags}
        self._end_killed(experiment := self._experiment(name), run_id)
        run = self._client.create_run(experiment, tags=named)
        try:
            yield run
        except BaseException:
            self._client.set_terminated(run.info.run_id, "FAILED")
            raise
        self._client.set_terminated(run.info.run_id, "FINISHED")

    def _end_killed(self, experiment: str, run_id: str) -> None:
        """End what killed processes left RUNNING: earlier runs of this id, and of any that began a day ago."""
        ours = "attributes.status = 'RUNNING' and tags.mlflow.source.name = 'uplift train' and"
        for which in (f"tags.uplift_run_id = '{run_id}'", f"start_time < {int((time.time() - 86_400) * 1000)}"):
            for run in self._client.search_runs([experiment], f"{ours} {which}"):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _experiment(self, name: str) -> str:
        title = self.store.experiment(name)
        known = self._client.get_experiment_by_name(title)
        return known.experiment_id if known else self._client.create_experiment(title, self.store.artifact_root)

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


def _version(model: Registered) -> str:
    return f"model {model.name!r} version {model.version}"


def _version_tag(versions: Mapping[str, int]) -> str:
    return json.dumps(dict(versions), sort_keys=True)


def _registered(model_version: ModelVersion) -> Registered:
    return Registered(
        name=model_version.name,
        version=int(model_version.version),
        run_id=model_version.tags["uplift_run_id"],
        source_run=str(model_version.run_id),
        sha256=model_version.tags["uplift_sha256"],
        data_versions=json.loads(model_version.tags["uplift_data_versions"]),
        git_version=model_version.tags["uplift_git_version"],
        params=_named_kind(json.loads(model_version.tags["uplift_params"])),
        erasure_of=int(model_version.tags["uplift_erasure_of"]) if "uplift_erasure_of" in model_version.tags else None,
        refresh=json.loads(model_version.tags["uplift_refresh"]) if "uplift_refresh" in model_version.tags else None,
    )


def _named_kind(params: dict[str, Any]) -> dict[str, Any]:
    """Recorded parameters with the kind of learner, which 0.1.0 recorded for meta-learners alone."""
    if "kind" in params:
        return params
    per_level = params.pop("per_level", False)
    kind = "instrumental_forest" if "delivered" in params else "forest_per_level" if per_level else "forest"
    return {**params, "kind": kind}


def _save(folder: Path, model: bytes, origin: Origin, run_id: str) -> None:
    """Write MLflow's model folder `folder/model`: MLmodel, requirements, the model's file; no code."""
    from mlflow.models import Model as MlflowModel
    from mlflow.pyfunc import save_model

    file = folder / _FILE
    file.write_bytes(model)
    save_model(
        str(folder / "model"),
        loader_module="uplift_spark.registry.mlflow_model",
        data_path=str(file),
        signature=_signature(origin),
        pip_requirements=[
            f"uplift-spark=={__version__}",
            *(f"{name}=={metadata.version(name)}" for name in _REQUIREMENTS),
        ],
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


def level_suffix(number: int, level: str) -> str:
    """A level in the name of a metric; its place keeps levels apart whose signs MLflow refuses: `<5` and `>5`."""
    return f"{number}_{re.sub(r'[^A-Za-z0-9_.-]', '_', level)}"


def log_facts(model: AnyModel, seconds: float) -> tuple[dict[str, Any], dict[str, float]]:
    """(parameters, metrics) of a trained model for the log."""
    params, metrics = _facts(model)
    return {"kind": model.kind, **params}, {**metrics, "fit_seconds": seconds}


def _facts(model: AnyModel) -> tuple[dict[str, Any], dict[str, float]]:
    if isinstance(model, Forest):
        return _forest_facts(model)
    if isinstance(model, Instrumental):
        return _forest_facts(model.forest)
    levels = {"levels": list(model.levels.names)}
    if isinstance(model, PerLevel):
        pairs = enumerate(model.pairs, 1)
        return levels, {f"rows.{level_suffix(k, level)}": float(one.facts["rows"]) for k, (level, one) in pairs}
    return {**levels, **vars(model.params)}, {name: model.facts[name] for name in ("rows", "rows_taken")}


def _forest_facts(forest: Forest) -> tuple[dict[str, Any], dict[str, float]]:
    facts, buckets = forest.facts, forest.facts["buckets"]
    metrics = {
        "rows": facts["rows"],
        "leaves": forest.structure.n_leaves,
        "buckets_without_trees": sum(bucket["trees"] == 0 for bucket in buckets),
    }
    averages = average_effect(forest)
    for index, level in enumerate(forest.levels.names):
        suffix = level_suffix(index, level)
        metrics[f"rows.{suffix}"] = facts["level_rows"].get(level, 0)
        if level in averages:
            metrics[f"average_effect.{suffix}"] = averages[level]
    return dict(describe(forest.plan)), metrics


# --------------------------------------------------------------------------------------------------------------------
# A registered model once more, from the versions of tables, roles and parameters that its run recorded.


def refresh_model(
    model: UpliftModel, rows: DataFrame, how: Mapping[str, Any], progress: ProgressCallback
) -> UpliftModel:
    """The model's trees with sums of training rows; `how` holds half_life_days, rows being of the day (UTC) of their
    assignment. Raises as `UpliftModel.refresh`."""
    from pyspark.sql import functions as F

    day = F.floor(F.unix_micros("assigned_at") / F.lit(DAY))
    return model.refresh(rows.withColumn("_day_assigned", day), how["half_life_days"], "_day_assigned", progress)


_GONE = re.compile(r"FILE_NOT_EXIST|DELTA_FILE_NOT_FOUND|FileNotFoundException")


def rebuild(
    config: Config, lake: Lake, run_id: str | None = None, progress: ProgressCallback = no_progress
) -> JobResult:
    """Train again what train run `run_id` registered; nothing is written.

    Of the configuration only lakehouse, registry and model name count. Raises ConfigError for a run that registered no
    model or whose forest comes from an erasure, DataError when its table's version is gone, or when the bytes, of a
    meta-learner its effects, differ: then other code or another machine's arithmetic made them, or the version was
    tampered with.
    """
    registry = Registry.of(config)
    model = registry.version_for_run(config.model_name, run_id or "")
    if model is None:
        raise ConfigError(
            f"model {config.model_name!r} has no version of run {run_id!r}: `uplift train` names its runs"
        )
    if model.erasure_of is not None:
        raise ConfigError(
            f"run {run_id!r} is an erasure: model {config.model_name!r} version {model.version} has the trees of "
            f"version {model.erasure_of}, grown on rows that are gone, so no training gives them again"
        )
    registered = registry.load(model)
    ((table, version),) = model.data_versions.items()
    progress(f"{model.name} version {model.version}: {table} as of version {version}, code {model.git_version}")
    frame = lake.read(table, version).where("split = 'train'")
    with still_there(table, version, "restore them from a backup"):
        if model.refresh is None:
            again = train_model(model.params, frame, registered.roles, progress)
        else:
            base = UpliftModel(registry.load(registry.trees_of(model)))
            again = refresh_model(base, frame, model.refresh, progress)
    what, rebuilt_digest, known = _digests(model, registered, again.model, again.to_bytes())
    if rebuilt_digest != known:
        raise DataError(
            f"{what} of run {run_id} rebuilt from {table} version {version} have SHA-256 {rebuilt_digest[:16]}, "
            f"registered is "
            f"{known[:16]}: it was made by code {model.git_version}, this is {code_version()}; use that one"
        )
    same = {f"same_{what}": True}
    return JobResult.of("train", model.run_id, model=model.name, version=model.version, sha256=rebuilt_digest, **same)


def _digests(model: Registered, registered: AnyModel, again: AnyModel, content: bytes) -> tuple[str, str, str]:
    """What of a model is the same for the same rows, and its SHA-256 now and when it was registered: bytes of forests,
    effects of meta-learners, whose files tell when they were written."""
    if isinstance(registered, Learned) and isinstance(again, Learned):
        return "effects", again.facts["effects_sha256"], registered.facts["effects_sha256"]
    return "bytes", hashlib.sha256(content).hexdigest(), model.sha256


@contextmanager
def still_there(table: str, version: int, fix: str) -> Iterator[None]:
    """Reading a version whose files are gone becomes a DataError that ends with `fix`."""
    try:
        yield
    except Exception as error:  # typed by Connect, an error of the JVM's without
        if not _GONE.search(str(error)):
            raise
        raise DataError(
            f"table {table}: files of version {version} are gone, so its training set cannot be read again: "
            f"`uplift erase --purge`, or VACUUM with less than the table's retention, removed them; {fix}"
        ) from error
