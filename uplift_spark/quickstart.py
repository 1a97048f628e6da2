"""A finished campaign in one file to its lift tables in one command: `uplift quickstart`.

The file is read and checked before Spark starts; what was guessed is said, and written to conf/NAME.yaml.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.config import load_config
from uplift_spark.errors import ConfigError
from uplift_spark.evaluation.report import interval, number
from uplift_spark.events.files import id_text, number_column, read_typed
from uplift_spark.events.guesses import Answers, Guesses, conf_text, guess_roles, plain_name
from uplift_spark.roles import Roles
from uplift_spark.runtime import ProgressCallback

if TYPE_CHECKING:
    import pandas as pd

    from uplift_spark.campaign import Campaign

_WRITTEN = "# Written by `uplift quickstart`; edit it, and run the jobs with --conf. "
_LEAK_ROWS = 50_000


def prepare_conf(
    path: str, answers: Answers, folder: Path, name: str | None, progress: ProgressCallback
) -> tuple[Path, Guesses]:
    """Read a file, guess, and write the configuration that follows.

    Args:
        path: a file, a folder of files or a pattern.
        answers: what the user said.
        folder: of the configuration.
        name: of the campaign; by default the file's.
        progress: is called with every guess.

    Returns:
        Path of the configuration, and the guesses.

    Raises:
        ConfigError: a column is not there, or the configuration was edited and would be overwritten.
        DataError: the file cannot be read, or its rows are no trial.
    """
    read = read_typed(path)
    for note in read.notes:
        progress(note)
    progress(f"{read.table.num_rows:,} rows, {read.table.num_columns} columns")
    guesses = guess_roles(read.table, answers)
    guesses = guesses.without(leaks_of(read.table, guesses, answers.keep))
    for line in guesses.report():
        progress(line)
    name = name or plain_name(re.sub(r"\.(csv|tsv|txt|parquet|dta|gz|zip|bz2|xz)", "", Path(path).name, flags=re.I))
    body = conf_text(guesses, name, {"path": path}, "lakehouse")
    conf = folder / f"{name}.yaml"
    _write_conf(conf, body)
    load_config(conf)
    return conf, guesses


def _write_conf(conf: Path, body: str) -> None:
    """Write the file, unless somebody has edited the one that is there."""
    if conf.exists():
        first, _, rest = conf.read_text().partition("\n")
        if not first.startswith(_WRITTEN) or not first.endswith(_mark(rest)):
            raise ConfigError(f"{conf} was edited: run its jobs with --conf {conf}, or choose another --name")
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(f"{_WRITTEN}{_mark(body)}\n{body}")


def _mark(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def leaks_of(table: pa.Table, guesses: Guesses, keep: tuple[str, ...]) -> dict[str, str]:
    """Features that predict the treatment, or order units as only the outcome can: {column: why it is no feature}."""
    from uplift_spark.events.leakage import find_leaks

    rows = table.slice(0, _LEAK_ROWS)
    name, column = next(iter(guesses.outcomes.items()))
    values = guesses.values.get(column)
    numbers = rows.column(column) if values is None else id_text(rows.column(column))
    outcome = (
        number_column(numbers, name)
        if values is None
        else pa.array([values.get(one) for one in numbers.to_pylist()], pa.float64())
    )
    arms = id_text(rows.column(guesses.treatment))
    columns: dict[str, Any] = {"_unit": pa.array(range(rows.num_rows)), "_arm": arms, "_outcome": outcome}
    for feature in guesses.features:
        cells = rows.column(feature)
        columns[feature] = cells if pa.types.is_string(cells.type) else number_column(cells, feature)
    sample = pa.table(columns)
    sample = sample.filter(pc.is_valid(sample.column("_arm")))
    leaks = find_leaks(sample, Roles("_unit", "_arm", "_outcome", guesses.features, next(iter(guesses.levels))))
    reasons = {
        one.feature: "follows from the outcome" if one.rule == "outcome_like" else "differs between the arms"
        for one in leaks.findings
        if one.feature not in keep
    }
    return reasons


def decision_text(lift: pd.DataFrame, metrics: pd.DataFrame, cost: Mapping[str, float], value: float | None) -> str:
    """What the hold-out says, level by level, in words: the average, whom, and from which price on it pays."""
    outcome = lift["outcome"].iloc[0]
    sentences = []
    for level in lift["treatment"].unique():
        mine = metrics[(metrics["outcome"] == outcome) & (metrics["treatment"] == level)].set_index("metric")
        ate, qini = mine.loc["ate"], mine.loc["qini"]
        bounds = interval(ate["lower"], ate["upper"])
        ranked = qini["lower"] > 0
        if ate["lower"] > 0:
            effect = f"{level} raises {outcome} by {number(ate['value'])} a unit (95 % interval {bounds})"
        elif ate["upper"] < 0:
            effect = (
                f"{level} lowers {outcome} by {number(-ate['value'])} a unit (95 % interval of the effect {bounds})"
            )
        else:
            effect = f"the hold-out does not show an average effect of {level} on {outcome} (95 % interval {bounds})"
        whom = "the model ranks who gains more" if ranked else "the hold-out does not show whom to prefer"
        sentences.append(f"{effect}; {whom}{_worth(lift, level, outcome, cost.get(level), value, ate)}.")
    return "\n".join(sentences)


def _worth(
    lift: pd.DataFrame, level: str, outcome: str, cost: float | None, value: float | None, ate: pd.Series
) -> str:
    if value is None:
        return "; --value and --cost say whether it pays"
    if cost is None:
        return f"; it pays on average below a cost of {number(value * ate['value'])} a unit"
    rows = lift[(lift["outcome"] == outcome) & (lift["treatment"] == level) & (lift["cut"] == "decile")]
    paying = rows[rows["uplift_lower"] * value > cost]["bucket"].astype(int).sort_values()
    if paying.empty:
        return f"; no decile is sure to bring more than its cost of {number(cost)} a unit"
    listed = ", ".join(map(str, paying))
    return f"; deciles {listed} are each sure to bring more than the cost of {number(cost)} a unit"


def run_quickstart(conf: Path, guesses: Guesses) -> None:
    """Run the jobs of a configuration in one session, and print the lift tables, a decision and where all lies.

    Raises as the jobs do.
    """
    from uplift_spark.console import run_jobs

    jobs: dict[str, Any] = {
        "ingest": partial(import_module("uplift_spark.jobs.ingest").run, replace=True),
        "features": import_module("uplift_spark.jobs.features").run,
        "train": import_module("uplift_spark.jobs.train").run,
        "score": import_module("uplift_spark.jobs.score").run,
        "lift": import_module("uplift_spark.jobs.lift").run,
    }
    outcome = next(iter(guesses.outcomes))
    if outcome in guesses.value and len(guesses.cost) == len(guesses.levels) - 1:
        jobs["policy"] = import_module("uplift_spark.jobs.policy").run
    run_jobs(jobs, conf, None, None, after=partial(_print_end, conf, guesses, list(jobs).index("lift")))


def _print_end(conf: Path, guesses: Guesses, lift: int, campaign: Campaign, results: list[Any]) -> None:
    from uplift_spark.console import out

    run_id = results[lift].run_id
    table, metrics = campaign.lift_table(run_id=run_id), campaign.metrics(run_id=run_id)
    outcome = next(iter(guesses.outcomes))
    for result in results[lift:]:
        out().print(f"\n{result.details.get('summary', '')}", soft_wrap=True)
    out().print("\nDecision", style="bold")
    out().print(decision_text(table, metrics, guesses.cost, guesses.value.get(outcome)), soft_wrap=True)
    out().print(f"\nconfiguration {conf}\npictures      {campaign.reports(run_id)}", soft_wrap=True)
    out().print(f"tables        {Path(campaign.config.lakehouse.path).resolve()}", soft_wrap=True)


def parsed_costs(options: list[str] | None) -> dict[str, float]:
    """{level: cost} of `LEVEL=COST`; a number alone is the cost of every level, under the key "".

    Raises ConfigError for anything else.
    """
    costs = {}
    for option in options or ():
        level, _, text = option.rpartition("=")
        try:
            costs[level] = float(text)
        except ValueError:
            raise ConfigError(f"--cost {option!r} must look like mail=.1, or .1 for every level") from None
    return costs
