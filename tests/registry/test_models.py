"""The registry: what is refused, what is found again, and that a changed file is never loaded nor executed."""

import ast
import hashlib
import hmac
import json
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import uplift_spark
from uplift_spark.config import Lakehouse, Signature
from uplift_spark.errors import ConfigError, EnvironmentProblem, ModelFileError
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.registry import models as mlflow_store
from uplift_spark.registry import models as registry_module
from uplift_spark.registry.models import Origin, Registered, Registry, log_facts
from uplift_spark.registry.store import Store, open_store
from uplift_spark.roles import EFFECT_COLUMNS, Roles

ROLES = Roles("unit_id", "treatment", "visit", ("recency", "zip"), control="none")
KINDS = {"unit_id": "string", "treatment": "string", "visit": "double", "recency": "double", "zip": "string"}
ORIGIN = Origin("train-1", ROLES, KINDS, {"silver.training_spring": 3}, 3, "abc123", {"n_trees": 8, "seed": 7})


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)
    n = 600
    arm = rng.integers(0, 2, n)
    recency = rng.uniform(0, 12, n)
    return pa.table(
        {
            "unit_id": [f"u{i}" for i in range(n)],
            "treatment": np.where(arm, "5%", "none"),
            "visit": arm * (recency < 6) + rng.normal(size=n),
            "recency": recency,
            "zip": pa.array([None if i % 7 == 0 else f"z{i % 3}" for i in range(n)]),
        }
    )


@pytest.fixture(scope="module")
def forest(rows):
    return fit_table(rows, ROLES, Params(n_trees=8, seed=3))


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """One store for the module: MLflow takes seconds to create its tables. The folder's name is awkward on purpose."""
    return Registry(open_store(Lakehouse(path=str(tmp_path_factory.mktemp("lake") / "a b#é"))))


def logged(registry, forest, name, run_id="train-1") -> Registered:
    return registry.log_model(name, forest.to_bytes(), replace(ORIGIN, run_id=run_id), *log_facts(forest, 1.5))


def artifact(registry, model) -> Path:
    """The registered forest's file on disk."""
    run = registry.store.client().get_run(model.source_run)
    return Path(unquote(urlsplit(run.info.artifact_uri).path)) / "model" / "data" / "forest.uplift"


def test_a_version_says_where_it_came_from(registry, forest):
    model = logged(registry, forest, "described")
    client = registry.store.client()
    version = client.get_model_version("described", "1")
    run = client.get_run(version.run_id)

    origin = ({"silver.training_spring": 3}, "abc123", {"n_trees": 8, "seed": 7, "kind": "forest"})
    assert model == Registered("described", 1, "train-1", version.run_id, model.sha256, *origin)
    assert json.loads(version.tags["uplift_data_versions"]) == {"silver.training_spring": 3}
    assert version.tags["uplift_feature_version"] == "3"
    assert version.tags["uplift_git_version"] == "abc123"
    assert json.loads(version.tags["uplift_roles"])["control"] == "none"
    assert run.info.status == "FINISHED"
    assert run.data.params["n_trees"] == "8"
    assert run.data.metrics["rows"] == 600
    assert run.data.metrics["rows.1_5_"] + run.data.metrics["rows.0_none"] == 600
    assert run.data.metrics["fit_seconds"] == 1.5
    assert np.isfinite(run.data.metrics["average_effect.1_5_"])


@pytest.mark.parametrize(
    ("recorded", "params"),
    [
        ({"seed": 7}, {"kind": "forest", "seed": 7}),
        ({"seed": 7, "per_level": True}, {"kind": "forest_per_level", "seed": 7}),
        ({"seed": 7, "delivered": "d"}, {"kind": "instrumental_forest", "seed": 7, "delivered": "d"}),
        ({"kind": "dr_learner", "seed": 7}, {"kind": "dr_learner", "seed": 7}),
    ],
)
def test_parameters_that_the_last_release_recorded_name_their_kind(registry, forest, recorded, params):
    origin, run_id = replace(ORIGIN, run_id=f"train-{params['kind']}", params=recorded), f"train-{params['kind']}"
    registry.log_model("recorded", forest.to_bytes(), origin, *log_facts(forest, 1.5))
    assert registry.version_for_run("recorded", run_id).params == params


def test_the_stored_folder_holds_arrays_and_no_code(registry, forest):
    """MLflow runs the code that lies there, whoever wrote it."""
    folder = artifact(registry, logged(registry, forest, "contents")).parents[1]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"MLmodel", "conda.yaml", "data/forest.uplift", "python_env.yaml", "requirements.txt"}
    pinned = (folder / "requirements.txt").read_text().split()
    assert f"uplift-spark=={uplift_spark.__version__}" in pinned and len(pinned) > 5
    assert all("==" in line for line in pinned)


def test_mlflow_serves_the_same_effects_and_enforces_the_signature(registry, forest):
    import mlflow

    folder = artifact(registry, logged(registry, forest, "served")).parents[1]
    model = mlflow.pyfunc.load_model(str(folder))
    frame = pd.DataFrame({"unit_id": ["a", "b"], "recency": [1.0, None], "zip": ["z1", None]})
    out = model.predict(frame)
    same = pa.table({"unit_id": ["a", "b"], "recency": [1.0, None], "zip": ["z1", None]})
    assert out.uplift.tolist() == forest.effect_arrays(same)[0].ravel().tolist()
    assert out.treatment.tolist() == ["5%", "5%"]
    assert set(EFFECT_COLUMNS) <= set(out.columns)
    with pytest.raises(mlflow.MlflowException, match="zip"):
        model.predict(frame.drop(columns="zip"))


def test_a_model_of_the_last_release_is_read_from_where_that_put_it(registry, forest):
    model = logged(registry, forest, "moved")
    file = artifact(registry, model)
    (file.parents[1] / "artifacts").mkdir()
    file.rename(file.parents[1] / "artifacts" / file.name)
    assert registry.load(model).to_bytes() == forest.to_bytes()


def test_versions_count_up_and_a_run_is_looked_up(registry, forest):
    first, second = logged(registry, forest, "counted", "train-a"), logged(registry, forest, "counted", "train-b")
    assert (first.version, second.version) == (1, 2)
    assert registry.version_for_run("counted", "train-a") == first
    assert registry.version_for_run("counted", "train-c") is None
    assert registry.version_for_run("never_registered", "train-a") is None


def test_of_a_run_that_is_registered_twice_at_once_the_first_version_stays(registry, forest):
    first = logged(registry, forest, "raced", "train-a")
    assert logged(registry, forest, "raced", "train-a") == first
    versions = registry.store.client().search_model_versions("name='raced'")
    assert [int(version.version) for version in versions] == [1]
    assert logged(registry, forest, "raced", "train-b").version > 1


def test_figures_of_a_version_are_known_though_its_run_failed_after_it(registry, forest, monkeypatch):
    real = registry._client.create_model_version

    def lost(*arguments, **named):
        real(*arguments, **named)
        raise ConnectionResetError("the reply was lost")

    monkeypatch.setattr(registry._client, "create_model_version", lost)
    with pytest.raises(EnvironmentProblem):
        logged(registry, forest, "replied", "train-a")
    assert registry.logged_metrics("replied", "train-a") is None  # the run counts as failed, and the version is there
    version = registry.version_for_run("replied", "train-a")
    assert version is not None and registry.figures_of(version) == log_facts(forest, 1.5)[1]


def test_champion_moves_only_on_request(registry, forest):
    first, second = logged(registry, forest, "ruled", "train-a"), logged(registry, forest, "ruled", "train-b")
    with pytest.raises(ConfigError, match="no alias 'champion'"):
        registry.find("ruled")
    registry.set_alias(first, "champion")
    assert registry.find("ruled") == first
    registry.set_alias(second, "champion")
    assert registry.find("ruled") == second
    assert registry.find("ruled", 1) == first
    with pytest.raises(ConfigError, match=r"no version 3 in .*: choose one of those that exist \(1, 2\)"):
        registry.find("ruled", 3)


def test_load_gives_the_same_bytes_back(registry, forest):
    model = logged(registry, forest, "kept")
    assert registry.load(model).to_bytes() == forest.to_bytes()


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def edited(content: bytes) -> bytes:
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


@pytest.mark.parametrize("damage", ["edited", "truncated", "empty", "missing", "another forest", "pickle"])
def test_a_changed_artifact_is_refused(registry, forest, rows, tmp_path, damage):
    model = logged(registry, forest, "damaged_" + damage.replace(" ", "_"))
    file, canary = artifact(registry, model), tmp_path / "executed"
    content = file.read_bytes()
    changed = {
        "edited": lambda: edited(content),
        "truncated": lambda: content[:-1],
        "empty": lambda: b"",
        "another forest": lambda: fit_table(rows, ROLES, Params(n_trees=8, seed=4)).to_bytes(),
        "pickle": lambda: pickle.dumps(Bomb(canary)),
    }
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(changed[damage]())
    with pytest.raises(ModelFileError, match=r"damaged_.* version 1"):
        registry.load(model)
    assert not canary.exists()


def test_the_bomb_is_live(tmp_path):
    """Unpickled, it goes off: so the test above can fail."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_code_stored_with_a_model_is_not_executed(registry, forest, tmp_path):
    model, canary = logged(registry, forest, "scripted"), tmp_path / "executed"
    folder = artifact(registry, model).parents[1]
    (folder / "code").mkdir()
    (folder / "code" / "theirs.py").write_text(f"open({str(canary)!r}, 'w')\ndef _load_pyfunc(path): ...\n")
    described = (folder / "MLmodel").read_text()
    doctored = described.replace("uplift_spark.registry.mlflow_model", "theirs").replace("code: null", "code: code")
    (folder / "MLmodel").write_text(doctored)
    assert registry.load(model).to_bytes() == forest.to_bytes()
    assert not canary.exists()
    code = "import sys, mlflow.pyfunc; mlflow.pyfunc.load_model(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=False)
    assert canary.exists(), "MLflow runs it: so the test above can fail, and the guide says so"


# --------------------------------------------------------------------------------------------------------------------
# Signatures.

KEY = "a key of more than sixteen bytes"


@pytest.fixture
def signing(registry, monkeypatch):
    """The same store with a key."""
    monkeypatch.setenv("MODEL_KEY", KEY)
    return Registry(registry.store, Signature(key_env="MODEL_KEY"))


def tags_of(registry, model) -> dict[str, str]:
    return dict(registry.store.client().get_model_version(model.name, str(model.version)).tags)


def set_tags(registry, model, tags) -> None:
    for tag, text in tags.items():
        registry.store.client().set_model_version_tag(model.name, str(model.version), tag, text)


def test_a_signed_version_loads_with_its_key_and_without_any(registry, signing, forest, tmp_path):
    model = logged(signing, forest, "signed")
    assert signing.load(model).to_bytes() == registry.load(model).to_bytes() == forest.to_bytes()
    (tmp_path / "key").write_text(KEY + "\n")
    assert Registry(registry.store, Signature(key_file=str(tmp_path / "key"))).load(model)
    assert KEY not in str(tags_of(registry, model))


def test_the_signature_is_the_standard_hash_of_name_run_and_tags(signing, forest):
    model = logged(signing, forest, "standard")
    tags = tags_of(signing, model)
    ours = {tag: tags[tag] for tag in tags if tag.startswith("uplift_")}
    by_hand = tags.pop("uplift_signature")
    text = json.dumps(
        [
            "standard",
            model.source_run,
            {t: v for t, v in sorted(ours.items()) if t in tags and "data_versions" not in t},
        ],
        separators=(",", ":"),
    )
    assert by_hand == hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def test_tag_and_file_swapped_together_are_noticed(registry, signing, forest, rows):
    model = logged(signing, forest, "swapped")
    other = fit_table(rows, ROLES, Params(n_trees=8, seed=4)).to_bytes()
    artifact(registry, model).write_bytes(other)
    set_tags(registry, model, {"uplift_sha256": hashlib.sha256(other).hexdigest()})
    swapped = registry.find("swapped", 1)
    assert registry.load(swapped).to_bytes() == other, "without a key nobody can tell"
    with pytest.raises(ModelFileError, match=r"'swapped' version 1 was not signed with the key of registry\.signature"):
        signing.load(swapped)
    with pytest.raises(ModelFileError, match="was not signed"):
        signing.load(model)


def test_the_signature_of_another_version_does_not_fit(registry, signing, forest, rows):
    """An old version, however well it was signed, does not pass for a newer one: file and all tags are copied."""
    old = logged(signing, forest, "rolled", "train-a")
    new = signing.log_model(
        "rolled",
        fit_table(rows, ROLES, Params(n_trees=8, seed=4)).to_bytes(),
        replace(ORIGIN, run_id="train-b"),
        {},
        {},
    )
    artifact(registry, new).write_bytes(artifact(registry, old).read_bytes())
    set_tags(registry, new, tags_of(registry, old))
    with pytest.raises(ModelFileError, match="version 2 was not signed"):
        signing.load(registry.find("rolled", 2))
    assert signing.load(old).to_bytes() == forest.to_bytes()


@pytest.mark.parametrize(
    "tag", ["uplift_params", "uplift_roles", "uplift_git_version", "uplift_run_id", "uplift_refresh"]
)
def test_every_tag_that_says_where_a_model_comes_from_is_signed(registry, signing, forest, tag):
    model = logged(signing, forest, f"tagged_{tag}")
    set_tags(registry, model, {tag: '{"of": 1}'})
    with pytest.raises(ModelFileError, match="was not signed"):
        signing.load(model)


def test_versions_of_tables_move_on_after_an_erasure(signing, forest):
    model = logged(signing, forest, "erased")
    signing.set_data_versions(model, {"silver.training_spring": 9})
    assert signing.load(model)


def test_what_no_key_or_another_key_signed_is_refused_in_one_sentence(registry, signing, forest, monkeypatch):
    plain, model = logged(registry, forest, "unsigned"), logged(signing, forest, "signed_else")
    with pytest.raises(
        ModelFileError, match=r"'unsigned' version 1 has no signature, and registry\.signature requires"
    ):
        signing.load(plain)
    lenient = Registry(registry.store, Signature(key_env="MODEL_KEY", required=False))
    assert lenient.load(plain)
    monkeypatch.setenv("MODEL_KEY", "another key of sixteen bytes")
    for one in (signing, lenient):
        with pytest.raises(ModelFileError, match="or another key signed it"):
            one.load(model)
    monkeypatch.delenv("MODEL_KEY")
    for call in (lambda: signing.load(model), lambda: logged(signing, forest, "keyless")):
        with pytest.raises(ConfigError, match=r"registry\.signature\.key_env names \$MODEL_KEY, which is not set"):
            call()
    assert registry.version_for_run("keyless", "train-1") is None
    assert not registry.store.client().search_runs([registry._experiment("keyless")])


def test_a_version_from_before_the_key_can_be_signed(registry, signing, forest):
    model = logged(registry, forest, "older")
    signing.sign(model)
    assert signing.load(model)
    artifact(registry, model).write_bytes(b"")
    with pytest.raises(ModelFileError, match="not the file that was registered"):
        signing.sign(model)
    with pytest.raises(ConfigError, match="is not set"):
        registry.sign(model)


@pytest.mark.parametrize("keys", [{}, {"key_env": "A", "key_file": "b"}, {"key_secret": "scope"}])
def test_a_signature_has_one_key(keys):
    with pytest.raises(ConfigError, match=r"registry\.signature"):
        Signature(**keys)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inputs": {}}, "signature of 3 input column"),
        ({"inputs": {"unit_id": "string", "recency": "double"}}, "'zip'"),
        ({"data_versions": {}}, "data_versions"),
        ({"git_version": ""}, "git_version"),
        ({"run_id": ""}, "run_id"),
        ({"feature_version": None}, "feature_version"),
    ],
)
def test_a_model_without_its_origin_is_refused(registry, forest, change, named):
    with pytest.raises(ConfigError, match=named):
        registry.log_model("orphan", forest.to_bytes(), replace(ORIGIN, **change), {}, {})
    assert registry.version_for_run("orphan", "train-1") is None


@pytest.mark.parametrize("name", ["", "a b", "../x", "x'; DROP TABLE t", "a.b.c", "ä", "`x`", "n" * 129, "x\n"])
def test_odd_names_are_refused(registry, forest, name):
    for call in (
        lambda: logged(registry, forest, name),
        lambda: registry.find(name),
        lambda: registry.version_for_run(name, "train-1"),
    ):
        with pytest.raises(ConfigError, match="not a plain name"):
            call()


def test_a_failed_registration_leaves_a_failed_run_and_no_version(registry, forest, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.store.client().__class__, "log_artifacts", full_disk)
    with pytest.raises(EnvironmentProblem, match="No space left on device"):
        logged(registry, forest, "unlucky")
    monkeypatch.undo()
    client = registry.store.client()
    runs = client.search_runs([client.get_experiment_by_name("unlucky").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]
    assert registry.version_for_run("unlucky", "train-1") is None
    assert logged(registry, forest, "unlucky").version == 1


def test_what_a_killed_process_left_running_is_ended_by_the_next_run(registry, forest):
    client = registry.store.client()
    experiment = registry._experiment("killed")

    def left(run_id, hours, source="uplift train"):
        tags = {"uplift_run_id": run_id, "mlflow.source.name": source}
        began = int((time.time() - 3600 * hours) * 1000)
        return client.create_run(experiment, start_time=began, tags=tags).info.run_id

    ended = left("train-1", 0), left("train-1", 30), left("train-2", 30)
    alive = left("train-2", 1), left("train-2", 30, "somebody")  # another process; another program
    registry.log_model("killed", forest.to_bytes(), ORIGIN, {}, {})
    status = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    assert [status[run] for run in ended] == ["KILLED"] * 3
    assert [status[run] for run in alive] == ["RUNNING"] * 2
    assert sorted(status.values()) == ["FINISHED", *["KILLED"] * 3, *["RUNNING"] * 2]


def test_a_version_by_someone_else_is_refused(registry):
    client = registry.store.client()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///nowhere")
    with pytest.raises(ModelFileError, match="is no forest"):
        registry.find("foreign", 1)


def test_a_store_out_of_reach_is_one_sentence_naming_it(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 20)
    for uri in (
        "http://user:secret@127.0.0.1:9",
        f"sqlite:///{tmp_path}/file/mlflow.db",
        f"sqlite:///{tmp_path}/text.db",
        f"sqlite:///{tmp_path}/50%/mlflow.db",
    ):
        with pytest.raises(EnvironmentProblem) as caught:
            Registry(open_store(Lakehouse(), uri))
        message = str(caught.value)
        assert uri.replace("user:secret@", "") in message
        assert "secret" not in message
        assert "\n" not in message


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/x", "ftp://host", "http://", "sqlite://", "sqlite:///:memory:"])
def test_stores_that_cannot_hold_models_are_refused(uri):
    with pytest.raises(ConfigError, match=r"registry\.tracking_uri"):
        open_store(Lakehouse(), uri)


def test_where_models_are_kept(tmp_path):
    folder = tmp_path / "lake house"
    assert open_store(Lakehouse(path=str(folder))) == Store(
        f"sqlite:///{folder}/mlflow.db", f"{folder.as_uri()}/mlartifacts"
    )
    assert open_store(Lakehouse(), "http://host:5000") == Store("http://host:5000")
    unity = open_store(Lakehouse(catalog="main"))
    assert (unity.uri, unity.registry_uri, unity.model("spring")) == ("databricks", "databricks-uc", "main.gold.spring")
    assert unity.experiment("spring").startswith("/")


def test_opening_a_new_store_prints_nothing(tmp_path, capfd):
    Registry(open_store(Lakehouse(path=str(tmp_path))))
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db"}


@pytest.mark.parametrize("module", [mlflow_store, registry_module])
def test_mlflow_is_imported_only_when_needed(module):
    """Its import takes seconds, and most commands never touch a model."""
    body = ast.parse(Path(module.__file__).read_text()).body
    imported = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}
    assert "dataclasses" in imported
    assert not [name for name in imported if name.split(".")[0] in ("mlflow", "requests", "sqlalchemy")]


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_copied_or_moved_store_has_its_models_beside_it_and_leaves_the_original_alone(forest, tmp_path, how):
    original, here = tmp_path / "the first é", tmp_path / "elsewhere" / "b#c"
    first = logged(Registry(open_store(Lakehouse(path=str(original)))), forest, "spring")
    client = open_store(Lakehouse(path=str(original))).client()
    theirs = client.create_experiment("theirs", (tmp_path / "x" / "mlartifacts").as_uri())
    client.create_run(theirs)
    (shutil.copytree if how == "copied" else shutil.move)(original, here)
    before = contents(original)
    store = open_store(Lakehouse(path=str(here)))
    registry = Registry(store)
    assert registry.load(registry.find("spring", 1)).to_bytes() == forest.to_bytes()
    second = logged(registry, forest, "spring", run_id="train-2")
    assert (first.version, second.version) == (1, 2)
    assert all(artifact(registry, model).is_relative_to(here) for model in (first, second))
    assert artifact(registry, second).is_file() and contents(original) == before
    version = store.client().get_model_version("spring", "1")
    assert version.source.startswith(here.as_uri()) and store.client().get_model_version_download_uri(
        "spring", "1"
    ).startswith(here.as_uri())
    assert store.client().get_experiment(theirs).artifact_location == (tmp_path / "x" / "mlartifacts").as_uri()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that need not be there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
