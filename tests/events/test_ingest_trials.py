"""Reading a trial's file: types, missing values, and files that are refused."""

import gzip
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from uplift_spark.config import TrialConf, load_config
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.ingest import DATA_FOLDER, find, read_trial

CONF = Path(__file__).parents[2] / "conf"
TRIAL = TrialConf(
    kind="trial",
    file="trial.csv",
    sha256="",
    treatment="arm",
    outcomes=("bought",),
    attributes=("age", "city"),
    assigned_at=datetime(2024, 1, 1),
    missing=(-999,),
)


def _file(tmp_path, text, name="trial.csv"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_columns_are_typed_and_missing_is_null(tmp_path):
    text = "age,arm,bought,city,unused\n31,none,1,Rome,x\n-999, 5% ,,-999,y\n,none,-999.0,,z\ninf,NA,0,Oslo,\n"
    for name in ("trial.csv", "trial.csv.gz"):
        table = read_trial(_file(tmp_path, text, name), TRIAL)
        assert [str(t) for t in table.schema.types] == ["int64", "string", "double", "double", "string"]
        assert table.to_pydict() == {
            "_row": [1, 2, 3, 4],
            "arm": ["none", "5%", "none", None],
            "bought": [1.0, None, None, 0.0],
            "age": [31.0, None, None, float("inf")],
            "city": ["Rome", None, None, "Oslo"],
        }


def test_categories_that_resemble_numbers(tmp_path):
    path = _file(tmp_path, "arm,bought,age,city\nnone,1,31,10\n5%,0,32,20\n")
    assert read_trial(path, TRIAL)["city"].to_pylist() == [10.0, 20.0]
    assert read_trial(path, replace(TRIAL, categorical=("city",)))["city"].to_pylist() == ["10", "20"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("arm,bought,age,city\n", "no rows"),
        ("arm,bought,agee,city\nnone,1,2,x\n", r"no column 'age'.*did you mean 'agee'"),
        ("arm,bought,age,city,age\nnone,1,2,x,3\n", "2 columns named 'age'"),
        ("arm,bought,age,city\nnone,yes,2,x\n5%,no,2,x\n", "'bought' must hold numbers but 2 rows .*'yes': correct"),
        ("arm,bought,age,city\nnone,1,2,x\n5%,0,old,x\n", "'age' must hold numbers but 1 rows.*source.categorical"),
        ("arm,bought,age,city\nnone,1,2,x\nnone,1\n", "not a readable CSV"),
    ],
)
def test_unfit_files_are_refused_in_one_sentence(text, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read_trial(_file(tmp_path, text), TRIAL)
    assert "trial.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": ("age", "bought")}, "treatment or an outcome"),
        ({"attributes": ("age", "age")}, "twice"),
        ({"attributes": ("run_id",)}, "tables use themselves"),
        ({"attributes": ("zip code",)}, "plain name"),
        ({"categorical": ("street",)}, "not among source.attributes"),
    ],
)
def test_clashing_declarations_are_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_trial(tmp_path / "never_read.csv", replace(TRIAL, **change))


@pytest.mark.skipif(not os.environ.get(DATA_FOLDER), reason="UPLIFT_DATA is not set: the trials' files are not here")
@pytest.mark.parametrize(
    ("campaign", "units", "rates"),
    [
        ("hillstrom", {"none": 21_306, "mens": 21_307, "womens": 21_387}, {"none": 10.6, "mens": 18.3, "womens": 15.1}),
        (
            "karlan_list",
            {"none": 16_687, "1:1": 11_133, "2:1": 11_134, "3:1": 11_129},
            {"none": 1.79, "1:1": 2.07, "2:1": 2.26, "3:1": 2.27},
        ),
    ],
)
def test_published_counts_and_rates(campaign, units, rates):
    config = load_config(CONF / f"{campaign}.yaml")
    frame = read_trial(find(config.source), config.source).to_pandas()
    arms = frame[config.source.treatment].map(config.source.arms)
    assert arms.value_counts().to_dict() == units
    measured = 100 * frame.groupby(arms)[config.roles.outcome].mean()
    assert {arm: round(measured[arm], len(str(rate).split(".")[1])) for arm, rate in rates.items()} == rates
