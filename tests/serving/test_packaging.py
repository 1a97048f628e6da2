"""Files for containers: pins of what is installed, a linted Dockerfile, valid objects, nothing secret."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.serving.published import config_of
from uplift_spark.config import load_config
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.runtime import write_files
from uplift_spark.sections.serving import PackageConf, SigningConf
from uplift_spark.serving import packaging
from uplift_spark.serving.packaging import (
    KEYS_FILE,
    SIGNING_KEYS,
    Cluster,
    PackagedVersion,
    compose_conf,
    compose_text,
    conda_text,
    dockerfile_text,
    installed_closure,
    mlserver_dockerfile_text,
    mlserver_requirements,
    requirements_text,
    served_conf,
)

KNOWN = PackagedVersion("spring", 3, "ab" * 32, "v1.2", {"python": "3.11.7"}, {"10%": {"qini": (0.2, 0.1, 0.3)}})


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    signing = {"keys": str(tmp_path / "signing"), "seconds": 30}
    config = config_of(tmp_path, redis="redis://store:6380/2", port=8123, signing=signing)
    return Cluster(config, "registry.example/uplift:1", {"uplift/model": "spring version 3"})


def objects(cluster: Cluster) -> dict[str, dict]:
    files = {name: yaml.safe_load(text) for name, text in cluster.files().items()}
    return {one["kind"]: one for one in files.values()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"git_version": ""}, "git version"),
        ({"environment": {}}, "environment"),
        ({"evaluation": {}}, "evaluation .run `uplift score` and `uplift lift`"),
        ({"git_version": "", "evaluation": {}}, "git version .*; evaluation"),
    ],
)
def test_a_version_of_which_too_little_is_known_is_refused(change: dict, says: str) -> None:
    KNOWN.check()
    with pytest.raises(DataError, match=f"model spring version 3 is not packaged without its {says}"):
        replace(KNOWN, **change).check()


def test_other_versions_than_in_training_are_named() -> None:
    known = replace(KNOWN, environment={"python": "3.11.7", "scikit-learn": "1.0", "numpy": "2.0"})
    assert known.facts("v1", {"scikit_learn": "1.9", "numpy": "2.0"})["differs"] == {"scikit-learn": ["1.0", "1.9"]}


def test_everything_that_serving_needs_is_pinned_and_no_spark() -> None:
    versions = installed_closure()
    assert {"fastapi", "uvicorn", "starlette", "llvmlite", "redis"} <= set(versions)
    names = {packaging.distribution_name(name) for name in versions}
    assert not names & {"pyspark", "delta-spark", "uplift-spark", "matplotlib", "pytest"}
    assert "httptools" not in installed_closure(()) and "httptools" in versions
    lines = requirements_text(versions, True).splitlines()
    assert lines and all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", line) for line in lines)
    assert requirements_text(versions, False).startswith("uplift-spark==")
    with pytest.raises(ConfigError, match="pyspark is among what serving needs"):
        requirements_text({"pyspark": "4"}, True)
    with pytest.raises(EnvironmentProblem, match="no-such-thing is not installed"):
        installed_closure((), "no-such-thing")


def test_the_conda_file_has_the_same_pins() -> None:
    versions = installed_closure()
    *_, pip = yaml.safe_load(conda_text(versions, True))["dependencies"]
    assert [*requirements_text(versions, True).split(), "./source"] == pip["pip"]


def last_stage(text: str) -> str:
    return text[text.rindex("FROM ") :]


@pytest.mark.parametrize("from_source", [True, False])
def test_the_last_stage_has_no_build_tools_and_no_root(from_source: bool) -> None:
    conf = PackageConf(uid=4711, base="python:3.12-slim")
    for text in (dockerfile_text(conf, 8123, from_source), mlserver_dockerfile_text(conf, from_source)):
        assert text.count("FROM python:3.12-slim") == 2 and ("COPY source" in text) == from_source
        stage = last_stage(text)
        assert not re.search(r"\b(apt-get|gcc|make|pip install|build-essential|ADD)\b", stage)
        assert "pip uninstall --yes pip setuptools wheel" in stage
        assert re.search(r"^USER 4711:4711$", stage, re.M) and stage.index("USER") < stage.index("ENTRYPOINT")
        assert not re.search(r"secret|token|password", text, re.I)
    assert "EXPOSE 8123" in dockerfile_text(conf, 8123, from_source)


@pytest.mark.skipif(
    shutil.which("hadolint", path=f"{Path(packaging.sys.executable).parent}") is None, reason="no hadolint"
)
@pytest.mark.parametrize("from_source", [True, False])
def test_hadolint_has_nothing_to_say(tmp_path: Path, from_source: bool) -> None:
    program = str(Path(packaging.sys.executable).parent / "hadolint")
    conf = PackageConf()
    for name, text in {
        "Dockerfile": dockerfile_text(conf, 8080, from_source),
        "Dockerfile.mlserver": mlserver_dockerfile_text(conf, from_source),
    }.items():
        (tmp_path / name).write_text(text)
        done = subprocess.run([program, str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN pip install numpy\n")
    bad = subprocess.run([program, str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert bad.returncode and "DL3013" in bad.stdout


def test_kubernetes_objects_are_valid(cluster: Cluster) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kinds = objects(cluster)
    kinds.pop("Kustomization")
    assert set(kinds) == {
        *("Namespace", "ConfigMap", "ServiceAccount", "StatefulSet", "Service"),
        *("HorizontalPodAutoscaler", "NetworkPolicy"),
    }
    version = validate.latest_version()
    for one in kinds.values():
        validate.validate(one, version, strict=True)
    broken = {**kinds["StatefulSet"], "spec": {**kinds["StatefulSet"]["spec"], "replica": 2}}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, version, strict=True)


def test_pods_are_locked_and_say_how_they_are(cluster: Cluster) -> None:
    kinds = objects(cluster)
    pod = kinds["StatefulSet"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    inner = container["securityContext"]
    assert inner["readOnlyRootFilesystem"] and inner["capabilities"] == {"drop": ["ALL"]}
    assert inner["allowPrivilegeEscalation"] is False and pod["spec"]["securityContext"]["runAsNonRoot"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["annotations"] == {"uplift/model": "spring version 3"}
    assert {"requests", "limits"} == set(container["resources"])
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == dict(zip(paths, ("/health/ready", "/health/ready", "/health/live"), strict=True))
    mounted, volumes = {one["name"] for one in container["volumeMounts"]}, pod["spec"]["volumes"]
    claims = kinds["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert mounted == {one["name"] for one in volumes} | {one["metadata"]["name"] for one in claims}
    labels = kinds["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_names_and_ports_fit_each_other(cluster: Cluster) -> None:
    kinds = objects(cluster)
    labels = kinds["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        kinds["StatefulSet"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    assert (
        kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == kinds["StatefulSet"]["metadata"]["name"]
    )
    network = kinds["NetworkPolicy"]["spec"]
    assert network["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 8123}]
    assert [port["port"] for rule in network["egress"] for port in rule["ports"]] == [53, 53, 6380]
    conf = cluster.config.serving.package
    assert [one["podSelector"]["matchLabels"] for one in network["ingress"][0]["from"]] == [conf.clients, conf.monitors]
    without = replace(cluster, config=replace(cluster.config, serving=replace(cluster.config.serving, redis=None)))
    assert objects(without)["NetworkPolicy"]["spec"]["egress"] == []
    listed = yaml.safe_load(cluster.files()["kubernetes/kustomization.yaml"])["resources"]
    assert {f"kubernetes/{name}" for name in listed} | {"kubernetes/kustomization.yaml"} == set(cluster.files())


def test_the_container_reads_a_configuration_with_its_own_paths(cluster: Cluster, tmp_path: Path) -> None:
    text = objects(cluster)["ConfigMap"]["data"]["campaign.yaml"]
    (tmp_path / "c.yaml").write_text(text)
    conf = load_config(tmp_path / "c.yaml")
    own = cluster.config.serving
    paths = {"host": "0.0.0.0", "folder": "/srv/uplift", "keys": KEYS_FILE, "log": "/var/lib/uplift/decisions.sqlite"}
    assert conf.serving == replace(own, package=PackageConf(), signing=SigningConf(SIGNING_KEYS, 30.0), **paths)
    mounts = objects(cluster)["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {one["mountPath"] for one in mounts} >= {SIGNING_KEYS, str(Path(KEYS_FILE).parent)}
    assert str(tmp_path) not in text.replace(str(tmp_path / "c.yaml"), "")


def test_compose_is_locked_too_and_its_redis_is_a_neighbour(cluster: Cluster, tmp_path: Path) -> None:
    content = yaml.safe_load(compose_text(cluster.config, "uplift:1", tmp_path))
    services = content["services"]
    assert set(services) == {"uplift", "redis", "prometheus", "alertmanager"}
    for one in services.values():
        assert one["read_only"] and one["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", ()))
        named = [volume.split(":")[0] for volume in one["volumes"] if not volume.startswith((".", "/"))]
        assert set(named) <= set(content["volumes"])
        assert {one["source"] for one in one.get("secrets", ())} <= set(content["secrets"])
    assert yaml.safe_load(compose_conf(cluster.config))["serving"]["redis"] == "redis://redis:6380/2"
    assert f"./secrets/signing:{SIGNING_KEYS}:ro" in services["uplift"]["volumes"]
    alone = config_of(tmp_path)
    assert SIGNING_KEYS not in compose_text(alone, "uplift:1", tmp_path) + compose_conf(alone)
    assert "redis" not in yaml.safe_load(compose_text(alone, "uplift:1", tmp_path))["services"]
    assert "redis" not in yaml.safe_load(compose_conf(alone))["serving"]


@pytest.mark.parametrize(
    ("redis", "says"),
    [
        ("redis://127.0.0.1:6379/0", "on this machine, where no container reaches it"),
        ("unix:///run/redis.sock", "on this machine, where no container reaches it"),
        ("redis://:secret@store:6379/0", "has a password, which would stand in files"),
    ],
)
def test_a_redis_that_no_container_reaches_is_refused(tmp_path: Path, redis: str, says: str) -> None:
    config = config_of(tmp_path, redis=redis)
    for act in (lambda: Cluster(config, "i:1", {}).files(), lambda: compose_conf(config)):
        with pytest.raises(ConfigError, match=says):
            act()


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({"replicas": 3, "most_replicas": 2}, "most_replicas is 2, below the 3"),
        ({"clients": {}}, "clients has no label, which would let every pod in"),
        ({"image": "Bad Image"}, "image"),
        ({"memory": "lots"}, "memory"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, conf: dict, says: str) -> None:
    text = {"campaign": "spring", "roles": {"outcome": "y", "control": "none", "features": ["x"]}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**text, "serving": {"package": conf}}))
    with pytest.raises(ConfigError, match=says):
        load_config(tmp_path / "c.yaml")


def test_mlserver_has_our_arithmetic_and_its_own_web_server() -> None:
    lines = mlserver_requirements(PackageConf(), installed_closure()).split()
    names = {line.partition("==")[0] for line in lines}
    assert {"mlserver", "numpy", "numba", "pyarrow"} <= names and not names & {"fastapi", "uvicorn", "protobuf"}


def test_nothing_is_left_in_part_and_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {"x/y": "text", "z": b"\x00"})
    assert {path.name for path in (tmp_path / "a").rglob("*") if path.is_file()} == {"y", "z"}
    (tmp_path / "b").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_files(tmp_path / "b", {"x": "text"})


def test_what_is_served_names_no_source(tmp_path: Path) -> None:
    assert set(served_conf(config_of(tmp_path))) == {"campaign", "roles", "serving"}
