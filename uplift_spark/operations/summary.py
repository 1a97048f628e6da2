"""What a person sees at the end of a campaign: the tables with their sizes, and questions to start with in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uplift_spark.config import Config
from uplift_spark.vocabulary import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from uplift_spark.lake.tables import Lake

_READING = ("select", "with", "from", "values", "table", "describe", "desc", "show", "explain")


def check_reads(query: str) -> None:
    """Raise ConfigError unless the query's first word is one of reading."""
    if not query.lstrip(" \n\t(").lower().startswith(_READING):
        raise ConfigError("uplift sql only reads: start the query with SELECT or WITH, DESCRIBE, SHOW, EXPLAIN")


def first_rows(lake: Lake, query: str, limit: int) -> pd.DataFrame:
    """First `limit` rows; what Spark says about a wrong query becomes one sentence, a ConfigError."""
    from pyspark.errors import PySparkException

    try:
        return lake.sql(query).limit(limit).toPandas()
    except PySparkException as error:
        raise ConfigError(f"the query does not run: {str(error).strip().splitlines()[0]}") from error


def table_sizes(lake: Lake) -> list[tuple[str, int, int]]:
    """(table, rows, newest Delta version) of every table in the lakehouse, by name."""
    return [(name, lake.read(name).count(), lake.version(name)) for name in lake.tables()]


def queries_to_try(config: Config, lift_run: str) -> list[str]:
    """Three questions of an analyst to the tables of one lift run; each stands between double quotes in a shell."""
    model = config.registry.name or config.campaign
    return [
        "SELECT treatment, bucket AS decile, n, uplift, uplift_lower, uplift_upper, roi FROM gold.lift_table "
        f"WHERE run_id = '{lift_run}' AND outcome = '{config.roles.outcome}' AND cut = 'decile' "
        "ORDER BY treatment, int(bucket)",
        "SELECT treatment, cut, bucket, n, uplift, uplift_lower, uplift_upper FROM gold.lift_table "
        f"WHERE run_id = '{lift_run}' AND outcome = '{config.roles.outcome}' AND cut LIKE 'segment:%' "
        "AND uplift_lower > 0 ORDER BY uplift DESC LIMIT 10",
        "SELECT treatment, count(*) AS units, avg(uplift) AS mean_uplift, count_if(uplift_lower > 0) AS sure "
        f"FROM gold.uplift_scores WHERE model_name = '{model}' GROUP BY treatment ORDER BY mean_uplift DESC",
    ]
