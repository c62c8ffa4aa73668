"""What importing the package costs, and what it must not pull in."""

from __future__ import annotations

import subprocess
import sys

import pytest

_IMPORTED = """
import sys
{code}
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""
_EVERYTHING = """
import importlib, pathlib, triton_repo
root = pathlib.Path(triton_repo.__file__).parent
for path in root.rglob("*.py"):
    module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
    # `_pyfunc` runs in the server, and only there
    if not module.startswith(("triton_repo.testing", "triton_repo.flavors._pyfunc.")):
        importlib.import_module(module)
"""
_DEPLOYMENTS = """
from triton_repo.names import check_name
from triton_repo.placement import ModelPlace
from triton_repo.store import open_store
ModelPlace(open_store("."), check_name("resnet")).state()
"""


def imported_by(code: str) -> set[str]:
    command = [sys.executable, "-c", _IMPORTED.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import triton_repo", _EVERYTHING])
def test_mlflow_and_the_test_tools_are_never_imported(code: str) -> None:
    """Dependencies point one way; `triton_repo.testing` alone needs pytest."""
    assert not imported_by(code) & {"mlflow", "pytest", "_pytest", "hypothesis", "pandas"}


def test_looking_at_a_local_repository_pays_for_nothing_else() -> None:
    """ONNX and S3 are imported where they are used."""
    assert not imported_by(_DEPLOYMENTS) & {
        *("onnx", "boto3", "botocore", "azure", "yaml", "mlflow")
    }


def test_the_package_says_its_version() -> None:
    code = "from triton_repo._version import WRITER; print(WRITER, file=sys.stderr)"
    command = [sys.executable, "-c", f"import sys; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("triton-repo ")
