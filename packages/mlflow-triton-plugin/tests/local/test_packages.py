"""What models need, as the embedded server's environment can have it."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from mlflow_triton_plugin.local import ProvisioningError, model_packages, read_requirements
from mlflow_triton_plugin.local._packages import at_most
from mlflow_triton_plugin.local.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def test_mlflow_is_the_small_one_and_numpy_the_servers() -> None:
    wanted = ["mlflow[extras]==3.1.0", "numpy==2.4.6", "NumPy", "Scikit_Learn>=1.5", "pandas<4"]
    assert model_packages(wanted) == [
        "Scikit_Learn>=1.5",
        "mlflow-skinny==3.1.0",
        "pandas<4",
    ]


def test_without_any_requirement_models_need_mlflow_and_pandas() -> None:
    assert model_packages([]) == ["mlflow-skinny", f"pandas<={version('pandas')}"]


def test_the_order_and_repetitions_do_not_matter() -> None:
    """An environment is known by its packages."""
    assert model_packages(["b==1", "a"]) == model_packages(["a", "b==1", "a"])


def test_versions_may_be_older_but_mlflows() -> None:
    wanted = [
        "a==1.2",
        "b>=1",
        "c",
        "d==1.*",
        "mlflow-skinny==3.1.0",
        "e[x]==2 ; python_version>'3'",
    ]
    assert at_most(wanted) == [
        *("a<=1.2", "b>=1", "c", "d==1.*", "mlflow-skinny==3.1.0"),
        'e[x]<=2; python_version > "3"',
    ]


def test_comments_and_empty_lines_are_no_requirements(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# made by MLflow\n\na==1 # pinned\nb ; python_version > '3'\n")
    assert read_requirements(path) == ["a==1", "b ; python_version > '3'"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"--index-url https://h/simple\n",
            "are uv's and pip's settings",
        ),
        (b"--extra-index-url=https://me:hush@h/simple\n", "https://***@h/simple"),
        (b"--pre\n", "are uv's and pip's settings"),
        (b"-r other.txt\n", "other files are not read"),
        (b"-rother.txt\n", "other files are not read"),
        (b"--requirement=other.txt\n", "other files are not read"),
        (b"a==1\n-c constraints.txt\n", "constraints are not read"),
        (b"--constraint constraints.txt\n", "constraints are not read"),
        (b"-e .\n", "what is editable is a folder"),
        (b"--editable git+https://me:hush@h/x.git#egg=x\n", "https://***@h/x.git"),
        (b"a==1 --hash=sha256:aa\n", "hashes are for exactly the packages"),
        (b"a==1 \\\n    --hash=sha256:aa\n", "hashes are for exactly the packages"),
        (b"a @ https://${HUSH}@h/a-1-py3-none-any.whl\n", "names an environment variable"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
        (b"a b c\n", "'a b c' is no requirement"),
    ],
)
def test_what_is_no_list_of_packages_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    path = tmp_path / "requirements.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(["--prepare", "--requirements", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("triton-local: ")
    assert words in said
    assert "hush" not in said
    assert said.count("\n") == 1


def test_a_model_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prepare", "--for-model", "models:/no-such-model/1"]) == 1
    assert "requirements of models:/no-such-model/1 cannot be read" in capsys.readouterr().err


def test_packages_are_not_for_a_server_of_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.txt").write_text("a==1\n")
    arguments = ["--model-repository", str(tmp_path), "--requirements", str(tmp_path / "r.txt")]
    with pytest.raises(SystemExit):
        main([*arguments, "--tritonserver", "system"])
    assert "packages are for the embedded server" in capsys.readouterr().err


def test_an_error_of_reading_has_its_path(tmp_path: Path) -> None:
    with pytest.raises(ProvisioningError) as raised:
        read_requirements(tmp_path)
    assert raised.value.path == tmp_path
