"""`uplift package`: the files of one folder, what is refused, and, slowly, the steps of its Dockerfiles."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import urllib3
import yaml

from tests.serving.known import QINI, known_campaign
from tests.serving.published import config_of, features_of, publish, trial
from uplift_spark.campaign import Campaign
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.jobs import package
from uplift_spark.sections.serving import PackageConf
from uplift_spark.serving.guard import new_key
from uplift_spark.serving.packaging import CACHE, VENV, redis_port, served_conf

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained():
    return trial()


@pytest.fixture(scope="module")
def house(tmp_path_factory, trained) -> Campaign:
    return known_campaign(tmp_path_factory.mktemp("house"), *trained)


@pytest.fixture(scope="module")
def packed(house: Campaign, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("packed")
    package.run(house, to=to)
    return to


def test_one_folder_has_all_files_and_what_is_known_of_the_model(house: Campaign, packed: Path, tmp_path: Path) -> None:
    names = {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()}
    assert names >= {
        *("Dockerfile", "Dockerfile.mlserver", ".dockerignore", "requirements.txt", "environment.yaml", "model.json"),
        *("compose.yaml", "compose/campaign.yaml", "monitoring/prometheus.yml", "monitoring/alertmanager.yml"),
        *("kubernetes/statefulset.yaml", "kubernetes/networkpolicy.yaml", "kubernetes/autoscaler.yaml"),
        *("kserve/inferenceservice.yaml", "kserve/model/model-settings.json", "kserve/model/model.uplift"),
        *("serverless/handler.py", "serverless/requirements.txt", "source/pyproject.toml", "source/jobs/serve.py"),
    }
    for name in names:
        if name.endswith((".yaml", ".yml")):
            assert list(yaml.safe_load_all((packed / name).read_text())), name
    facts = json.loads((packed / "model.json").read_text())
    assert facts["git_version"] == "v1.2.3" and facts["differs"] == {}
    assert facts["evaluation"] == {"10%": {"qini": list(QINI)}}
    assert facts["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["environment"]["numpy"] in (packed / "requirements.txt").read_text()
    (scrape,) = [
        one
        for one in yaml.safe_load((packed / "monitoring/prometheus.yml").read_text())["scrape_configs"]
        if one["static_configs"][0].get("labels") == {"campaign": "spring"}
    ]
    assert scrape["static_configs"][0]["targets"] == ["uplift:8080"]
    assert "uplift-service.yaml" in {path.name for path in (packed / "monitoring").iterdir()}
    again = package.run(house, to=tmp_path)
    assert again.details["other_versions"] == "none" and again.details["model"] == "spring"
    text = "".join(
        (packed / name).read_text() for name in names if "source/" not in name and "model.uplift" not in name
    )
    assert not re.search(r"pyspark|delta-spark", text)
    assert compile((packed / "serverless/handler.py").read_text(), "handler.py", "exec")


def test_a_model_of_which_too_little_is_known_is_refused_before_anything_is_written(trained, tmp_path: Path) -> None:
    campaign, to = known_campaign(tmp_path / "house", *trained), tmp_path / "to"
    metrics = tmp_path / "house" / "gold" / "uplift_metrics"
    metrics.rename(tmp_path / "metrics")
    with pytest.raises(DataError, match="model spring version 1 is not packaged without its evaluation"):
        package.run(campaign, to=to)
    (tmp_path / "metrics").rename(metrics)
    for file in (tmp_path / "house").rglob("python_env.yaml"):
        file.unlink()
    with pytest.raises(DataError, match="is not packaged without its environment"):
        package.run(campaign, to=to)
    assert not to.exists()


def test_without_a_published_version_there_is_nothing_to_package(trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing is published in .*: run `uplift publish` first"):
        package.run(Campaign(config_of(tmp_path)), to=tmp_path / "to")
    publish(config_of(tmp_path), *trained, 5)
    with pytest.raises(ConfigError, match="model 'spring' has no version 1"):
        package.run(Campaign(config_of(tmp_path)), to=tmp_path / "to")


@pytest.mark.parametrize("address", ["redis://h:1/0?password=hush", "redis://hush@h:1/0", "redis://:hush@h:1/0"])
def test_a_secret_in_the_configuration_is_refused_and_not_repeated(tmp_path: Path, address: str) -> None:
    config = config_of(tmp_path)
    config = replace(config, serving=replace(config.serving, redis=address))
    with pytest.raises(ConfigError, match="has a password, which would stand in files") as refused:
        redis_port(config)
    assert "hush" not in str(refused.value)


def test_what_no_container_could_use_is_refused(tmp_path: Path, house: Campaign) -> None:
    config = config_of(tmp_path)
    with pytest.raises(ConfigError, match=r"serving\.port is 0"):
        served_conf(replace(config, serving=replace(config.serving, port=0)))
    with pytest.raises(ValueError, match="base"):
        PackageConf(base="python:3.11\nRUN curl evil")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="file cannot be written"):
        package.run(house, to=tmp_path / "file")


# --------------------------------------------------------------------------------------------------------------------
# What a container engine would do with the first stage, as far as a machine without one can do it.


def build_stage(dockerfile: Path, context: Path, work: Path, venv: Path) -> None:
    """Do COPY and RUN of a Dockerfile's first stage in a folder, with another path for the environment."""
    stage = dockerfile.read_text().split("\nFROM ")[0]
    bare = Path(sys.base_prefix) / "bin"
    for line in stage.replace(VENV, str(venv)).replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            source, target = shlex.split(rest)
            copy, place = context / source, work / (Path(source).name if target == "./" else target)
            shutil.copytree(copy, place) if copy.is_dir() else shutil.copy(copy, place)
        elif word == "RUN":
            rest = re.sub(r"(?<!\S)python (?=-m)", f"{bare / 'python3'} ", rest)
            done = subprocess.run(rest, shell=True, cwd=work, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    pool, end = urllib3.PoolManager(retries=False, timeout=2), time.monotonic() + 900
    while time.monotonic() < end and process.poll() is None:
        try:
            if pool.request("GET", url).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.slow
def test_the_image_s_environment_serves(packed: Path, house: Campaign, tmp_path: Path) -> None:
    """The first stage's steps as they stand; then the entry point with the written configuration, as another user's
    home and with nothing but the cache and the log to write to."""
    venv, work = tmp_path / "venv", tmp_path / "build"
    work.mkdir()
    build_stage(packed / "Dockerfile", packed, work, venv)
    assert not (venv / "bin" / "pip").exists()
    listed = subprocess.run(
        [venv / "bin" / "python", "-c", "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"],
        capture_output=True, text=True, check=True,
    ).stdout.lower().split()  # fmt: skip
    assert not {"pyspark", "delta-spark", "pip", "matplotlib", "pytest"} & set(listed) and "fastapi" in listed
    port, keys = free_port(), tmp_path / "keys"
    key = new_key(keys, "shop", ("effects", "decide"))
    here = {
        "/srv/uplift": str(Path(house.config.lakehouse.path) / "serving" / "spring"),
        "/var/lib/uplift": str(tmp_path),
    }
    text = (packed / "compose" / "campaign.yaml").read_text()
    for path, place in {
        **here,
        "/run/secrets/uplift/keys": str(keys),
        "0.0.0.0": "127.0.0.1",
        "8080": str(port),
    }.items():
        text = text.replace(path, place)
    (tmp_path / "campaign.yaml").write_text(text)
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", (packed / "Dockerfile").read_text(), re.M).group(1))
    command = [str(venv / "bin" / entry[0]), *entry[1:-1], str(tmp_path / "campaign.yaml")]
    cache = tmp_path / CACHE.strip("/")
    cache.mkdir(parents=True)
    environment = {"PATH": f"{venv / 'bin'}:/usr/bin:/bin", "HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health/ready", process, tmp_path / "log")
        pool = urllib3.PoolManager(headers={"content-type": "application/json"})
        assert pool.request("POST", f"{url}/v1/effects", body=b"{}").status == 401
        answer = pool.request(
            "POST", f"{url}/v1/effects", body=json.dumps({"unit_id": "u000003"}),
            headers={"content-type": "application/json", "authorization": f"Bearer {key}"},
        )  # fmt: skip
    finally:
        process.terminate()
        process.wait(60)
    assert answer.status == 200
    effects = json.loads(answer.data)["answers"][0]["effects"]
    forest = house.registry.load(house.champion)
    frame, _ = trial()
    import pyarrow as pa

    batch = forest.effect_arrays(pa.Table.from_pandas(frame[:4][[one.name for one in forest.bins]]))[0][3]
    assert [one["uplift"] for one in effects] == batch.tolist()


@pytest.mark.slow
def test_mlserver_serves_the_layout(packed: Path, house: Campaign, trained, tmp_path: Path) -> None:
    """MLServer of its own Dockerfile's first stage, over HTTP by the Open Inference Protocol."""
    venv, work = tmp_path / "venv", tmp_path / "build"
    work.mkdir()
    build_stage(packed / "Dockerfile.mlserver", packed, work, venv)
    folder, port = tmp_path / "models", free_port()
    shutil.copytree(packed / "kserve" / "model", folder)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0}
    (folder / "settings.json").write_text(json.dumps({**ports, "host": "127.0.0.1"}))
    environment = {**os.environ, "PATH": f"{venv / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [venv / "bin" / "mlserver", "start", str(folder)], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        model = f"http://127.0.0.1:{port}/v2/models/uplift-spring"
        wait_for(f"{model}/ready", process, tmp_path / "log")
        rows = [features_of(trained[0], row) for row in range(4)]
        inputs = [
            {
                "name": name,
                "shape": [4],
                "datatype": "BYTES" if name == "region" else "FP64",
                "data": [float(row[name]) if isinstance(row[name], bool) else row[name] for row in rows],
            }
            for name in rows[0]
        ]
        answer = urllib3.PoolManager().request("POST", f"{model}/infer", json={"inputs": inputs})
        refused = urllib3.PoolManager().request("POST", f"{model}/infer", json={"inputs": inputs[1:]})
    finally:
        process.terminate()
        process.wait(60)
    assert answer.status == 200, answer.data
    outputs = {one["name"]: one for one in json.loads(answer.data)["outputs"]}
    from uplift_spark.serving.scorer import Scorer

    scorer = Scorer(house.registry.load(house.champion))
    batch = [one.uplift for of in scorer.effects([scorer.encoder.encode(row) for row in rows]) for one in of]
    assert outputs["uplift"]["data"] == batch and outputs["uplift"]["shape"] == [4, 2]
    assert refused.status == 400 and b"is missing" in refused.data
