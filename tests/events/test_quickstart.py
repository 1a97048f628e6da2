"""From a finished campaign to its configuration: frames, pipes, Delta folders, and what leaks do to it. No Spark."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from uplift_spark import cli
from uplift_spark.campaign import Campaign
from uplift_spark.config import load_config
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.guesses import Answers
from uplift_spark.events.quickstart import (
    campaign_name,
    check_header,
    frame_table,
    is_table,
    prepare_conf,
    python_options,
    stage_stream,
)
from uplift_spark.jobs import DEMO_JOBS, whole_line

N = 3000


def shop(seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    arm, x = rng.choice(["none", "mail"], N), rng.normal(size=N)
    columns = {
        "group": arm,
        "bought": rng.integers(0, 4, N) == 0,
        "days": x.round(3),
        "shop": rng.choice(["a", "b"], N),
    }
    return pd.DataFrame({"customer_id": np.arange(N) + 100, **columns})


def from_frame(folder: Path, frame: Any = None, **options: Any) -> tuple[Campaign, list[str]]:
    said: list[str] = []
    rows = shop() if frame is None else frame
    arguments = {"treatment": "group", "outcome": "bought", "folder": folder, "progress": said.append, **options}
    return Campaign.from_frame(rows, **arguments), said


def test_a_frame_becomes_the_campaign_that_its_file_would(tmp_path: Path) -> None:
    campaign, said = from_frame(tmp_path, name="spring", value=20, cost={"mail": 0.5})
    conf = tmp_path / "conf" / "spring.yaml"
    saved = tmp_path / "lakehouse" / "inputs" / "spring.parquet"
    assert campaign.config == load_config(conf) and campaign.config.source.path == str(saved)
    assert pq.read_table(saved).to_pandas().equals(shop())
    assert campaign.config.roles.features == ("days", "shop") and campaign.config.source.unit == "customer_id"
    assert campaign.config.lakehouse.path == str(tmp_path / "lakehouse")
    assert repr(campaign) == f"<Campaign spring: table in {tmp_path / 'lakehouse'}>"
    assert "control: none (control= says otherwise)" in said and not [line for line in said if "--" in line]
    shop().to_csv(tmp_path / "spring.csv", index=False)
    answers = Answers("group", ("bought",), value=20.0, cost={"mail": 0.5})
    other, _ = prepare_conf(str(tmp_path / "spring.csv"), answers, tmp_path / "file", None, lambda line: None)
    of_file, of_frame = (yaml.safe_load(path.read_text()) for path in (other, conf))
    assert of_file["source"].pop("path") != of_frame["source"].pop("path")
    assert of_file.pop("lakehouse") != of_frame.pop("lakehouse") and of_file == of_frame


def test_frames_of_every_kind(tmp_path: Path) -> None:
    frame = shop()
    assert frame_table(pa.Table.from_pandas(frame, preserve_index=False)).equals(frame_table(frame))
    assert frame_table(frame.set_index("customer_id")).column_names[0] == "customer_id"
    assert frame_table(frame.sample(frac=1, random_state=1)).column_names == list(frame)  # numbers of rows are no data
    with pytest.raises(DataError, match="a column mixes types"):
        frame_table(pd.DataFrame({"a": [1, "x"]}))
    with pytest.raises(DataError, match="several columns 'a'"):
        frame_table(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(DataError, match="0 rows"):
        frame_table(frame[:0])
    with pytest.raises(ConfigError, match="not a str"):
        frame_table("customers.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"treatment": "grup"}, "no column 'grup': did you mean 'group'"),
        ({"control": "Mial"}, "^control='Mial' is no level"),
        ({"cost": {"Mial": 1.0}}, "^cost= names 'Mial'"),
        ({"outcome": ["bought", "bouhgt"]}, "no column 'bouhgt'"),
        ({"values": 3}, "no option 'values': did you mean 'value'"),
        ({"name": "spring sale"}, "campaign 'spring sale' is not a plain name"),
        ({"unit": "group"}, "'group' cannot be two of"),
    ],
)
def test_mistakes_are_one_sentence_about_the_argument(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_frame(tmp_path, **options)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)
    assert not (tmp_path / "conf").exists()


def test_a_configuration_that_was_edited_is_kept(tmp_path: Path) -> None:
    from_frame(tmp_path)
    from_frame(tmp_path, shop(seed=4))
    conf = tmp_path / "conf" / "campaign.yaml"
    conf.write_text(conf.read_text() + "seed: 3\n")
    with pytest.raises(
        ConfigError, match=r"was edited: `uplift demo` with its path runs it as it is, or choose another name=$"
    ):
        from_frame(tmp_path)


@pytest.mark.parametrize("mistake", ["column", "level", "edited"])
def test_a_mistake_costs_no_rows_of_before(tmp_path: Path, mistake: str) -> None:
    from_frame(tmp_path)
    conf, inputs = tmp_path / "conf" / "campaign.yaml", tmp_path / "lakehouse" / "inputs"
    if mistake == "edited":
        conf.write_text(conf.read_text() + "seed: 3\n")
    before = {path: path.read_bytes() for path in (conf, *inputs.iterdir())}
    wrong: dict[str, Any] = {"column": {"outcome": "bouhgt"}, "level": {"control": "Mial"}, "edited": {}}[mistake]
    with pytest.raises(ConfigError):
        from_frame(tmp_path, shop(seed=4), **wrong)
    assert {path: path.read_bytes() for path in (conf, *inputs.iterdir())} == before


def test_messages_name_what_came_in_not_the_file_it_is_in(tmp_path: Path) -> None:
    staged = stage_stream(io.BytesIO(b'a,b\n1,2\n"3,4\n'), tmp_path, "stdin")
    with pytest.raises(DataError, match="standard input") as caught:
        prepare_conf(staged, Answers("a", ("b",)), tmp_path, "stdin", lambda line: None)
    assert ".part" not in str(caught.value) and not list(staged.part.parent.iterdir())


def test_options_in_words_of_python() -> None:
    assert python_options("(--drop COLUMN leaves one out)") == "(drop=[COLUMN] leaves one out)"
    assert python_options("unit: the number of the row (--unit names a column)") == (
        "unit: the number of the row (unit= names a column)"
    )
    assert python_options("use --not-randomised, or --value 3") == "use randomised=False, or value=3"
    assert python_options("--direction increase says otherwise") == 'direction="increase" says otherwise'


def test_the_direction_goes_into_the_configuration(tmp_path: Path) -> None:
    frame = shop()
    frame["complaints"] = np.arange(len(frame)) % 5  # a number, and no yes or no
    options: dict[str, Any] = {"outcome": "complaints", "folder": tmp_path, "value": 3.0, "progress": lambda _: None}
    guessed = Campaign.from_frame(frame, "group", name="guessed", **options)
    assert guessed.config.roles.direction == "decrease" and guessed.outcome_value == -3.0
    text = (tmp_path / "conf" / "guessed.yaml").read_text()
    assert "  direction: decrease\n" in text and "(of complaints one less)" in text
    chosen = Campaign.from_frame(frame, "group", name="chosen", direction="increase", **options)
    assert chosen.config.roles.direction == "increase" and chosen.outcome_value == 3.0
    assert "direction:" not in (tmp_path / "conf" / "chosen.yaml").read_text()
    with pytest.raises(ConfigError, match="direction='down' is neither increase nor decrease"):
        Campaign.from_frame(frame, "group", direction="down", **options)


def test_the_line_of_a_campaign(tmp_path: Path) -> None:
    plain, _ = from_frame(tmp_path)
    assert whole_line(plain.config) == DEMO_JOBS
    priced, _ = from_frame(tmp_path, name="priced", value=20, cost=0.5)
    assert whole_line(priced.config) == (*DEMO_JOBS[:-1], "policy", "report")
    observed, _ = from_frame(tmp_path, name="observed", randomised=False)
    assert whole_line(observed.config)[2:4] == ("nuisances", "train")
    assert observed.config.leakage.randomised is False and observed.config.nuisances is not None
    with pytest.raises(ConfigError, match="no job 'scores': did you mean 'score'"):
        plain.run("scores")


def test_data_of_no_trial_are_called_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frame = shop().assign(loyal=rng.normal(size=N))
    frame["group"] = np.where(frame["loyal"] + rng.normal(size=N) > 0, "mail", "none")
    campaign, said = from_frame(tmp_path, frame)
    (warning,) = [line for line in said if line.startswith("warning")]
    assert "not look like a randomised trial: loyal tells who was treated" in warning and "randomised=False" in warning
    assert "loyal" not in campaign.config.roles.features
    campaign, said = from_frame(tmp_path, frame, name="observed", randomised=False)
    assert "loyal" in campaign.config.roles.features and not [line for line in said if line.startswith("warning")]
    kept, _ = from_frame(tmp_path, frame, name="kept", feature="loyal")
    assert kept.config.leakage.allow == {"loyal": "kept by --feature"}  # else `features` would refuse it
    with pytest.raises(DataError, match="no feature is left: this does not look like a randomised trial"):
        from_frame(tmp_path, frame[["group", "bought", "loyal"]], name="nothing")
    p = 1 / (1 + np.exp(-1.7 * frame["loyal"]))
    frame["group"] = np.where(rng.random(N) < p, "mail", "none")
    frame["p"] = np.where(frame["group"] == "mail", p, 1 - p)
    logged, said = from_frame(tmp_path, frame, name="logged", propensity="p")
    assert "loyal" in logged.config.roles.features and not [line for line in said if line.startswith("warning")]


def test_a_propensity_of_the_treatment_is_refused_before_a_configuration_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    p = rng.uniform(0.2, 0.6, N)
    frame = shop().assign(group=np.where(rng.random(N) < p, "mail", "none"), p=p)
    with pytest.raises(DataError, match=r"column 'p' is not the probability of the level .* [\d.]+ times in none, and"):
        from_frame(tmp_path, frame, name="wrong", propensity="p")
    assert not (tmp_path / "conf").exists()
    right = frame.assign(p=np.where(frame["group"] == "mail", p, 1 - p))
    campaign, _ = from_frame(tmp_path, right, name="right", propensity="p")
    assert campaign.config.source.propensity == "p"


def test_what_is_piped_in_is_kept_where_the_line_finds_it(tmp_path: Path) -> None:
    staged = stage_stream(io.BytesIO(b"a,b\n1,2\n"), tmp_path, "stdin")
    assert staged.path == tmp_path / "lakehouse" / "inputs" / "stdin.csv" and not staged.path.exists()
    assert staged.part.read_bytes() == b"a,b\n1,2\n"
    with pytest.raises(DataError, match="nothing came in on standard input"):
        stage_stream(io.BytesIO(b"\n"), tmp_path, "stdin")


def delta_folder(folder: Path, *columns: str) -> Path:
    log = folder / "_delta_log"
    log.mkdir(parents=True)
    schema = {"type": "struct", "fields": [{"name": name, "type": "string"} for name in columns]}
    actions = [{"protocol": {}}, {"metaData": {"id": "x", "schemaString": json.dumps(schema)}}]
    (log / f"{0:020}.json").write_text("\n".join(map(json.dumps, actions)))
    (log / f"{1:020}.json").write_text(json.dumps({"add": {"path": "part.parquet"}}))
    return folder


def test_tables_are_told_from_files_and_checked_before_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    delta_folder(tmp_path / "spring", "group", "bought")
    tables = ["spring", "s3://bucket/spring", "main.sales.spring", "sales.spring"]
    files = ["spring.csv", "data/spring.csv.gz", "spring", "a*.parquet", "spring.v2.parquet"]
    assert [is_table(one) for one in tables] == [True] * 4
    monkeypatch.chdir(tmp_path.parent)
    assert [is_table(one) for one in files] == [False] * 5
    with pytest.raises(ConfigError, match="no column 'grop': did you mean 'group'"):
        check_header(str(tmp_path / "spring"), Answers("grop", ("bought",)))
    check_header(str(tmp_path / "spring"), Answers("group", ("bought",)))
    check_header("main.sales.spring", Answers("grop", ("bought",)))  # its columns are known to the catalog alone
    assert [campaign_name(one) for one in ("x/spring/", "main.sales.spring", "a/b.csv.gz")] == ["spring", "spring", "b"]


def test_a_pipe_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = shop().to_csv(index=False, sep=";").encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    line = "uplift quickstart - --treatment group --outcome bought --name spring --conf-only"
    monkeypatch.setattr("sys.argv", line.split())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    assert load_config(tmp_path / "conf" / "spring.yaml").source.path == "lakehouse/inputs/spring.csv"
    assert (tmp_path / "lakehouse" / "inputs" / "spring.csv").read_bytes() == content
