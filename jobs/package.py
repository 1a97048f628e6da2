"""Write files that run the service elsewhere: an image, Kubernetes, Compose, a function of a cloud, KServe.

Reads the published version, its model's entry in the registry and gold.uplift_metrics; writes a folder, no table. A
model version of which git version, environment or evaluation is not known is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import DataError
from uplift_spark.monitoring.files import monitoring_texts
from uplift_spark.monitoring.prometheus import ScrapeTargets
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, derive_run_id, no_progress, write_files
from uplift_spark.serving.packaging import (
    CONF_FILE,
    METRICS_KEY_FILE,
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
    source_files,
)
from uplift_spark.serving.store import Manifest, check_plain_ids, open_version, serving_folder

READS_RESULTS = True  # so Spark starts only where DuckDB cannot read them

_SERVERLESS = '''"""What the platform calls; its image or archive holds the pinned requirements and campaign.yaml."""

import json
import os

os.environ.setdefault("UPLIFT_SERVING", json.dumps([os.environ.get("UPLIFT_CONF", "{conf}"), []]))

from uplift_spark.serving.serverless import handler  # noqa: E402

__all__ = ["handler"]
'''
_SERVER_ONLY = frozenset({"uvicorn", "httptools", "h11"})
"""Distributions that listen on a port, which a function has no use for."""


def options(
    to: Annotated[Path, typer.Option("--to", help="Folder to write to.", show_default=False)],
) -> dict[str, Any]:
    """Options of this verb's own."""
    return {"to": to}


def evaluation_of(campaign: Campaign, version: int) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Figures of a model version on the hold-out, of the outcome that it serves.

    Args:
        campaign: Whose model it is.
        version: Of the model.

    Returns:
        {level: {metric: (value, lower, upper)}}; empty where it was not evaluated.
    """
    try:
        run_id = campaign.run_id("lift", scores=campaign.last_scored(version))
        rows = campaign.metrics(outcome=campaign.config.roles.outcome, run_id=run_id)
    except DataError:
        return {}
    figures: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in rows[rows["model_version"] == str(version)].to_dict("records"):
        values = tuple(float(row[name]) for name in ("value", "lower", "upper"))
        if values[0] == values[0]:
            figures.setdefault(str(row["treatment"]), {})[str(row["metric"])] = values  # type: ignore[assignment]
    return figures


def packaged_version(campaign: Campaign, manifest: Manifest) -> PackagedVersion:
    """What is on record about the model of a published version. Raises DataError where something mandatory is not."""
    model = campaign.registry.find(campaign.config.model_name, int(manifest.model["version"]))
    known = PackagedVersion(
        model.name,
        model.version,
        model.sha256,
        model.git_version,
        campaign.registry.environment(model),
        evaluation_of(campaign, model.version),
    )
    known.check()
    return known


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, to: Path
) -> JobResult:
    """Write the files. Raises DataError where nothing is published, or a model of which too little is known."""
    config = campaign.config
    check_plain_ids(config)
    folder = serving_folder(config)
    version = open_version(folder, config.serving.redis)
    version.units.close()
    progress(f"reading what is known of {version.manifest.model['name']} version {version.manifest.model['version']}")
    known = packaged_version(campaign, version.manifest)
    installed = installed_closure()
    facts = known.facts(version.manifest.version, installed)
    source = source_files()
    image = f"{config.serving.package.image}:{re.sub(r'[^A-Za-z0-9_.-]', '-', code_version())}"
    notes = {
        "uplift/model": f"{known.name} version {known.version}",
        "uplift/model-sha256": known.sha256,
        "uplift/model-code": known.git_version,
        "uplift/published": version.manifest.version,
    }
    cluster = Cluster(config, image, notes)
    files: dict[str, str | bytes] = {
        **source,
        **_image_files(campaign, installed, bool(source)),
        "model.json": json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n",
        **cluster.files(),
        **cluster.kserve_files(version, facts),
        "compose.yaml": compose_text(config, image, folder),
        "compose/campaign.yaml": compose_conf(config),
        **_monitoring(campaign),
    }
    write_files(to, files)
    run_id = run_id or derive_run_id("package", facts, image=image)
    differs = ", ".join(f"{name} {then} then, {now} here" for name, (then, now) in facts["differs"].items())
    return JobResult.of(
        "package", run_id, model=known.name, version=known.version, image=image, files=len(files), folder=str(to),
        other_versions=differs or "none",
    )  # fmt: skip


def _image_files(campaign: Campaign, installed: Mapping[str, str], from_source: bool) -> dict[str, str | bytes]:
    conf, port = campaign.config.serving.package, campaign.config.serving.port
    events = {name: version for name, version in installed.items() if name.lower() not in _SERVER_ONLY}
    return {
        "Dockerfile": dockerfile_text(conf, port, from_source),
        "Dockerfile.mlserver": mlserver_dockerfile_text(conf, from_source),
        ".dockerignore": "*\n!requirements.txt\n!source\n!kserve/requirements.txt\n",
        "requirements.txt": requirements_text(installed, from_source),
        "environment.yaml": conda_text(installed, from_source),
        "kserve/requirements.txt": mlserver_requirements(conf, installed),
        "serverless/requirements.txt": requirements_text(events, from_source),
        "serverless/handler.py": _SERVERLESS.format(conf=CONF_FILE),
    }


def _monitoring(campaign: Campaign) -> dict[str, str | bytes]:
    """Prometheus' configuration and rules, as `uplift monitoring-files` writes them, for the names in Compose."""
    port, nodes = campaign.config.serving.port, campaign.config.serving.package.nodes
    targets = ScrapeTargets(nodes, {campaign.name: f"uplift:{port}"}, METRICS_KEY_FILE, "alertmanager:9093")
    return {f"monitoring/{name}": text for name, text in monitoring_texts([campaign.config], targets)[0].items()}


if __name__ == "__main__":
    main_job(run, options)
