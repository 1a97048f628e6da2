"""The examples of docs/serving.md run, against a service with the units they name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from openfeature import api

from tests.serving.published import config_of, publish, running
from tests.serving.test_tokens import add_key
from uplift_spark.serving.tokens import verified_decision

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8080"


def blocks(kind: str) -> list[str]:
    """Examples of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def service(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("page")
    add_key(folder / "keys", "1.pem")
    config = config_of(folder, exploration=0.2, signing={"keys": str(folder / "keys")})
    publish(config, *trained, 10)
    with running(config) as service:
        yield service


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_curl_example_is_answered(service):
    answers = []
    for block in blocks("bash"):
        command = block.replace(ADDRESS, service.url)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        answers.append(json.loads(done.stdout))
    assert len(answers) == 7 and not any("error" in answer for answer in answers)
    shown = [json.loads(block) for block in blocks("json")]
    assert set(answers[0]) == set(shown[0]) and set(answers[0]["answers"][0]) == set(shown[0]["answers"][0])
    assert set(answers[0]["answers"][0]["effects"][0]) == set(shown[0]["answers"][0]["effects"][0])
    assert set(answers[2]["decisions"][0]) == set(shown[1]["decisions"][0])
    token, jwks = answers[5]["decisions"][0]["token"], answers[6]
    assert verified_decision(token, jwks, "spring", "u000001")["jti"] == "visit-20"


def test_the_python_examples_run(service):
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block.replace(ADDRESS, service.url), names)
    api.clear_providers()
    assert names["decision"]["logged"] and len(names["effects"]) == 2  # type: ignore[index,arg-type]
    details = names["details"]
    assert details.variant == names["level"] and details.value is (names["level"] != "none")  # type: ignore[attr-defined]
    assert details.flag_metadata["request_key"] == "visit-19" and details.error_code is None  # type: ignore[attr-defined]
