"""What `uplift package` writes: files that run the service in containers, in a cluster, as a function, or in KServe.

Everything follows from the section `serving` and from what is installed here: the same versions of the same
distributions, and no Spark. Nothing secret is written; keys are named by the file, volume or secret that holds them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from packaging.requirements import Requirement

import uplift_spark
from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.sections.serving import LOOPBACK, PackageConf
from uplift_spark.serving.store import MODEL, ServedVersion

DISTRIBUTION = "uplift-spark"
SERVING_EXTRA = "serving"
FORBIDDEN = frozenset({"pyspark", "delta-spark"})
"""Distributions that no image for serving holds."""
CONF_FILE, FOLDER, LOG, CACHE = "/etc/uplift/campaign.yaml", "/srv/uplift", "/var/lib/uplift", "/var/cache/uplift"
KEYS_FILE, METRICS_KEY_FILE = "/run/secrets/uplift/keys", "/run/secrets/uplift/metrics_key"
SIGNING_KEYS = "/run/secrets/uplift-signing"
"""Paths inside a container."""
COMPUTE = (
    *("numpy", "numba", "llvmlite", "scipy", "pandas", "pyarrow", "pydantic", "pyyaml", "scikit-learn", "skops"),
)
"""Distributions that effects are computed with: MLServer's image pins these, and leaves the others to MLServer."""
VENV = "/opt/uplift"
MLSERVER_PORT = 8080  # where KServe looks for it
_NAME = "uplift"
_SOURCE = "source"


# --------------------------------------------------------------------------------------------------------------------
# What is packaged: a published version of a model that is known well enough.


@dataclass(frozen=True)
class PackagedVersion:
    """A model version with what must be known of it before it is packaged.

    git_version  of the code that trained it
    environment  {python or distribution: version} that it was trained in
    evaluation   {level: {metric: (value, lower, upper)}} on the hold-out
    """

    name: str
    version: int
    sha256: str
    git_version: str
    environment: Mapping[str, str]
    evaluation: Mapping[str, Mapping[str, tuple[float, float, float]]]

    def check(self) -> None:
        """Refuse a version of which something mandatory is not known. Raises DataError."""
        parts = {
            "git version (train it with this version of the package)": self.git_version,
            "environment (train it again: its files in the registry name none)": self.environment,
            "evaluation (run `uplift score` and `uplift lift` with this version)": self.evaluation,
        }
        if missing := [name for name, value in parts.items() if not value]:
            named = f"model {self.name} version {self.version}"
            raise DataError(f"{named} is not packaged without its {'; '.join(missing)}")

    def facts(self, published: str, installed: Mapping[str, str]) -> dict[str, Any]:
        """What model.json says; `differs` names distributions that compute and are of another version here."""
        have = {distribution_name(name): version for name, version in installed.items()}
        pairs = ((name, version, have.get(distribution_name(name))) for name, version in self.environment.items())
        differs = {name: [then, now] for name, then, now in pairs if now is not None and now != then}
        return {
            "model": self.name, "version": self.version, "sha256": self.sha256, "git_version": self.git_version,
            "published": published, "environment": dict(self.environment), "differs": differs,
            "evaluation": dict(self.evaluation),
        }  # fmt: skip


def distribution_name(distribution: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def installed_closure(extras: Sequence[str] = (SERVING_EXTRA,), name: str = DISTRIBUTION) -> dict[str, str]:
    """Whatever an installed distribution needs, and what that needs, without the distribution itself.

    Args:
        extras: Extras of the distribution that count.
        name: The distribution.

    Returns:
        {distribution: installed version}, by name.

    Raises:
        EnvironmentProblem: One is not installed here, so its version is not known.
    """
    versions: dict[str, str] = {}
    waiting, known = [(name, frozenset(extras))], set()
    while waiting:
        one = waiting.pop()
        if one in known:
            continue
        known.add(one)
        try:
            installed = metadata.distribution(one[0])
        except ImportError as error:
            fix = f"pip install '{DISTRIBUTION}[{SERVING_EXTRA}]'"
            raise EnvironmentProblem(f"{one[0]} is not installed, so no version of it can be pinned: {fix}") from error
        versions[installed.metadata["Name"]] = installed.version
        for line in installed.requires or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (*one[1], "")):
                waiting.append((need.name, frozenset(need.extras)))
    own = distribution_name(name)
    return {name: versions[name] for name in sorted(versions, key=str.lower) if distribution_name(name) != own}


def source_files() -> dict[str, bytes]:
    """The package's source where it runs from a checkout; empty where it was installed from a wheel."""
    package = Path(uplift_spark.__file__).parent
    root = package.parent
    if not (root / "pyproject.toml").exists() or not (root / "jobs").is_dir():
        return {}
    folders = (path for folder in (package, root / "jobs") for path in folder.rglob("*"))
    listed = [*(root / name for name in ("pyproject.toml", "README.md", "LICENSE")), *sorted(folders)]
    return {
        f"{_SOURCE}/{path.relative_to(root)}": path.read_bytes()
        for path in listed
        if path.is_file() and "__pycache__" not in path.parts
    }


# --------------------------------------------------------------------------------------------------------------------
# The image.


def served_conf(config: Config, **changes: Any) -> dict[str, Any]:
    """The configuration that the service reads in a container: names, roles and `serving`, no source, nothing secret.

    Args:
        config: The campaign's.
        **changes: Keys of `serving` that differ from those of a container.

    Returns:
        What its YAML file holds.

    Raises:
        ConfigError: The service would listen on any port that is free, which nobody could reach.
    """
    conf = config.serving
    if conf.port == 0:
        raise ConfigError("serving.port is 0, any that is free: name a port, by which a container is reached")
    kept = {one.name: getattr(conf, one.name) for one in fields(conf) if one.name not in ("package", "signing")}
    container: dict[str, Any] = {
        "host": "0.0.0.0",
        "folder": FOLDER,
        "log": f"{LOG}/decisions.sqlite",
        "keys": KEYS_FILE,
    }
    if conf.signing is not None:
        container["signing"] = {"keys": SIGNING_KEYS, "seconds": conf.signing.seconds}
    serving = {name: value for name, value in {**kept, **container, **changes}.items() if value is not None}
    roles = {name: value for name, value in asdict(config.roles).items() if name in ("outcome", "control", "features")}
    return {"campaign": config.campaign, "roles": {**roles, "features": list(roles["features"])}, "serving": serving}


def requirements_text(versions: Mapping[str, str], from_source: bool) -> str:
    """Pinned requirements for pip; the package itself where it is not built from source.

    Raises ConfigError where Spark is among them.
    """
    if spark := sorted(FORBIDDEN & {distribution_name(name) for name in versions}):
        raise ConfigError(f"{spark[0]} is among what serving needs, and has no place in its image: remove it")
    own = [] if from_source else [f"{DISTRIBUTION}=={uplift_spark.__version__}"]
    return "\n".join([*own, *(f"{name}=={version}" for name, version in versions.items())]) + "\n"


def conda_text(versions: Mapping[str, str], from_source: bool) -> str:
    """The same as an environment file of conda, with this Python."""
    own = f"./{_SOURCE}" if from_source else f"{DISTRIBUTION}=={uplift_spark.__version__}"
    pinned = [f"{name}=={version}" for name, version in versions.items()]
    content = {
        "name": "uplift-serving",
        "channels": ["conda-forge"],
        "dependencies": [f"python={_python()}", "pip", {"pip": [*pinned, own]}],
    }
    return yaml_file(content)


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _base(conf: PackageConf) -> str:
    return conf.base or f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim-bookworm"


def dockerfile_text(conf: PackageConf, port: int, from_source: bool) -> str:
    """A Dockerfile of two stages: the first installs, the second has no pip and no compiler and does not run as root.

    Args:
        conf: See there.
        port: That the service listens on.
        from_source: Whether the package is built from the folder `source`.

    Returns:
        Its text; what it copies lies beside it.
    """
    build = f"--no-deps -r requirements.txt{f' ./{_SOURCE}' if from_source else ''}"
    url = f"http://127.0.0.1:{port}/health/ready"
    return f"""\
{_stages(conf, "requirements.txt", build, f"{LOG} {CACHE}", from_source)}EXPOSE {port}
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \\
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('{url}', timeout=2)"]
ENTRYPOINT ["uplift", "serve", "--conf", "{CONF_FILE}"]
"""


def mlserver_dockerfile_text(conf: PackageConf, from_source: bool) -> str:
    """A Dockerfile of the image in which KServe runs MLServer with our runtime, in two stages, too."""
    own = f"./{_SOURCE}" if from_source else f"{DISTRIBUTION}=={uplift_spark.__version__}"
    build = f"-r requirements.txt {own}"
    return f"""\
{_stages(conf, "kserve/requirements.txt", build, CACHE, from_source)}EXPOSE {MLSERVER_PORT}
ENTRYPOINT ["mlserver", "start", "/mnt/models"]
"""


def _stages(conf: PackageConf, requirements: str, build: str, writable: str, from_source: bool) -> str:
    copied = f"COPY {_SOURCE} ./{_SOURCE}\n" if from_source else ""
    return f"""\
FROM {_base(conf)} AS build
WORKDIR /build
COPY {requirements} ./
{copied}RUN python -m venv --without-pip {VENV} \\
    && python -m pip --python {VENV}/bin/python install --no-cache-dir {build} \\
    && python -m pip --python {VENV}/bin/python check

FROM {_base(conf)}
RUN python -m pip uninstall --yes pip setuptools wheel \\
    && useradd --uid {conf.uid} --no-create-home --shell /usr/sbin/nologin {_NAME} \\
    && install -d -o {conf.uid} -g {conf.uid} {writable}
COPY --from=build {VENV} {VENV}
ENV PATH={VENV}/bin:$PATH \\
    HOME={CACHE} \\
    XDG_CACHE_HOME={CACHE} \\
    PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONUNBUFFERED=1
USER {conf.uid}:{conf.uid}
"""


def mlserver_requirements(conf: PackageConf, versions: Mapping[str, str]) -> str:
    """MLServer, and what computes effects in the versions of here; the rest is MLServer's choice, which needs others
    than `uplift serve` does."""
    pinned = [f"{name}=={version}" for name, version in versions.items() if distribution_name(name) in COMPUTE]
    return "\n".join([conf.mlserver, *pinned]) + "\n"


def yaml_file(*documents: Any) -> str:
    """Write YAML documents in the order of their keys."""
    return "---\n".join(yaml.safe_dump(one, sort_keys=False, allow_unicode=True, width=10_000) for one in documents)


# --------------------------------------------------------------------------------------------------------------------
# Kubernetes.


@dataclass(frozen=True)
class Cluster:
    """Manifests of one campaign's service.

    config  the campaign's
    image   with its tag
    notes   annotations of the pods: which model was packaged
    """

    config: Config
    image: str
    notes: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of all objects; campaigns may have underscores, Kubernetes has none."""
        return f"{_NAME}-{re.sub(r'[^a-z0-9]+', '-', self.config.campaign.lower()).strip('-')}"[:50].rstrip("-")

    @property
    def labels(self) -> dict[str, str]:
        """By which the service and the network policy find the pods."""
        return {"app.kubernetes.io/name": "uplift-serving", "app.kubernetes.io/instance": self.name}

    @property
    def conf(self) -> PackageConf:
        """`serving.package`."""
        return self.config.serving.package

    def head(self, version: str, kind: str) -> dict[str, Any]:
        """apiVersion, kind and metadata of an object."""
        about = {"name": self.name, "namespace": self.conf.namespace, "labels": self.labels}
        return {"apiVersion": version, "kind": kind, "metadata": about}

    def files(self) -> dict[str, str]:
        """{file: YAML} of the namespace with its pod security, configuration, pods, service, autoscaler and network."""
        security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
        namespace = {"apiVersion": "v1", "kind": "Namespace"}
        namespace["metadata"] = {"name": self.conf.namespace, "labels": security}  # type: ignore[assignment]
        settings = {**self.head("v1", "ConfigMap"), "data": {"campaign.yaml": yaml_file(served_conf(self.config))}}
        account = {**self.head("v1", "ServiceAccount"), "automountServiceAccountToken": False}
        objects = {
            "namespace": namespace, "configmap": settings, "serviceaccount": account, "statefulset": self._pods(),
            "service": self._service(), "autoscaler": self._autoscaler(), "networkpolicy": self._network(),
        }  # fmt: skip
        files = {f"kubernetes/{name}.yaml": yaml_file(one) for name, one in objects.items()}
        listed = [f"{name}.yaml" for name in objects]
        kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": listed}
        return {**files, "kubernetes/kustomization.yaml": yaml_file(kustomization)}

    def _pods(self) -> dict[str, Any]:
        """A stateful set: decisions are on disk before they are answered, and a deployment's pod loses its disk."""
        template = {
            "metadata": {"labels": self.labels, "annotations": dict(self.notes)},
            "spec": {
                "serviceAccountName": self.name,
                "automountServiceAccountToken": False,
                "securityContext": {
                    **{"runAsNonRoot": True, "runAsUser": self.conf.uid, "runAsGroup": self.conf.uid},
                    **{"fsGroup": self.conf.uid, "seccompProfile": {"type": "RuntimeDefault"}},
                },
                "topologySpreadConstraints": [
                    {
                        **{
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                        },
                        "labelSelector": {"matchLabels": self.labels},
                    }
                ],
                "containers": [self._container()],
                "volumes": [
                    {"name": "conf", "configMap": {"name": self.name}},
                    {"name": "keys", "secret": {"secretName": self.conf.keys_secret, "defaultMode": 0o440}},
                    {"name": "folder", "persistentVolumeClaim": {"claimName": self.conf.claim, "readOnly": True}},
                    {"name": "cache", "emptyDir": {}},
                    {"name": "tmp", "emptyDir": {}},
                    *self._signing(
                        {"secret": {"secretName": f"{self.conf.keys_secret}-signing", "defaultMode": 0o440}}
                    ),
                ],
            },
        }
        size = {"requests": {"storage": self.conf.log_size}}
        log = {"metadata": {"name": "log"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": size}}
        spec = {
            **{"serviceName": self.name, "replicas": self.conf.replicas, "selector": {"matchLabels": self.labels}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            **{"template": template, "volumeClaimTemplates": [log]},
        }
        return {**self.head("apps/v1", "StatefulSet"), "spec": spec}

    def _container(self) -> dict[str, Any]:
        def probe(path: str, period: int, failures: int) -> dict[str, Any]:
            get = {"httpGet": {"path": path, "port": "http"}}
            return {**get, "periodSeconds": period, "timeoutSeconds": 2, "failureThreshold": failures}

        conf = self.conf
        return {
            "name": _NAME,
            "image": self.image,
            "ports": [{"name": "http", "containerPort": self.config.serving.port}],
            "startupProbe": probe("/health/ready", 5, 60),  # kernels are compiled once in a pod's life
            "readinessProbe": probe("/health/ready", 5, 2),
            "livenessProbe": probe("/health/live", 10, 3),
            "resources": {
                "requests": {"cpu": conf.cpu, "memory": conf.memory},
                "limits": {"memory": conf.memory},
            },
            "securityContext": {
                **{"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True},
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "conf", "mountPath": str(Path(CONF_FILE).parent), "readOnly": True},
                {"name": "keys", "mountPath": str(Path(KEYS_FILE).parent), "readOnly": True},
                {"name": "folder", "mountPath": FOLDER, "readOnly": True},
                {"name": "log", "mountPath": LOG},
                {"name": "cache", "mountPath": CACHE},
                {"name": "tmp", "mountPath": "/tmp"},
                *self._signing({"mountPath": SIGNING_KEYS, "readOnly": True}),
            ],
        }

    def _signing(self, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Volume or mount of the keys of signed decisions, where they are signed."""
        return [] if self.config.serving.signing is None else [{"name": "signing", **facts}]

    def _service(self) -> dict[str, Any]:
        """One caller stays with one pod, whose log knows its request keys."""
        ports = [{"name": "http", "port": self.config.serving.port, "targetPort": "http"}]
        spec = {"selector": self.labels, "ports": ports, "sessionAffinity": "ClientIP"}
        return {**self.head("v1", "Service"), "spec": spec}

    def _autoscaler(self) -> dict[str, Any]:
        target = {"type": "Utilization", "averageUtilization": self.conf.cpu_percent}
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": self.name},
            **{"minReplicas": self.conf.replicas, "maxReplicas": self.conf.most_replicas},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }
        return {**self.head("autoscaling/v2", "HorizontalPodAutoscaler"), "spec": spec}

    def _network(self) -> dict[str, Any]:
        """In: clients and Prometheus, of any namespace, by their labels. Out: names, and Redis where it is used."""
        peers = [
            {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}
            for labels in (self.conf.clients, self.conf.monitors)
        ]
        out: list[dict[str, Any]] = []
        if (port := redis_port(self.config)) is not None:
            names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
            out = [{"ports": names}, {"ports": [{"protocol": "TCP", "port": port}]}]
        spec = {
            "podSelector": {"matchLabels": self.labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": self.config.serving.port}]}],
            "egress": out,
        }
        return {**self.head("networking.k8s.io/v1", "NetworkPolicy"), "spec": spec}

    def kserve_files(self, version: ServedVersion, facts: Mapping[str, Any]) -> dict[str, str | bytes]:
        """MLServer's model folder, and the objects that make KServe serve it.

        Args:
            version: The published version whose model is copied.
            facts: Of model.json.

        Returns:
            {file: content}.
        """
        settings = {
            "name": self.name,
            "implementation": "uplift_spark.serving.inference.UpliftRuntime",
            "parameters": {"uri": f"./{MODEL}", "version": f"v{facts['version']}"},
        }
        runtime = self.head("serving.kserve.io/v1alpha1", "ServingRuntime")
        ports = [{"name": "http1", "containerPort": MLSERVER_PORT, "protocol": "TCP"}]
        runtime["spec"] = {
            "protocolVersions": ["v2"],
            "supportedModelFormats": [{"name": "uplift", "version": "1", "autoSelect": False}],
            "containers": [
                {
                    **{"name": "kserve-container", "image": f"{self.image}-mlserver", "ports": ports},
                    "resources": self._container()["resources"],
                    "securityContext": self._container()["securityContext"],
                    "volumeMounts": [{"name": "cache", "mountPath": CACHE}, {"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
        }
        service = self.head("serving.kserve.io/v1beta1", "InferenceService")
        service["metadata"]["annotations"] = dict(self.notes)
        model = {"modelFormat": {"name": "uplift", "version": "1"}, "runtime": self.name, "protocolVersion": "v2"}
        model["storageUri"] = f"pvc://{self.conf.claim}/kserve/{self.config.campaign}"
        scale = {"minReplicas": self.conf.replicas, "maxReplicas": self.conf.most_replicas}
        service["spec"] = {"predictor": {**scale, "model": model}}
        return {
            "kserve/model/model-settings.json": json.dumps(settings, indent=1) + "\n",
            f"kserve/model/{MODEL}": version.model,
            "kserve/inferenceservice.yaml": yaml_file(runtime, service),
        }


def redis_port(config: Config) -> int | None:
    """Port of the Redis that `serving.redis` names; None without one.

    Raises ConfigError for one that no container reaches, or whose password would stand in the files.
    """
    if config.serving.redis is None:
        return None
    url = urlsplit(config.serving.redis)
    if url.scheme == "unix" or url.hostname in LOOPBACK:
        raise ConfigError(
            "serving.redis is on this machine, where no container reaches it: package with --set "
            "serving.redis=redis://HOST:PORT/NUMBER"
        )
    if url.password or url.username or "password" in parse_qs(url.query, keep_blank_values=True):
        raise ConfigError("serving.redis has a password, which would stand in files: package with a URL without one")
    return url.port or 6379


# --------------------------------------------------------------------------------------------------------------------
# Compose.


def compose_text(config: Config, image: str, folder: Path) -> str:
    """A Compose file: the service, Prometheus with its rules, Alertmanager, and Redis where units lie there.

    Args:
        config: The campaign's.
        image: With its tag.
        folder: With the published versions, on the machine that runs Compose.

    Returns:
        YAML.
    """
    conf, port = config.serving.package, config.serving.port
    locked = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    service: dict[str, Any] = {
        **{"build": {"context": "."}, "image": image, "user": f"{conf.uid}:{conf.uid}", **locked, "tmpfs": ["/tmp"]},
        "ports": [f"127.0.0.1:{port}:{port}"],
        "volumes": [
            f"./compose/campaign.yaml:{CONF_FILE}:ro",
            f"{folder.resolve()}:{FOLDER}:ro",
            *(f"log:{LOG}", f"cache:{CACHE}"),
            *([] if config.serving.signing is None else [f"./secrets/signing:{SIGNING_KEYS}:ro"]),
        ],
        "secrets": [{"source": "keys", "target": KEYS_FILE}],
        "mem_limit": re.sub("i$", "", conf.memory).lower(),
        "restart": "unless-stopped",
    }
    services = {_NAME: service}
    if (redis := redis_port(config)) is not None:
        service["depends_on"] = ["redis"]
        services["redis"] = {
            **{"image": conf.redis_image, "command": ["redis-server", "--appendonly", "yes", "--port", str(redis)]},
            **{**locked, "user": "redis", "ports": [f"127.0.0.1:{redis}:{redis}"], "volumes": ["redis:/data"]},
        }
    services["prometheus"] = {
        **{"image": conf.prometheus_image, **locked, "ports": ["127.0.0.1:9090:9090"]},
        "volumes": ["./monitoring:/etc/prometheus:ro", "prometheus:/prometheus"],
        "secrets": [{"source": "metrics_key", "target": METRICS_KEY_FILE}],
        "extra_hosts": ["host.docker.internal:host-gateway"],
    }
    services["alertmanager"] = {
        **{"image": conf.alertmanager_image, **locked, "ports": ["127.0.0.1:9093:9093"]},
        "command": ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"],
        "volumes": ["./monitoring:/etc/alertmanager:ro", "alertmanager:/alertmanager"],
    }
    volumes = ["log", "cache", *(["redis"] if redis is not None else []), "prometheus", "alertmanager"]
    secrets = {name: {"file": f"./secrets/{name}"} for name in ("keys", "metrics_key")}
    return yaml_file({"services": services, "volumes": {name: {} for name in volumes}, "secrets": secrets})


def compose_conf(config: Config) -> str:
    """The configuration of Compose's service, whose Redis is its neighbour."""
    if config.serving.redis is None:
        return yaml_file(served_conf(config))
    number = urlsplit(config.serving.redis).path.strip("/") or "0"
    return yaml_file(served_conf(config, redis=f"redis://redis:{redis_port(config)}/{number}"))
