"""One campaign: its configuration, its lakehouse, its models; names and versions of tables, splits, scores, results."""

from __future__ import annotations

import html
import math
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from uplift_spark.config import Config, load_config
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.evaluation.metrics import EvaluationSpec
from uplift_spark.evaluation.pictures import (
    budget_picture,
    calibration_picture,
    decile_picture,
    dose_picture,
    qini_picture,
)
from uplift_spark.evaluation.report import PageData, page_text, profile_of_frame, render_page
from uplift_spark.evaluation.spark import profile_of
from uplift_spark.evaluation.summary import NO_TRIAL_CAVEAT, direction_words, dose_words, lift_summary
from uplift_spark.events.guesses import check_columns_of
from uplift_spark.events.quickstart import (
    FrameOptions,
    answers_of,
    frame_table,
    prepare_conf,
    python_options,
    stage_frame,
)
from uplift_spark.lake.local_tables import NotLocal, local_tables
from uplift_spark.lake.queries import arrow_frame, query_rows
from uplift_spark.lake.schemas import DECISIONS_TABLE, RUN_LOG_TABLE, SCORES_TABLE, TRUTH_TABLE, gold_table
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake, absence
from uplift_spark.registry.models import CHAMPION, Registered, Registry, still_there
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT, Direction, benefit, benefit_name, checked_name
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id
from uplift_spark.sections.source import LONG_AGO, Simulation
from uplift_spark.spark_versions import few_rows, sql_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIMULATED_BYTES = 100  # of raw events per unit
_TIMED = ContextVar("_TIMED", default=False)  # whether a job of this process is being timed


@dataclass(frozen=True)
class Scored:
    """One scoring run: its model, and the Delta version of the training table whose units it scored."""

    model_name: str
    model_version: str
    run_id: str
    feature_version: int


class Campaign:
    """A campaign's configuration with the lakehouse and the registry that it names, and what its jobs have written.

    Results are those of the newest run; a frame of all units is a Spark frame (`.limit(n)`, `.toPandas()`), all others
    are pandas frames. A table that is not there yet is a DataError that names the verb to run.

    Args:
        conf: Path of the campaign's YAML file, or a configuration that is loaded already.
        lake: The lakehouse; by default the one that the configuration names, opened at its first use.
        overrides: Keys of the file that are replaced, as in ``["seed=3"]``; for a path alone.

    Raises:
        ConfigError: The file has an unknown key or a wrong value.
    """

    def __init__(self, conf: str | Path | Config, lake: Lake | None = None, overrides: Sequence[str] = ()) -> None:
        self.config = conf if isinstance(conf, Config) else load_config(Path(conf), tuple(overrides))
        self._lake = lake
        self._replaces = False

    def __repr__(self) -> str:
        house, source = self.config.lakehouse, self.config.source
        return f"<Campaign {self.name}: {'loaded' if source is None else source.kind} in {house.catalog or house.path}>"

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        treatment: str,
        outcome: str | Sequence[str],
        control: str | None = None,
        unit: str | None = None,
        name: str = "campaign",
        folder: str | Path = ".",
        progress: ProgressCallback = print,
        **options: Unpack[FrameOptions],
    ) -> Campaign:
        """Make a campaign of the rows of a finished one: `uplift quickstart` for a frame.

        What is not said is guessed, and `progress` says each guess with the argument that overrides it. The
        configuration goes into `folder`/conf/`name`.yaml, to be edited; the rows, with whatever ids they hold, into
        `folder`/lakehouse/inputs/`name`.parquet. `run` takes the campaign to its report. With another frame under the
        same name, `run` replaces the earlier rows.

        Args:
            frame: pandas or Arrow frame with one row per unit.
            treatment: column of the level that a unit got.
            outcome: column, or `column=value` where the outcome is whether a column has a value; of several the first
                is trained.
            control: level that the others are compared with.
            unit: column of the unit's id; by default one that looks like it, else the number of the row.
            name: of the campaign: letters, digits and underscores.
            folder: of conf/ and of the lakehouse.
            progress: is called with each guess.
            **options: see `events.quickstart.FrameOptions`: direction, value, cost, budget, propensity, feature,
                drop, randomised.

        Returns:
            The campaign; nothing has run yet, and Spark has not started.

        Raises:
            ConfigError: a column, a level or an option is not there, or somebody edited the configuration.
            DataError: the treatment has one level or too many, an outcome is no number, or no feature is left.
        """
        home = Path(folder)
        try:
            answers = answers_of(treatment, outcome, control, unit, options)
            checked_name(name, "campaign")
            check_columns_of(answers, frame_table(frame).column_names)
            rows = stage_frame(frame, home, name, progress)
            conf, _ = prepare_conf(rows, answers, home, name, lambda line: progress(python_options(line)))
        except (ConfigError, DataError) as error:
            raise type(error)(python_options(str(error))) from error
        progress(f"wrote {conf}")
        campaign = cls(conf)
        campaign._replaces = True
        return campaign

    def run(self, *verbs: str, progress: ProgressCallback = print) -> Campaign:
        """Run jobs one after another: those named, by default all from the source to the report.

        The whole line is ingest, features, nuisances where nobody randomised, train, score, lift, policy where costs
        and the outcome's value are known, and report. A job that has run with the same inputs adds nothing.

        Args:
            *verbs: of these jobs.
            progress: is called with each line of progress.

        Returns:
            This campaign, whose `lift_table()`, `plot`, `report()` and so on read what the jobs wrote.

        Raises:
            ConfigError: there is no such job in the line; else as the jobs.
        """
        from uplift_spark.jobs import whole_line

        jobs = self._jobs()
        if unknown := [verb for verb in verbs if verb not in jobs]:
            raise ConfigError(f"the line has no job {unknown[0]!r}: {hint(unknown[0], jobs)}")
        for verb in verbs or whole_line(self.config):
            with self.planned(verb):
                jobs[verb](self, partial(_with_verb, progress, verb))
        return self

    def job(self, verb: str, progress: ProgressCallback, **options: Any) -> JobResult:
        """Run one job that models come from or come into force by: of the line, refresh, compare or publish.

        Args:
            verb: The job.
            progress: is called with each line of progress.
            **options: of the job's `run`.

        Returns:
            Its result.
        """
        from uplift_spark.jobs import compare, publish, refresh

        jobs = {**self._jobs(), "refresh": refresh.run, "compare": compare.run, "publish": publish.run}
        with self.planned(verb):
            result: JobResult = jobs[verb](self, partial(_with_verb, progress, verb), **options)
        return result

    def _jobs(self) -> dict[str, Any]:
        from uplift_spark.jobs import features, ingest, lift, nuisances, policy, report, score, train

        modules = (features, nuisances, train, score, lift, policy, report)
        jobs: dict[str, Any] = {one.__name__.rpartition(".")[2]: one.run for one in modules}
        return {"ingest": partial(ingest.run, replace=self._replaces), **jobs}

    @contextmanager
    def planned(self, verb: str) -> Iterator[bool]:
        """Within the body Spark plans for the size of the campaign's data, see `Lake.planned`; `verb` is what runs.

        With `costs` in the configuration a row in gold.run_log says how long the body took.
        """
        source, coming = self.config.source, 0.0
        if verb == "ingest":
            coming = source.units * _SIMULATED_BYTES if isinstance(source, Simulation) else math.inf
        with self._timed(verb), self.lake.planned(coming) as few:
            yield few

    @contextmanager
    def _timed(self, verb: str) -> Iterator[None]:
        """Write how long the body took to gold.run_log; of jobs that run jobs themselves, of the outer one alone."""
        if self.config.costs is None or _TIMED.get():
            yield
            return
        token, started_at, state = _TIMED.set(True), datetime.now(UTC), "failed"
        since = monotonic()  # a clock that is set back gives no hours below 0
        try:
            yield
            state = "complete"
        finally:
            _TIMED.reset(token)
            times = {"started_at": started_at, "seconds": monotonic() - since}
            row = {CAMPAIGN: self.name, "job": verb.partition(" ")[0], **times}
            with suppress(Exception) if state == "failed" else nullcontext():  # what failed is said, not this
                rows = self.lake.filled(RUN_LOG_TABLE, [{**row, "state": state}])
                self.lake.write(RUN_LOG_TABLE, rows, f"{verb}-{uuid.uuid4().hex[:16]}")

    @property
    def name(self) -> str:
        """Name of the campaign."""
        return self.config.campaign

    @property
    def lake(self) -> Lake:
        """The lakehouse, in the session that is there, else in a local one."""
        if self._lake is None:
            self._lake = Lake(spark_session(self.config.lakehouse), self.config.lakehouse)
        return self._lake

    @contextmanager
    def closing(self) -> Iterator[Campaign]:
        """This campaign; a Spark session that it starts in the body is stopped at its end."""
        provided = SparkSession.getActiveSession() is not None
        try:
            yield self
        finally:
            if self._lake is not None and not provided:
                self._lake.spark.stop()
                self._lake = None

    def _without_spark(self, query: str, *tables: str) -> pa.Table | None:
        """Rows of a query by DuckDB; None where a session is there already and rows are not few, the lakehouse is no
        folder of this machine, or Spark is to do it. Raises DataError where one of the `tables` is not there."""
        local = local_tables(self.config.lakehouse)
        session = SparkSession.getActiveSession() if self._lake is None else self._lake.spark
        if local is None or (session is not None and not few_rows(session)):
            return None
        if absent := [table for table in tables if not local.exists(table)]:
            raise DataError(absence(absent[0], self.config.lakehouse))
        from uplift_spark.lake.duck import local_query  # its parser takes half a second to load

        try:
            return local_query(local, query)
        except NotLocal:
            return None

    @cached_property
    def registry(self) -> Registry:
        """Where the campaign's models are kept."""
        return Registry.of(self.config)

    def changed(self, config: Config) -> Campaign:
        """A campaign of another configuration in the same lakehouse."""
        return Campaign(config, self._lake)

    def run_id(self, job: str, **inputs: object) -> str:
        """Identity of a job's run: its name, the part of the configuration it depends on, and its inputs."""
        return derive_run_id(job, self.config, **inputs)

    def reports(self, run_id: str) -> Path:
        """Folder of a run's pictures: below `lakehouse.reports`, else in the lakehouse's folder, else (catalogs, URIs)
        below `reports` here."""
        house = self.config.lakehouse if self._lake is None else self._lake.lakehouse
        if house.reports is not None:
            return Path(house.reports) / self.name / run_id
        remote = house.catalog or (re.sub(r"[^\w.-]+", "_", house.path) if re.match(r"\w[\w+.-]+:", house.path) else "")
        return (Path("reports") / remote if remote else Path(house.path) / "reports") / self.name / run_id

    # ----------------------------------------------------------------------------------------------------------------
    # Tables and models that jobs start from.

    @property
    def training_table(self) -> str:
        """The table that models are trained on and units scored from."""
        return self.config.training_table

    def training_set(self, version: int | None = None, split: str | None = None) -> DataFrame:
        """Rows of the training table at a Delta version, the newest by default: all, or of one split (`train`,
        `holdout`)."""
        rows = self.lake.read(self.training_table, version)
        return rows if split is None else rows.where(F.col("split") == split)

    @property
    def champion(self) -> Registered:
        """The champion. Raises ConfigError without one."""
        return self.registry.find(self.config.model_name)

    @property
    def model_in_use(self) -> Registered:
        """The version that `registry.version` names, else the champion. Raises ConfigError without one."""
        return self.registry.find(self.config.model_name, self.config.registry.version or CHAMPION)

    def last_scored(self, version: int | None = None) -> Scored:
        """The last run that scored with the campaign's model: with this version, or the one that `registry.version`
        names, or the champion; where the champion has no scores, with any. Raises DataError when none did."""
        version = version or self.config.registry.version
        champion = self.registry.known(self.config.model_name) if version is None else None
        scored = None if champion is None else self._last_scored(champion.version)
        if scored is None:
            scored = self._last_scored(version)
        if scored is None:
            which = f"model {self.config.model_name!r}" + ("" if version is None else f" version {version}")
            raise DataError(f"{SCORES_TABLE} has no row of {which}: run `uplift score` with its conf")
        return scored

    def _last_scored(self, version: int | None) -> Scored | None:
        """See `last_scored`; None for a version, or for any."""
        name = self.config.model_name
        columns = ("model_name", "model_version", RUN_ID, "feature_version")
        names = sorted({name, self.registry.store.model(name)})
        of_version = "" if version is None else f" AND model_version = {sql_text(str(version))}"
        local_rows = self._without_spark(
            f"SELECT {', '.join(columns)}, max(scored_at) AS at FROM {SCORES_TABLE} "
            f"WHERE model_name IN ({', '.join(map(sql_text, names))}){of_version} "
            f"GROUP BY {', '.join(columns)} ORDER BY at DESC, {RUN_ID} LIMIT 1",
            SCORES_TABLE,
        )
        if local_rows is not None:
            runs: Any = next(iter(local_rows.to_pylist()), None)
        else:
            mine = self.lake.read(SCORES_TABLE).where(F.col("model_name").isin(names))
            if version is not None:
                mine = mine.where(F.col("model_version") == str(version))
            runs = mine.groupBy(*columns).agg(F.max("scored_at").alias("at")).orderBy(F.desc("at"), RUN_ID).first()
        if runs is None:
            return None
        return Scored(runs["model_name"], runs["model_version"], runs[RUN_ID], runs["feature_version"])

    def holdout(self, scored: Scored) -> DataFrame:
        """Hold-out rows of the training table as it was when it was scored."""
        return self.training_set(scored.feature_version, "holdout")

    def readable(self, scored: Scored) -> AbstractContextManager[None]:
        """Reading a hold-out whose files are gone, in the body, becomes a DataError that asks for new scores."""
        return still_there(self.training_table, scored.feature_version, "run `uplift score` on the table as it is now")

    def check_unseen(self, scored: Scored) -> bool:
        """True when the model was trained on none of the hold-out's units, False when nobody knows what it was trained
        on.

        A model trained on the same version of the training table cannot have seen its hold-out; otherwise units are
        compared. Raises DataError when the model was trained on some of them.
        """
        table = self.training_table
        try:
            model = self.registry.find(self.config.model_name, int(scored.model_version))
            ((source, trained),) = model.data_versions.items()
        except (ConfigError, ValueError):
            return False
        if (source, trained) == (table, scored.feature_version):
            return True
        trained_units = self.lake.read(source, trained).where(F.col("split") == "train").select(UNIT)
        overlap = self.holdout(scored).join(trained_units, UNIT, "left_semi").count()
        if overlap:
            raise DataError(
                f"{table} version {scored.feature_version} holds out {overlap} units that {scored.model_name} version "
                f"{scored.model_version} was trained on ({source} version {trained}): train and score again on one "
                "split"
            )
        return True

    def true_effects(self) -> DataFrame | None:
        """True effects on the outcome the model predicts; None when the campaign is not simulated."""
        if not self.lake.exists(TRUTH_TABLE):
            return None
        mine = (F.col(CAMPAIGN) == self.name) & (F.col("outcome") == self.config.roles.outcome)
        rows = self.lake.read(TRUTH_TABLE).where(mine)
        return None if rows.isEmpty() else rows

    @property
    def evaluation_spec(self) -> EvaluationSpec:
        """The evaluation that the configuration describes."""
        config, doses = self.config, self.config.roles.level_doses
        return EvaluationSpec(
            control=config.roles.control,
            outcomes=tuple(dict.fromkeys([config.roles.outcome, *config.lift.outcomes])),
            segments=config.lift.segments,
            bins=config.lift.bins,
            replicates=config.lift.replicates,
            seed=config.seed,
            order=tuple(sorted(doses, key=doses.__getitem__)),
            table=config.training_table,
            cluster=config.roles.cluster,
            direction=config.roles.direction,
        )

    @property
    def outcome_value(self) -> float:
        """Of one unit more of the outcome in a plan's objective, negative where less is better; ConfigError when profit
        needs it and it is not known."""
        outcome, values = self.config.roles.outcome, self.config.economics.value
        if self.config.policy.objective == "outcome":
            return benefit(1.0, self.config.roles.direction)
        if outcome not in values:
            raise ConfigError(
                f"the value of outcome {outcome!r} is not known: "
                f"set economics.value.{outcome}, or policy.objective to outcome"
            )
        return benefit(values[outcome], self.config.roles.direction)

    @property
    def gain_unit(self) -> str:
        """What gains of a plan are counted in, in words."""
        roles = self.config.roles
        return "money" if self.config.policy.objective == "profit" else benefit_name(roles.outcome, roles.direction)

    def fixed_costs(self, levels: tuple[str, ...]) -> list[float]:
        """Cost of treating one unit with each of these levels; ConfigError where one is unknown or negative."""
        costs = self.config.economics.cost
        if missing := [level for level in levels if not costs.get(level, -1.0) >= 0]:
            raise ConfigError(f"no cost of 0 or more is known of {', '.join(missing)}: set it in economics.cost")
        return [costs[level] for level in levels]

    # ----------------------------------------------------------------------------------------------------------------
    # What jobs have written: for notebooks.

    @property
    def lift_run(self) -> str:
        """Id of the lift run of the newest scores. Raises DataError when nothing was scored."""
        return self.run_id("lift", scores=self.last_scored())

    def lift_table(
        self,
        outcome: str | None = None,
        treatment: str | None = None,
        cut: str | None = None,
        run_id: str | None = None,
    ) -> pd.DataFrame:
        """Rows of gold.lift_table; `cut` is `all`, `decile` or `segment:<feature>`; `run_id` names an older run.

        Raises DataError when that run has written none, ConfigError for a value that does not occur.
        """
        return self._lift_result(gold_table("lift_table"), run_id, outcome=outcome, treatment=treatment, cut=cut)

    def metrics(
        self,
        outcome: str | None = None,
        treatment: str | None = None,
        metric: str | None = None,
        run_id: str | None = None,
    ) -> pd.DataFrame:
        """Rows of gold.uplift_metrics, such as those of metric `qini`. Raises like `lift_table`."""
        return self._lift_result(
            gold_table("uplift_metrics"), run_id, outcome=outcome, treatment=treatment, metric=metric
        )

    def curve(
        self, outcome: str | None = None, treatment: str | None = None, run_id: str | None = None
    ) -> pd.DataFrame:
        """Rows of gold.uplift_curve, by the share of units treated. Raises like `lift_table`."""
        return self._lift_result(gold_table("uplift_curve"), run_id, outcome=outcome, treatment=treatment)

    def drivers(
        self, outcome: str | None = None, treatment: str | None = None, run_id: str | None = None
    ) -> pd.DataFrame:
        """Rows of gold.lift_driver: what drives lift, in words with intervals. Raises like `lift_table`, also where
        the model has no drivers."""
        return self._lift_result(gold_table("lift_driver"), run_id, outcome=outcome, treatment=treatment)

    def scores(self, scored: Scored | None = None) -> DataFrame:
        """Rows of gold.uplift_scores, one a unit and treated level: of the last run, or of the one `scored` describes.

        Raises DataError when nothing was scored.
        """
        one = scored or self.last_scored()
        # The model's columns are named, too, so that partitions of other models are skipped.
        return self.lake.read(SCORES_TABLE).where(
            (F.col("model_name") == one.model_name)
            & (F.col("model_version") == one.model_version)
            & (F.col(RUN_ID) == one.run_id)
        )

    def decisions(self, run_id: str | None = None) -> DataFrame:
        """Rows of gold.policy_decisions, one a unit: of the campaign's newest plan, or of the run `run_id`.

        Raises DataError when nothing was decided.
        """
        run_id = run_id or self.plan_run()
        return self.lake.read(DECISIONS_TABLE).where((F.col(CAMPAIGN) == self.name) & (F.col(RUN_ID) == run_id))

    def plan_run(self, version: int | str | None = None) -> str:
        """Id of the campaign's newest plan, or of the newest by a model version. Raises DataError without one."""
        return self.newest_run(DECISIONS_TABLE, "policy", None if version is None else str(version))

    def report(self) -> CampaignReport:
        """The report of the newest lift run: a page (`html`), shown as such in a notebook; as text its tables. Raises
        like `lift_table`."""
        scored = self.last_scored()
        run_id = self.run_id("lift", scores=scored)
        lift, metrics = self.lift_table(run_id=run_id), self.metrics(run_id=run_id)
        outcomes = list(dict.fromkeys(lift["outcome"]))
        facts, economics = self._page_counts(scored, outcomes), self.config.economics
        data = PageData(
            self.name, self.config.roles.control, lift, self.curve(run_id=run_id), metrics,
            units=facts["units"],
            date=f"assigned from {facts['day']}" if facts["day"] not in (None, f"{LONG_AGO:%Y-%m-%d}") else "",
            plan=self._plan_curve(scored), **self._last_reading(), value=economics.value, cost=economics.cost,
            direction=self.config.roles.direction,
            rates=frozenset(c for i, c in enumerate(outcomes) if facts[f"rate_{i}"]),
            caveats=self._page_caveats(scored) + dose_words(metrics, self.config.roles.control),
            facts=self._page_facts(scored, run_id, facts["n"]),
        )  # fmt: skip
        with suppress(DataError):  # not every model has drivers, nor has every run looked for them
            data = replace(data, drivers=self.drivers(run_id=run_id))
        if data.best is not None:
            data = replace(data, profile=self._page_profile(scored, data.best.level))
        reading = direction_words(data.outcome, data.direction)
        tables = "\n".join([lift_summary(lift, metrics), *reading])
        return CampaignReport(render_page(data), tables, page_text(data))

    def _page_profile(self, scored: Scored, level: str) -> pd.DataFrame:
        """What the best and the worst tenth of a level's ranking are like."""
        columns, direction = self.config.unit_columns, self.config.roles.direction
        listed = ", ".join(f"h.`{name}` AS `{name}`" for name in columns)
        sign = "-" if benefit(1.0, direction) < 0 else ""
        local_rows = self._without_spark(
            f"SELECT {listed}, {sign}s.uplift AS benefit FROM {self.training_table} VERSION AS OF "
            f"{scored.feature_version} h JOIN {SCORES_TABLE} s ON h.{UNIT} = s.{UNIT} WHERE h.split = 'holdout' "
            f"AND s.{TREATMENT} = {sql_text(level)} AND s.model_name = {sql_text(scored.model_name)} "
            f"AND s.model_version = {sql_text(scored.model_version)} AND s.{RUN_ID} = {sql_text(scored.run_id)}",
            *(SCORES_TABLE, self.training_table),
        )
        if local_rows is not None:
            return profile_of_frame(local_rows.to_pandas(), level, columns)
        return profile_of(self.holdout(scored), self.scores(scored), level, columns, direction)

    def _page_counts(self, scored: Scored, outcomes: Sequence[str]) -> Row | dict[str, Any]:
        """In one pass: all units; of the hold-out its units `n`, first day, and whether an outcome is 0 or 1 only."""
        rates = "".join(
            f", bool_and(CASE WHEN split = 'holdout' THEN `{c}` IN (0, 1) END) AS rate_{i}"
            for i, c in enumerate(outcomes)
        )
        local_rows = self._without_spark(
            "SELECT count(*) AS units, count_if(split = 'holdout') AS n, "
            f"min(CASE WHEN split = 'holdout' THEN assigned_at END) AS day{rates} "
            f"FROM {self.training_table} VERSION AS OF {scored.feature_version}",
            self.training_table,
        )
        if local_rows is not None:
            facts: dict[str, Any] = local_rows.to_pylist()[0]
            return {**facts, "day": facts["day"] and f"{facts['day']:%Y-%m-%d}"}
        held = F.col("split") == "holdout"
        checks = [F.every(F.when(held, F.col(c).isin(0, 1))).alias(f"rate_{i}") for i, c in enumerate(outcomes)]
        day = F.date_format(F.min(F.when(held, F.col("assigned_at"))), "yyyy-MM-dd").alias("day")
        counts = (F.count(F.lit(1)).alias("units"), F.count_if(held).alias("n"))
        return self.training_set(scored.feature_version).agg(*counts, day, *checks).collect()[0]

    def _plan_curve(self, scored: Scored) -> pd.DataFrame:
        """Rows of gold.policy_curve of the model's newest plan; none where it made no plan with a budget."""
        try:
            run_id, curve = self.plan_run(scored.model_version), gold_table("policy_curve")
            rows = self._without_spark(f"SELECT * FROM {curve} WHERE {RUN_ID} = {sql_text(run_id)}", curve)
            if rows is not None:
                return rows.to_pandas()
            return self.lake.read(curve).where(F.col(RUN_ID) == run_id).toPandas()
        except DataError:
            return pd.DataFrame()

    def _last_reading(self) -> dict[str, Any]:
        """Verdict of the trial's newest reading, and its rows of gold.readout; none where it was not read."""
        mine = f"FROM {gold_table('experiment')} WHERE {CAMPAIGN} = {sql_text(self.name)} AND verdict IS NOT NULL"
        try:
            last = self.sql(f"SELECT {RUN_ID}, verdict, reason {mine} ORDER BY as_of DESC, {RUN_ID} LIMIT 1")
            if last.empty:
                return {}
            rows = self.sql(f"SELECT * FROM {gold_table('readout')} WHERE {RUN_ID} = {sql_text(last[RUN_ID][0])}")
        except (ConfigError, DataError):  # a table that is not there
            return {}
        return {"verdict": f"{last['verdict'][0]}: {last['reason'][0]}", "trial": rows}

    def _page_caveats(self, scored: Scored) -> list[str]:
        sentences = ["Simulated data: no real people."] if isinstance(self.config.source, Simulation) else []
        if self.config.nuisances is not None:
            sentences.append(NO_TRIAL_CAVEAT)
        if not self.check_unseen(scored):
            sentences.append("It is not known whether the model was trained on units of this hold-out.")
        return sentences

    def _page_facts(self, scored: Scored, lift_run: str, holdout: int) -> list[tuple[str, str]]:
        return [
            ("model", f"{scored.model_name} version {scored.model_version}"),
            ("hold-out", f"{holdout:,} units of all arms"),
            ("training set", f"{self.training_table}, Delta version {scored.feature_version}"),
            ("runs", f"{scored.run_id}, {lift_run}"),
            ("outcomes watched for", f"{self.config.labels.days(self.config.roles.outcome):g} days"),
            ("seed", str(self.config.seed)),
        ]

    @property
    def plot(self) -> CampaignPlots:
        """Pictures of the results."""
        return CampaignPlots(self)

    def sql(self, query: str) -> pd.DataFrame:
        """All rows of a query that only reads, without Spark where DuckDB gives the same and no session is there yet.

        Raises ConfigError for a query that does more, and for one that does not run.
        """
        rows = self._without_spark(query)
        return arrow_frame(query_rows(self.lake, query) if rows is None else rows)

    def _lift_result(self, table: str, run_id: str | None, **wanted: str | None) -> pd.DataFrame:
        run_id = run_id or self.lift_run
        rows = self._without_spark(f"SELECT * FROM {table} WHERE {RUN_ID} = {sql_text(run_id)}", table)
        frame = arrow_frame(self.lake.read(table).where(F.col(RUN_ID) == run_id).toArrow() if rows is None else rows)
        if frame.empty:
            raise DataError(f"{table} has no row of run {run_id}: run `uplift lift` with the conf of {self.name}")
        for column, value in wanted.items():
            if value is None:
                continue
            if value not in set(frame[column]):
                raise ConfigError(
                    f"{table} has no {column} {value!r} in run {run_id}: {hint(value, set(frame[column]))}"
                )
            frame = frame[frame[column] == value]
        return frame.loc[self._in_order(frame)].reset_index(drop=True)

    def _in_order(self, frame: pd.DataFrame) -> list[int]:
        """Index of the rows: outcomes as in the configuration, levels by dose, then as a reader expects the rest."""
        outcomes, doses = [self.config.roles.outcome, *self.config.lift.outcomes], self.config.roles.level_doses

        def place(row: dict[str, object]) -> tuple[object, ...]:
            level, cut, bucket = str(row[TREATMENT]), str(row.get("cut", "")), str(row.get("bucket", ""))
            outcome = outcomes.index(row["outcome"]) if row["outcome"] in outcomes else len(outcomes)
            number = int(bucket) if cut == "decile" else 0
            rest = (("all", "decile").index(cut) if cut in ("all", "decile") else 2, cut, number, bucket)
            dose = doses.get(level, 0.0)
            known = dose if isinstance(dose, tuple) else (dose,)
            last = (row.get("rank", 0), row.get("fraction", 0.0), str(row.get("metric", "")))
            return (outcome, known, level, *rest, *last)

        rows = dict(zip(frame.index, frame.to_dict("records"), strict=True))
        return sorted(rows, key=lambda index: place(rows[index]))

    def newest_run(self, table: str, job: str, model_version: str | None = None) -> str:
        """The campaign's run that wrote a table last, by its history; with `model_version` of this version's runs.

        Raises DataError, which names `job` as what to run, where there is none.
        """
        of_version = "" if model_version is None else f" AND model_version = {sql_text(model_version)}"
        mine = f"{CAMPAIGN} = {sql_text(self.name)}{of_version}"
        local_rows = self._without_spark(f"SELECT DISTINCT {RUN_ID} FROM {table} WHERE {mine}", table)
        local = local_tables(self.config.lakehouse)
        if local_rows is not None and local is not None:
            runs, history = set(local_rows[RUN_ID].to_pylist()), local.history(table)
        else:
            rows = self.lake.read(table).where(mine).select(RUN_ID).distinct().collect()
            runs, history = {row[RUN_ID] for row in rows}, [dict(commit.notes) for commit in self.lake.history(table)]
        for notes in history:
            if (run := notes.get("run_id")) in runs:
                return str(run)
        by = "" if model_version is None else f" by model version {model_version}"
        raise DataError(
            f"{table} has no run of campaign {self.name}{by} in its history: run `uplift {job}` with its conf"
        )

    def queries_to_try(self, lift_run: str, plan_run: str | None = None) -> list[str]:
        """Questions of an analyst to the tables of a lift run and of a plan; each stands between double quotes in a
        shell."""
        of_run = f"run_id = '{lift_run}' AND outcome = '{self.config.roles.outcome}'"
        falls = self.config.roles.direction == "decrease"
        helps, order = ("uplift_upper < 0", "") if falls else ("uplift_lower > 0", " DESC")
        chosen = f"run_id = '{plan_run}' AND treatment <> '{self.config.roles.control}'"
        plan = "SELECT unit_id, treatment, gain, cost FROM gold.policy_decisions WHERE"
        return [
            *([f"{plan} {chosen} ORDER BY gain DESC LIMIT 10"] if plan_run else []),
            "SELECT treatment, bucket AS decile, n, uplift, uplift_lower, uplift_upper, roi FROM gold.lift_table "
            f"WHERE {of_run} AND cut = 'decile' ORDER BY treatment, int(bucket)",
            "SELECT treatment, cut, bucket, n, uplift, uplift_lower, uplift_upper FROM gold.lift_table "
            f"WHERE {of_run} AND cut LIKE 'segment:%' AND {helps} ORDER BY uplift{order} LIMIT 10",
            f"SELECT treatment, count(*) AS units, avg(uplift) AS mean_uplift, count_if({helps}) AS sure "
            f"FROM gold.uplift_scores WHERE model_name = '{self.config.model_name}' GROUP BY treatment "
            f"ORDER BY mean_uplift{order}",
        ]


@dataclass(frozen=True)
class CampaignReport:
    """A campaign's report: `html`, one page without links; `tables`, its figures as text; `decision`, in sentences."""

    html: str
    tables: str
    decision: str

    def __str__(self) -> str:
        return self.tables

    def __repr__(self) -> str:
        return self.decision

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.html)}" style="width:100%;height:900px;border:0"></iframe>'

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `folder`/report.html and latest.html beside the folder; another report that is there already stays.

        Returns:
            The paths of both.
        """
        number, path = 1, folder / "report.html"
        while path.exists() and path.read_text(encoding="utf-8") != self.html:
            number += 1
            path = folder / f"report_{number}.html"
        latest = folder.parent / "latest.html"
        for target in (path, latest):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")  # a killed run leaves no half page that looks like another report
            part.write_text(self.html, encoding="utf-8")
            part.replace(target)
        return path, latest


def _with_verb(progress: ProgressCallback, verb: str, message: str) -> None:
    progress(f"{verb:<9} {message}")


@dataclass(frozen=True)
class CampaignPlots:
    """Pictures of a campaign's newest results as matplotlib figures; each raises like the frame it is drawn from.

    Pictures of one outcome are of the predicted one by default; shares of units are shown in percentage points.
    """

    campaign: Campaign

    def qini(self, outcome: str | None = None, run_id: str | None = None) -> Figure:
        """Gain against the share of units treated, with 95 % bands."""
        outcome, run_id = self._of(outcome, run_id)
        curve = self.campaign.curve(outcome, run_id=run_id)
        metrics, direction = self.campaign.metrics(outcome, run_id=run_id), self._direction(outcome)
        return qini_picture(curve, metrics, self._is_rate(outcome), direction=direction)

    def deciles(self, outcome: str | None = None, run_id: str | None = None) -> Figure:
        """Uplift by decile of the prediction, with 95 % intervals."""
        outcome, run_id = self._of(outcome, run_id)
        return decile_picture(self.campaign.lift_table(outcome, run_id=run_id), self._is_rate(outcome))

    def calibration(self, run_id: str | None = None) -> Figure:
        """Observed against predicted uplift by decile, of the outcome that the model predicts."""
        outcome, run_id = self._of(None, run_id)
        lift = self.campaign.lift_table(outcome, run_id=run_id)
        return calibration_picture(lift, self.campaign.metrics(outcome, run_id=run_id), self._is_rate(outcome))

    def doses(self, outcome: str | None = None, run_id: str | None = None) -> Figure:
        """Uplift by dose, for every segment. Raises ConfigError when levels have no doses, or several each."""
        roles = self.campaign.config.roles
        doses = {level: dose for level, dose in roles.level_doses.items() if isinstance(dose, float)}
        if len(doses) < 3:
            raise ConfigError("a picture by dose needs two treated levels with one dose each: see roles.dose")
        outcome, run_id = self._of(outcome, run_id)
        return dose_picture(
            self.campaign.lift_table(outcome, run_id=run_id), doses, roles.control, self._is_rate(outcome)
        )

    def budget(self, run_id: str | None = None) -> Figure:
        """Gain of plans against their cost, and the plan itself. Raises DataError for a plan without a budget."""
        campaign = self.campaign
        decisions = campaign.decisions(run_id)
        plan = decisions.agg(F.first(RUN_ID), F.sum("cost"), F.sum("gain")).collect()[0]
        curve = campaign.lake.read(gold_table("policy_curve")).where(F.col(RUN_ID) == plan[0]).toPandas()
        if curve.empty:
            raise DataError(f"run {plan[0]} has no curve: set policy.budget and run `uplift policy`")
        return budget_picture(curve, campaign.gain_unit, plan[1], plan[2])

    def _of(self, outcome: str | None, run_id: str | None) -> tuple[str, str]:
        return outcome or self.campaign.config.roles.outcome, run_id or self.campaign.lift_run

    def _direction(self, outcome: str) -> Direction:
        return self.campaign.evaluation_spec.direction_of(outcome)

    def _is_rate(self, outcome: str) -> bool:
        """Whether the outcome is 0 or 1 for every unit of the hold-out."""
        rows = self.campaign.holdout(self.campaign.last_scored())
        return rows.where(~F.col(outcome).isin(0, 1)).isEmpty()
