"""`-C env` on a real Triton whose Python has none of what the models need."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import shutil
import tarfile
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_plugin.cli import main
from mlflow_triton_plugin.local import _installers
from mlflow_triton_plugin.local.provisioning import ensure_environment
from triton_repo.config import ModelConfig
from triton_repo.record import DeploymentRecord

from ..models import log_onnx, python_directory, python_source, scale_model  # noqa: TID252 - tests have no name to be imported by
from ..refusals import refused  # noqa: TID252 - as above
from .conftest import FRAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_triton_plugin.local import LocalTriton
    from mlflow_triton_plugin.plugin import TritonDeploymentClient

    Deploy = Callable[[str, dict[str, Any]], str]
    Snapshot = Callable[[str], dict[str, bytes]]

PACK = {"env": "pack"}
INFLECTION = "inflection==0.5.1"


def answers(client: TritonDeploymentClient, name: str) -> list[str]:
    rows = client.predict(name, FRAME)["outputs"]["predictions"].reshape(-1)
    return [each.decode() if isinstance(each, bytes) else str(each) for each in rows]


def archives(folder: Path) -> list[str]:
    """The archives beside a deployment's config.pbtxt."""
    return sorted(path.name for path in folder.glob("env-*"))


def named(folder: Path) -> str:
    """The archive that config.pbtxt names."""
    config = ModelConfig.read(folder / "config.pbtxt")
    return dict(config.named_files).get("parameters[EXECUTION_ENV_PATH]", "")


def test_without_one_it_is_refused_with_every_way_out(
    client: TritonDeploymentClient, logged_pyfunc: Callable[..., str], repository: Path
) -> None:
    uri = logged_pyfunc(INFLECTION)
    message = refused(
        lambda: client.create_deployment("lacking", uri, config={"env": "default"}),
        *("INVALID_PARAMETER_VALUE", INFLECTION),
    )
    assert "-C env=pack" in message
    assert "triton-local --for-model" in message
    assert not (repository / "lacking").exists()


def test_a_python_function_model_runs_in_an_environment_of_its_own(
    client: TritonDeploymentClient, deployed: Deploy, logged_pyfunc: Callable[..., str]
) -> None:
    """With the MLflow, pandas and numpy of an index; other tests here pack stand-ins for them."""
    name = deployed(logged_pyfunc(INFLECTION), PACK)
    assert answers(client, name) == ["my_model", "other_one"]
    assert client.verify_deployment(name) == []


def test_versions_share_one_archive_until_their_requirements_differ(
    client: TritonDeploymentClient,
    deployed: Deploy,
    logged: Callable[..., str],
    registered: Callable[[str], str],
    cache: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = registered("packed")
    logged(INFLECTION, registered=model)
    name = deployed(f"models:/{model}/1", PACK)
    folder = repository / name
    assert answers(client, name) == ["my_model", "other_one"]
    (first,) = archives(folder)
    assert named(folder) == first
    assert client.get_deployment(name)["versions"][1]["overrides"] == {
        "parameters.EXECUTION_ENV_PATH": f"$$TRITON_MODEL_DIRECTORY/{first}"
    }
    packed = cache / first.removesuffix(".tar.gz") / "environment.tar.gz"
    assert packed.read_bytes() == (folder / first).read_bytes()
    assert "Packed env-py" in capsys.readouterr().err

    # the same requirements, not named again: the same file, and nothing is packed
    logged(INFLECTION, suffix="!", registered=model)
    before = (folder / first).stat()
    client.update_deployment(name, f"models:/{model}/2")
    assert answers(client, name) == ["my_model!", "other_one!"]
    after = (folder / first).stat()
    assert archives(folder) == [first]
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert "Packing" not in capsys.readouterr().err

    # other ones: another archive, and the first is kept aside for version 2
    logged(INFLECTION, "roman==5.0", suffix="?", registered=model)
    client.update_deployment(name, f"models:/{model}/3")
    assert answers(client, name) == ["my_model?", "other_one?"]
    (second,) = archives(folder)
    assert second != first
    assert "roman==5.0" in capsys.readouterr().err

    # going back brings it back
    client.update_deployment(name, f"models:/{model}/2")
    assert answers(client, name) == ["my_model!", "other_one!"]
    assert archives(folder) == [first]
    assert named(folder) == first
    assert (folder / first).read_bytes() == packed.read_bytes()
    assert client.verify_deployment(name) == []

    client.delete_deployment(name)
    assert not folder.exists()
    assert packed.is_file()


def test_another_deployment_packs_nothing(
    client: TritonDeploymentClient,
    deployed: Deploy,
    logged: Callable[..., str],
    cache: Path,
    repository: Path,
) -> None:
    """Order, spaces and comments of requirements.txt are nothing to it."""
    one = deployed(logged(INFLECTION, "roman==5.0"), PACK)
    packed = {path: path.stat().st_mtime_ns for path in cache.rglob("*.tar.gz")}
    another = deployed(logged("roman == 5.0", f"{INFLECTION}  # names", suffix="!"), PACK)
    assert answers(client, another) == ["my_model!", "other_one!"]
    assert archives(repository / one) == archives(repository / another)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.tar.gz")} == packed


def test_a_plan_says_what_would_be_packed_and_packs_nothing(
    client: TritonDeploymentClient,
    logged: Callable[..., str],
    cache: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = logged(INFLECTION, "toolz==1.0.0")
    before = set(cache.glob("*"))
    plan = client.plan_deployment("planned", uri, config=PACK)
    environment = plan["environment"]
    assert environment["state"] == "to be packed"
    assert {INFLECTION, "toolz==1.0.0", "numpy<2"} <= set(environment["packages"])
    assert f"$$TRITON_MODEL_DIRECTORY/{environment['file']}" in plan["config"]
    assert json.dumps(plan)
    assert main(["plan", "planned", "-m", uri, "-C", "env=pack"]) == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if environment["file"] in line
    )
    assert line.startswith("+ planned/env-py")
    assert "to be packed for Python" in line
    secret = logged(INFLECTION, "thing @ https://me:hush@127.0.0.1:9/thing-1.0-py3-none-any.whl")
    capsys.readouterr()  # MLflow itself tells of it while it logs
    assert "hush" not in json.dumps(client.plan_deployment("planned", secret, config=PACK))
    refused(
        lambda: client.create_deployment("planned", secret, config=PACK),
        "INVALID_STATE",
        "could not be installed",
        secrets=("hush",),
    )
    assert "hush" not in capsys.readouterr().err
    assert {path for path in cache.glob("*") if path.suffix != ".lock"} == {
        path for path in before if path.suffix != ".lock"
    }
    assert not (repository / "planned").exists()


def test_what_cannot_be_installed_is_one_line_and_changes_nothing(
    client: TritonDeploymentClient,
    deployed: Deploy,
    logged: Callable[..., str],
    cache: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A version that nobody has of a package: an older one will not do.

    The first installer alone is asked; `test_packing.py` asks both.
    """
    real = _installers._commands
    monkeypatch.setattr(
        _installers,
        "_commands",
        lambda folder, uv, **links: itertools.islice(real(folder, uv, **links), 1),
    )
    missing = "roman==4.99"
    name = deployed(logged(INFLECTION), PACK)
    before = snapshot(name)
    broken = logged(INFLECTION, missing)
    for _ in range(2):
        environment = client.plan_deployment(name, broken)["environment"]
        assert environment["state"] == "to be packed"
        assert missing in environment["packages"]
        message = refused(
            lambda: client.update_deployment(name, broken),
            "INVALID_STATE",
            "could not be installed",
        )
        assert missing in message.partition("could not be installed: ")[2]
    assert snapshot(name) == before
    assert answers(client, name) == ["my_model", "other_one"]
    assert not list(cache.glob("*.tmp-*"))


def test_the_servers_own_python_comes_back_by_default(
    client: TritonDeploymentClient,
    deployed: Deploy,
    logged_pyfunc: Callable[..., str],
    repository: Path,
) -> None:
    """It is there in the plan; this server lacks what the model needs, and refuses it."""
    name = deployed(logged_pyfunc(INFLECTION), PACK)
    (archive,) = archives(repository / name)
    plan = client.plan_deployment(name, config={"env": "default"})
    assert "EXECUTION_ENV_PATH" not in plan["config"]
    assert plan["environment"] is None
    assert plan["removes_files"] == [archive]
    with pytest.raises(MlflowException, match="lacks what this model needs"):
        client.update_deployment(name, config={"env": "default"})
    assert named(repository / name) == archive
    assert answers(client, name) == ["my_model", "other_one"]


def test_it_can_be_set_without_another_model(
    client: TritonDeploymentClient,
    deployed: Deploy,
    logged: Callable[..., str],
    repository: Path,
) -> None:
    """Nothing of the version is copied; and as well the model is tried apart with it."""
    name = deployed(logged(INFLECTION), {**PACK, "validate": "load"})
    version = repository / name / "1" / "model.py"
    placed = version.stat().st_ino
    client.update_deployment(name, config={**PACK, "instance_count": 2})
    assert version.stat().st_ino == placed
    assert answers(client, name) == ["my_model", "other_one"]


def test_one_for_another_python_is_refused_by_the_server(
    client: TritonDeploymentClient,
    logged_pyfunc: Callable[..., str],
    stand_ins: tuple[str, ...],
    repository: Path,
) -> None:
    """Packed from wheels, without that Python on this machine."""
    here = ensure_environment_python()
    other = "3.12" if here != "3.12" else "3.11"
    uri = logged_pyfunc(INFLECTION, mlflow=stand_ins)
    message = refused(
        lambda: client.create_deployment("other", uri, config={**PACK, "env_python": other}),
        "INVALID_PARAMETER_VALUE",
        f"packed for Python {other}, and the server has {here}",
    )
    assert f"-C env_python={here}" in message
    assert not (repository / "other").exists()


def ensure_environment_python() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRITON_CACHE", raising=False)
        return ensure_environment().python


def test_a_damaged_cache_is_not_deployed(
    client: TritonDeploymentClient, deployed: Deploy, logged: Callable[..., str], cache: Path
) -> None:
    """Triton that breaks off in an archive unpacks none any more, of any model."""
    name = deployed(logged(INFLECTION, "toolz==0.12.1"), PACK)
    archive = cache / str(client.plan_deployment(name)["environment"]["file"]).removesuffix(
        ".tar.gz"
    )
    packed = archive / "environment.tar.gz"
    whole = packed.read_bytes()
    middle = len(whole) // 2
    packed.write_bytes(whole[:middle] + bytes(4096) + whole[middle + 4096 :])
    again = logged(INFLECTION, "toolz==0.12.1", suffix="!")
    assert client.plan_deployment("other", again, config=PACK)["environment"]["state"] == (
        "to be packed"
    )
    other = deployed(again, PACK)
    assert answers(client, other) == ["my_model!", "other_one!"]
    assert answers(client, deployed(logged(INFLECTION), PACK)) == ["my_model", "other_one"]


def test_a_python_without_an_environment_to_pack_is_told(
    client: TritonDeploymentClient,
    deployed: Deploy,
    logged: Callable[..., str],
    repository: Path,
) -> None:
    """It would have no effect; an update that keeps env=pack needs no more than it."""
    uri = logged(INFLECTION)
    here = ensure_environment_python()
    name = deployed(uri, PACK)
    archive = repository / name / named(repository / name)
    for act in (
        partial(client.create_deployment, "other", uri, config={"env_python": here}),
        partial(client.plan_deployment, "other", uri, config={"env_python": here}),
        partial(client.update_deployment, name, config={"env": "default", "env_python": here}),
        partial(client.update_deployment, name, config={"env": archive, "env_python": here}),
    ):
        refused(act, "INVALID_PARAMETER_VALUE", "-C env_python says", "add -C env=pack")
    assert not (repository / "other").exists()
    client.update_deployment(name, config={"env_python": here})
    assert archives(repository / name) == [archive.name]
    assert answers(client, name) == ["my_model", "other_one"]


def test_an_archive_of_the_users_is_kept_by_updates(
    client: TritonDeploymentClient,
    deployed: Deploy,
    logged: Callable[..., str],
    cache: Path,
    repository: Path,
    tmp_path: Path,
) -> None:
    packed = deployed(logged(INFLECTION), PACK)
    own = shutil.copy(repository / packed / named(repository / packed), tmp_path / "mine.tar.gz")
    name = deployed(logged(INFLECTION), {"env": str(own)})
    assert answers(client, name) == ["my_model", "other_one"]
    digest = hashlib.sha256((tmp_path / "mine.tar.gz").read_bytes()).hexdigest()
    assert archives(repository / name) == [f"env-file-{digest[:12]}.tar.gz"]
    (tmp_path / "mine.tar.gz").unlink()
    before = set(cache.glob("*"))
    client.update_deployment(name, logged(INFLECTION, suffix="!"))
    assert answers(client, name) == ["my_model!", "other_one!"]
    assert archives(repository / name) == [f"env-file-{digest[:12]}.tar.gz"]
    record = DeploymentRecord.parse((repository / name / "mlflow-meta.json").read_bytes())
    assert list(record.shared) == [f"env-file-{digest[:12]}.tar.gz"]
    assert set(cache.glob("*")) == before
    client.update_deployment(name, config=PACK)
    assert archives(repository / name) == archives(repository / packed)

    (repository / packed / named(repository / packed)).write_bytes(b"damaged")
    client.update_deployment(packed, logged(INFLECTION, suffix="?"))
    assert answers(client, packed) == ["my_model?", "other_one?"]


def test_an_archive_that_went_missing_is_told(
    client: TritonDeploymentClient, deployed: Deploy, logged: Callable[..., str], repository: Path
) -> None:
    packed = deployed(logged(INFLECTION), PACK)
    name = deployed(logged(INFLECTION), {"env": repository / packed / named(repository / packed)})
    (repository / name / named(repository / name)).unlink()
    uri = logged(INFLECTION, suffix="!")
    refused(
        lambda: client.update_deployment(name, uri),
        "RESOURCE_DOES_NOT_EXIST",
        "no longer beside config.pbtxt",
        "-C env=pack",
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no archive", "is no tar.gz archive"),
        (gzip.compress(b"", mtime=0)[:-6], "is no tar.gz archive"),
        ("data/model.pkl", "has no bin/activate"),
    ],
)
def test_archives_that_triton_could_not_start_are_refused(
    client: TritonDeploymentClient,
    logged: Callable[..., str],
    repository: Path,
    tmp_path: Path,
    content: bytes | str,
    told: str,
) -> None:
    path = tmp_path / "env.tar.gz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo(content), io.BytesIO())
    uri = logged(INFLECTION)
    refused(
        lambda: client.create_deployment("own", uri, config={"env": str(path)}),
        "INVALID_PARAMETER_VALUE",
        told,
    )
    assert not (repository / "own").exists()


def test_a_model_of_another_backend_has_none(client: TritonDeploymentClient) -> None:
    uri = log_onnx(scale_model(2.0)).model_uri
    refused(
        lambda: client.plan_deployment("scale", uri, config=PACK),
        "INVALID_PARAMETER_VALUE",
        "flavor onnx of this model is served by onnxruntime",
        "--flavor python_function",
    )


def test_a_model_that_does_not_say_what_it_needs_is_refused(
    client: TritonDeploymentClient, tmp_path: Path
) -> None:
    python_directory(tmp_path / "model", python_source("x"))
    (tmp_path / "MLmodel").write_text("flavors: {triton: {data: model}}")
    refused(
        lambda: client.plan_deployment("plain", str(tmp_path), config=PACK),
        "RESOURCE_DOES_NOT_EXIST",
        "requirements.txt",
        "-C env=FILE.tar.gz",
    )


def test_a_server_says_its_python_over_http_too(
    triton: LocalTriton,
    environment: Callable[..., None],
    logged: Callable[..., str],
    client: TritonDeploymentClient,
) -> None:
    uri = logged(INFLECTION)
    planned = client.plan_deployment("planned", uri, config=PACK)["environment"]
    environment(TRITON_URL=triton.http_url)
    over_http = get_deploy_client("triton").plan_deployment("planned", uri, config=PACK)
    assert over_http["environment"] == planned
    assert planned["python"] == ensure_environment_python()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"env": "packed"}, "use auto, pack, default, or an archive"),
        ({"env": 3}, "-C env is 3"),
        ({"env": "pack", "env_python": "312"}, "a minor version belongs there, such as 3.12"),
        ({"env": "pack", "parameters.EXECUTION_ENV_PATH": "/env.tar.gz"}, "give one"),
    ],
)
def test_options_that_are_none_are_refused(
    client: TritonDeploymentClient, options: dict[str, Any], told: str
) -> None:
    refused(
        lambda: client.create_deployment("any", "models:/any/1", config=options),
        "INVALID_PARAMETER_VALUE",
        told,
    )


def test_the_embedded_server_says_its_python(triton: LocalTriton) -> None:
    assert triton.log_path is not None
    assert f"triton-python{ensure_environment_python()}" in triton.log_path.read_text()
