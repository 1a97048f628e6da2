"""The examples of docs/serving.md run, against a service with the units they name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.published import config_of, publish, running

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8080"


def blocks(kind: str) -> list[str]:
    """Examples of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def service(tmp_path_factory, trained):
    config = config_of(tmp_path_factory.mktemp("page"), exploration=0.2)
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
    assert len(answers) == 5 and not any("error" in answer for answer in answers)
    shown = [json.loads(block) for block in blocks("json")]
    assert set(answers[0]) == set(shown[0]) and set(answers[0]["answers"][0]) == set(shown[0]["answers"][0])
    assert set(answers[0]["answers"][0]["effects"][0]) == set(shown[0]["answers"][0]["effects"][0])
    assert set(answers[2]["decisions"][0]) == set(shown[1]["decisions"][0])


def test_the_python_example_runs(service):
    (block,) = blocks("python")
    names: dict[str, object] = {}
    exec(block.replace(ADDRESS, service.url), names)
    assert names["decision"]["logged"] and len(names["effects"]) == 2  # type: ignore[index,arg-type]
