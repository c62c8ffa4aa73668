"""Everything the README promises, as a user types it: real servers, the built wheels, the CLI."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton_plugin.testing.containers import TritonContainer

from .building import image_of
from .examples import EXAMPLES, MODEL, expected, given_inputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from testcontainers.core.network import Network

    from mlflow_triton_plugin.testing.containers import MlflowContainer, S3Container

    from .user import User

LOG = """
import sys, mlflow.onnx, onnx
mlflow.onnx.log_model(
    onnx.load(sys.argv[1]), name="triton", registered_model_name=sys.argv[2],
    pip_requirements=["onnxruntime"],
)
"""
LOG_ANY_MODEL = """
import sys, mlflow, pandas
from mlflow.models import infer_signature

class Labels(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return pandas.DataFrame({
            "label": model_input["name"].str.upper(), "twice": model_input["value"] * 2,
        })

rows = pandas.DataFrame({"name": ["a", "\u00e9"], "value": [1.5, 0.1]})
mlflow.pyfunc.log_model(
    python_model=Labels(), name="labels", registered_model_name=sys.argv[1],
    signature=infer_signature(rows, Labels().predict(None, rows)),
    pip_requirements=[f"mlflow-skinny=={mlflow.__version__}", "cloudpickle"],
)
"""
WHERE = """
import json, importlib.metadata as m, mlflow_triton_plugin, publish_tools, triton_repo
names = ("mlflow-triton-plugin", "publish-tools", "triton-repo")
print(json.dumps({
    "files": [each.__file__ for each in (mlflow_triton_plugin, publish_tools, triton_repo)],
    "origins": [json.loads(m.distribution(name).read_text("direct_url.json") or "{}")
                for name in names],
}))
"""


def test_the_user_has_wheels_and_not_the_sources(somebody: User) -> None:
    said = somebody.run("python", "-c", WHERE)
    assert said.status == 0, said.err
    found = json.loads(said.out)
    site_packages = str(somebody.python.parent.parent / "lib")
    assert all(each.startswith(site_packages) for each in found["files"])
    assert all(each["url"].endswith(".whl") for each in found["origins"])
    assert not any("dir_info" in each for each in found["origins"])


@pytest.mark.parametrize("who", ["local_user", "s3_user"])
def test_the_way_of_a_model_by_the_command_line(who: str, request: pytest.FixtureRequest) -> None:
    """Publish both flavors; create, list, get, predict, update, roll back, delete both.

    Where a model comes from is nothing to the repository: in S3 it is one flavor.
    """
    user: User = request.getfixturevalue(who)
    name, logged = f"cli-{who}", f"logged-{who}"
    flavors = {name: "triton", logged: "onnx"} if who == "local_user" else {name: "triton"}
    for end in ("", "_v2"):
        done = user.publish(name, EXAMPLES / f"{MODEL}{end}")
        assert done.status == 0, done.err
    if logged in flavors:
        done = user.run("python", "-c", LOG, EXAMPLES / MODEL / "1" / "model.onnx", logged)
        assert done.status == 0, done.err

    for each, flavor in flavors.items():
        done = user.deployments(
            "create", "--name", each, "-m", f"models:/{each}/1", "--flavor", flavor
        )
        assert done.status == 0, done.err
        assert done.out == f"\n{flavor} deployment {each} is created\n"
        assert predicted(user, each) == expected()
    listed = user.deployments("list")
    assert flavors.keys() <= {each["name"] for each in spoken(listed.out)}

    done = user.deployments("update", "--name", name, "-m", f"models:/{name}/2")
    assert done.status == 0, done.err
    assert predicted(user, name) == expected("_v2")
    done = user.deployments("update", "--name", name, "-m", f"models:/{name}/1")
    assert done.status == 0, done.err
    assert predicted(user, name) == expected()
    got = user.deployments("get", "--name", name).out
    assert "state: READY" in got
    assert "served_versions: [1]" in got

    for each in flavors:
        assert user.deployments("delete", "--name", each).status == 0
    left = {each["name"] for each in spoken(user.deployments("list").out)}
    assert left.isdisjoint(flavors)
    refused = user.deployments("predict", "--name", name, "-I", EXAMPLES / "input.json")
    assert name in refused.error


def predicted(user: User, name: str) -> Any:
    done = user.deployments("predict", "--name", name, "-I", EXAMPLES / "input.json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def spoken(out: str) -> Any:
    """What `mlflow deployments list` prints: a list of Python's."""
    import ast  # noqa: PLC0415 - rarely needed

    return ast.literal_eval(out.partition("List of all deployments:\n")[2].strip())


@pytest.mark.parametrize("who", ["local_user", "s3_user"])
def test_the_way_of_a_model_by_the_python_api(who: str, request: pytest.FixtureRequest) -> None:
    user: User = request.getfixturevalue(who)
    name = f"api-{who}"
    inputs = given_inputs()
    for end in ("", "_v2"):
        assert user.publish(name, EXAMPLES / f"{MODEL}{end}").status == 0
    with user.session() as python:
        made = python.call("create_deployment", name, f"models:/{name}/1")
        assert (made["name"], made["flavor"]) == (name, "triton")
        assert python.call("predict", name, inputs) == expected()
        both = {"serve_versions": [1, 2], "validate": "load"}
        python.call("update_deployment", name, f"models:/{name}/2", config=both)
        assert python.call("predict", f"{name}/1", inputs) == expected()
        assert python.call("predict", f"{name}/2", inputs) == expected("_v2")
        python.call("update_deployment", name, f"models:/{name}/1")
        got = python.call("get_deployment", name)
        assert (got["state"], got["served_versions"]) == ("READY", [1])
        assert python.call("verify_deployment", name) == []
        assert got["versions"]["1"]["source"] == f"models:/{name}/1"
        python.call("delete_deployment", name)
        python.call("delete_deployment", name)
        assert name not in {each["name"] for each in python.call("list_deployments")}


def test_two_servers_share_a_repository(
    network: Network,
    repository: Path,
    local_user: User,
    triton: TritonContainer,
    published: Callable[[str], str],
) -> None:
    """Both serve what is deployed; while one is away nothing is changed, and nothing is lost."""
    uri = published(MODEL)
    inputs = given_inputs()
    with (
        TritonContainer(image_of("triton"), repository, network=network) as second,
        local_user.session() as python,
    ):
        alone = [local_user.export(TRITON_URL=each.url) for each in (triton, second)]
        both = local_user.export(TRITON_URL=f"{triton.url},{second.url}")
        python.call("create_deployment", "shared", uri, user=both)
        for each in alone:
            assert python.call("predict", "shared", inputs, user=each) == expected()
        url = second.url
        second.kill()
        before = contents(repository / "shared")
        with pytest.raises(Exception, match="TEMPORARILY_UNAVAILABLE") as raised:
            python.call("update_deployment", "shared", uri, user=both)
        assert url in str(raised.value)
        assert contents(repository / "shared") == before
        assert python.call("predict", "shared", inputs, user=both) == expected()
        second.restart()
        both = local_user.export(TRITON_URL=f"{triton.url},{second.url}")
        assert python.call("get_deployment", "shared", user=both)["state"] == "PARTLY_READY"
        python.call("update_deployment", "shared", user=both)
        assert python.call("get_deployment", "shared", user=both)["state"] == "READY"
        python.call("delete_deployment", "shared", user=both)
    assert not (repository / "shared").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_a_server_that_starts_anew_serves_what_was_committed(
    kind: str,
    network: Network,
    s3: S3Container,
    tmp_path: Path,
    local_user: User,
    published: Callable[[str], str],
) -> None:
    """With `--load-model=*`, as a cluster starts it: the version that was rolled back to."""
    first, second = published(MODEL), published(f"{MODEL}_v2")
    inputs = given_inputs()
    address: str | Path = tmp_path
    user = local_user.export(TRITON_MODEL_REPO=str(tmp_path))
    if kind == "s3":
        s3.put_object("/models/anew/README", b"A model repository.")
        address = f"{s3.internal_uri}/models/anew"
        user = local_user.export(TRITON_MODEL_REPO=f"{s3.uri}/models/anew", **s3.credentials)
    server = TritonContainer(image_of("triton"), address, network=network)
    with server.with_envs(**s3.credentials).with_load_all(), user.session() as python:
        there = user.export(TRITON_URL=server.url)
        python.call("create_deployment", "kept", first, user=there)
        python.call("create_deployment", "other", second, user=there)
        python.call("delete_deployment", "other", user=there)
        server.restart()
        there = user.export(TRITON_URL=server.url)
        assert python.call("predict", "kept", inputs, user=there) == expected()
        assert [each["name"] for each in python.call("list_deployments", user=there)] == ["kept"]
        assert python.call("get_deployment", "kept", user=there)["state"] == "READY"
        python.call("delete_deployment", "kept", user=there)


def test_http_does_what_grpc_does(
    local_user: User, triton: TritonContainer, published: Callable[[str], str]
) -> None:
    user = local_user.export(TRITON_URL=triton.http_url)
    inputs = given_inputs()
    with user.session() as python:
        python.call("create_deployment", "by-http", published(MODEL))
        assert python.call("predict", "by-http", inputs) == expected()
        python.call("delete_deployment", "by-http")


def test_an_ensemble_and_a_python_model_are_served(
    local_user: User, published: Callable[[str], str]
) -> None:
    inputs = given_inputs()
    answer = expected("_ensemble")
    with local_user.session() as python:
        python.call("create_deployment", MODEL, published(MODEL))
        python.call("create_deployment", "python_add_sub", published("python_add_sub"))
        python.call("create_deployment", "add_sub_ensemble", published("add_sub_ensemble"))
        assert python.call("predict", "add_sub_ensemble", inputs) == answer
        for name in ("add_sub_ensemble", "python_add_sub", MODEL):
            python.call("delete_deployment", name)


@pytest.mark.parametrize(("who", "names"), [("local_user", "own"), ("s3_user", "prefixed")])
def test_several_models_come_change_and_go_as_one(
    who: str, names: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An ensemble with an ONNX and a Python model, by their own names and by others."""
    user: User = request.getfixturevalue(who)
    name = f"several-{who}"
    for end in ("", "_v2"):
        models = tmp_path / f"models{end}"
        for model in ("add_sub_ensemble", "python_add_sub"):
            shutil.copytree(EXAMPLES / model, models / model)
        shutil.copytree(EXAMPLES / f"{MODEL}{end}", models / MODEL)
        config = models / MODEL / "config.pbtxt"
        config.write_text(config.read_text().replace(f"{MODEL}_v2", MODEL))
        assert user.publish(name, models).status == 0
    inputs = given_inputs()
    first = expected("_ensemble")
    second = {"outputs": {output: tenfold(rows) for output, rows in first["outputs"].items()}}
    with user.session() as python:
        option = {"member_names": names}
        made = python.call("create_deployment", name, f"models:/{name}/1", config=option)
        assert made["state"] == "READY"
        assert {member: each["state"] for member, each in made["members"].items()} == {
            MODEL: "READY",
            "python_add_sub": "READY",
        }
        assert python.call("predict", name, inputs) == first
        python.call("update_deployment", name, f"models:/{name}/2")
        assert python.call("predict", name, inputs) == second
        python.call("update_deployment", name, f"models:/{name}/1")
        assert python.call("predict", name, inputs) == first
        assert python.call("verify_deployment", name) == []
        python.call("delete_deployment", name)
        left = {each["name"] for each in python.call("list_deployments")}
        assert not {each for each in left if name in each or each == MODEL}


def tenfold(rows: Any) -> Any:
    return [[10 * value for value in row] for row in rows]


def test_any_model_is_served_with_its_own_packages(local_user: User) -> None:
    """What a server's Python lacks comes along, packed where the user is."""
    user = local_user.export(**index_settings())
    done = user.run("python", "-c", LOG_ANY_MODEL, "labels")
    assert done.status == 0, done.err
    done = user.deployments(
        *("create", "--name", "labels", "-m", "models:/labels/1"),
        *("-C", "env=pack", "-C", "env_python=3.11"),
    )
    assert done.status == 0, done.err
    assert done.out == "\npython_function deployment labels is created\n"
    rows = user.home / "rows.json"
    rows.write_text('{"name": {"0": "x", "1": "\u00df"}, "value": {"0": 0.1, "1": -2}}')
    done = user.deployments("predict", "--name", "labels", "-I", rows)
    assert done.status == 0, done.err
    assert json.loads(done.out)["outputs"] == {
        "label": [["X"], ["SS"]],
        "twice": [[0.2], [-4.0]],
    }
    assert user.deployments("delete", "--name", "labels").status == 0


def index_settings() -> dict[str, str]:
    """From where this machine has its packages."""
    kinds = ("PIP_", "UV_", "SSL_", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return {name: value for name, value in os.environ.items() if name.upper().startswith(kinds)}


def test_artifacts_come_through_a_tracking_server_that_has_them_in_s3_too(
    somebody: User,
    network: Network,
    s3: S3Container,
    triton: TritonContainer,
    repository: Path,
    tracking_s3: MlflowContainer,
) -> None:
    """Artifacts in S3 by direct access, deployed to a directory: each source, each place."""
    user = somebody.export(
        MLFLOW_TRACKING_URI=tracking_s3.url,
        MLFLOW_S3_ENDPOINT_URL=s3.endpoint_url,
        TRITON_URL=triton.url,
        TRITON_MODEL_REPO=str(repository),
        **s3.credentials,
    )
    assert user.publish("from-s3", EXAMPLES / MODEL).status == 0
    inputs = given_inputs()
    with user.session() as python:
        python.call("create_deployment", "from-s3", "models:/from-s3/1")
        assert python.call("predict", "from-s3", inputs) == expected()
        python.call("delete_deployment", "from-s3")
