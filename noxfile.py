"""The project's menu: `nox -l`.

Every session makes an environment of its own with uv and installs what it needs into it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.reuse_existing_virtualenvs = True

PACKAGES = ("triton-repo", "mlflow-triton-plugin", "publish-tools")
PATHS = [f"packages/{package}" for package in PACKAGES]
GROUPS = nox.project.load_toml("pyproject.toml")

#: The newest MLflow that installs, and the oldest that is supported. SQLAlchemy 2.1 came later
#: than 2.22 and breaks its import.
MLFLOWS = {"newest": ["mlflow>=3,<4"], "oldest": ["mlflow==2.22.*", "sqlalchemy<2.1"]}


def install(session: nox.Session, *groups: str, mlflow: str = "newest") -> None:
    """Install the three packages, editable, and the named dependency groups."""
    editable = [argument for path in PATHS for argument in ("-e", f"{path}")]
    extras = ["-e", "packages/mlflow-triton-plugin[http,testing]"]
    dependencies = nox.project.dependency_groups(GROUPS, *groups) if groups else []
    session.install(*editable, *extras, *dependencies, *MLFLOWS[mlflow])


def environment(session: nox.Session) -> dict[str, str]:
    """What every session that runs MLflow sets."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # a shell that forbids it has MLflow compiled by each of hundreds of processes: five seconds
        "PYTHONDONTWRITEBYTECODE": "",
        "PATH": f"{session.bin}{os.pathsep}{os.environ['PATH']}",
    }


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, rules and format."""
    session.install(*nox.project.dependency_groups(GROUPS, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Type-check, strictly: sources, tests and tools."""
    install(session, "test", "types")
    # one by one: several have a conftest.py
    for path in (*PATHS, "examples", "integration", "conftest.py", "noxfile.py"):
        session.run("mypy", path)


#: Microsoft's emulator of Azure Blob Storage, from npm.
AZURITE = "azurite@3.37.0"


def azurite(session: nox.Session) -> dict[str, str]:
    """Install the emulator, once, with the Node.js of a wheel; the variable that names it."""
    folder = Path(".nox", AZURITE).absolute()
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        quietly = ("--silent", "--no-audit", "--no-fund")
        session.run(
            "npm", "install", *quietly, "--prefix", str(folder), AZURITE, env=environment(session)
        )
    return {"AZURITE": str(program)}


#: Test processes, each with servers of its own; two more than cores, since they wait for those.
WORKERS = min(8, len(os.sched_getaffinity(0)) + 2)
SPREAD = ["-n", str(WORKERS), "--dist", "worksteal"]
#: What a run names at its end: tests that take two seconds and more.
SLOWEST = ["--durations=15", "--durations-min=2"]
FLAVORS = "packages/mlflow-triton-plugin/tests/flavors"
FAULTS = "packages/mlflow-triton-plugin/tests/faults"
#: Suites that go through a few points in `tests`, and through all of them in `faults`.
WALKS = (
    (FAULTS,),
    tuple(
        f"packages/triton-repo/tests/test_{each}.py"
        for each in ("s3_faults", "power_cut", "placement")
    ),
)
#: What depends on which MLflow it is: its models, signatures, registry and commands. One is
#: enough to break things with, to start servers with, and to ask them.
OF_MLFLOW = {
    "mlflow-triton-plugin": (
        *("test_deployments.py", "test_fetch.py", "test_golden.py", "test_cli.py"),
        *("test_warmup.py", "pyfunc/test_types.py"),
    ),
    "publish-tools": (
        *("test_cli.py", "test_examples.py", "test_groups.py", "test_input_example.py"),
        *("test_publish.py", "test_signature.py", "test_triton_flavor.py"),
    ),
}


def checked_paths(session: nox.Session) -> list[str]:
    """The arguments for pytest, once it is certain that the tests which they name are there."""
    for argument in session.posargs:
        path = Path(argument.partition("::")[0])
        is_path = "/" in argument or path.suffix == ".py"
        if is_path and not argument.startswith("-") and not path.exists():
            session.error(
                f"{path} does not exist in {Path.cwd()}; name a test file or folder, such as "
                "packages/triton-repo/tests/test_config.py"
            )
    return session.posargs


@nox.session
@nox.parametrize("mlflow", list(MLFLOWS))
def tests(session: nox.Session, mlflow: str) -> None:
    """The test suites on the embedded Triton, with the newest and the oldest MLflow.

    `-- PATH -k WORD` picks tests: one process, and the newest MLflow, unless the session is asked
    for by its own name.
    """
    suites = [[*SPREAD, f"{path}/tests", f"--ignore={FLAVORS}"] for path in PATHS]
    if mlflow == "oldest":
        suites = [
            [*SPREAD, "-k", "not http", *(f"packages/{package}/tests/{path}" for path in paths)]
            for package, paths in OF_MLFLOW.items()
        ]
    if session.posargs:
        if mlflow == "oldest" and not any(mlflow in argument for argument in sys.argv):
            session.skip("picked tests run with the newest MLflow; name this session to run it")
        suites = [checked_paths(session)]
    install(session, "test", mlflow=mlflow)
    variables = environment(session)
    paths = [argument.rstrip("/") for suite in suites for argument in suite]
    if any(path.endswith((PATHS[0], f"{PATHS[0]}/tests")) or "azure" in path for path in paths):
        variables |= azurite(session)
    failed = False
    for suite in suites:  # MLflow's state is the process's: each suite has one of its own
        try:
            session.run("pytest", *SLOWEST, *suite, env=variables)
        except CommandFailed:  # the others say what they have to say, too
            failed = True
    if failed:
        session.error("not every suite passed")


@nox.session
def faults(session: nox.Session) -> None:
    """Kill real commands at every point, local and on S3, and fail every call; an hour.

    `tests` does the same at one point in a few.
    """
    install(session, "test")
    suites = [session.posargs] if session.posargs else [[*SPREAD, *each] for each in WALKS]
    for suite in suites:
        session.run(
            "pytest", *SLOWEST, *suite, env=environment(session) | {"FAULTS_EVERY_POINT": "1"}
        )


@nox.session
def flavors(session: nox.Session) -> None:
    """Models of MLflow's flavors, on Triton and in process; makes the plugin's FLAVORS.md.

    Downloads some 4 GB: the libraries, twice, and with PyTorch those of CUDA.
    """
    install(session, "test", "flavors")
    session.run("pytest", *(session.posargs or [FLAVORS]), env=environment(session))


@nox.session
def quickstart(session: nox.Session) -> None:
    """Publish, deploy, predict, compare, update, list, delete: for real, showing each command."""
    install(session, "examples")
    session.run("python", "examples/quickstart.py", *session.posargs, env=environment(session))


@nox.session
def examples(session: nox.Session) -> None:
    """Run the scripts in examples/, and check that its models are what their maker makes."""
    install(session, "examples")
    session.run("python", "examples/make_models.py", "--check", env=environment(session))
    for script in sorted(Path("examples").glob("*.py")):
        if script.name not in ("make_models.py", "quickstart.py"):
            session.run("python", str(script), env=environment(session))


#: What must work in an environment that holds one package and nothing but what it asks for.
ALONE: dict[str, list[tuple[str, ...]]] = {
    "triton-repo": [("python", "-c", "import triton_repo.flavors, triton_repo.placement")],
    "mlflow-triton-plugin": [
        ("triton-local", "--help"),
        ("mlflow-triton", "--help"),
        ("mlflow", "deployments", "help", "-t", "triton"),
    ],
    "publish-tools": [
        ("publish-model", "--help"),
        ("publish_model_to_mlflow", "--help"),
        ("python", "-c", "import publish_tools.triton"),
    ],
}


def build_wheels(session: nox.Session) -> Path:
    """Every package's wheel, in a folder of the session's own."""
    dist = Path(session.create_tmp(), "dist")
    shutil.rmtree(dist, ignore_errors=True)
    for path in PATHS:
        session.run("uv", "build", "--quiet", "--wheel", "--out-dir", str(dist), path)
    return dist


@nox.session
def wheels(session: nox.Session) -> None:
    """Build each package's wheel and install it alone into an empty environment."""
    session.install("uv")
    dist = build_wheels(session)
    # uv knows a wheel it once found by its version, and takes the one of the last time
    anew = [f"--refresh-package={package}" for package in PACKAGES]
    for package, commands in ALONE.items():
        alone = Path(session.create_tmp(), package)
        session.run("uv", "venv", "--quiet", "--clear", "--python", "python", str(alone))
        (wheel,) = dist.glob(f"{package.replace('-', '_')}-*.whl")
        into = ("--python", str(alone / "bin" / "python"), "--find-links", str(dist))
        session.run("uv", "pip", "install", "--quiet", *into, *anew, str(wheel))
        for program, *arguments in commands:
            path = str(alone / "bin" / program)
            session.run(path, *arguments, env=environment(session), external=True, silent=True)
        session.log(f"{package}: {wheel.name} works alone")


@nox.session
def integration(session: nox.Session) -> None:
    """Triton, MLflow and S3 in containers, from the wheels, secured, and broken on purpose."""
    install(session, "test", "integration")
    dist = build_wheels(session)
    user = Path(session.create_tmp(), "user").absolute()
    session.run("uv", "venv", "--quiet", "--clear", "--python", "python", str(user))
    into = ("--quiet", "--python", str(user / "bin" / "python"))
    plugin = next(dist.glob("mlflow_triton_plugin-*"))
    wheels = [str(wheel) for wheel in dist.glob("*.whl") if wheel != plugin]
    others = (*nox.project.dependency_groups(GROUPS, "examples"), *MLFLOWS["newest"])
    # uv: what packs a model's environment
    session.run("uv", "pip", "install", *into, f"{plugin}[http]", *wheels, *others, "uv")
    variables = {
        "INTEGRATION_PYTHON": str(user / "bin" / "python"),
        "TESTCONTAINERS_RYUK_DISABLED": "true",  # leftovers are seen to by integration/leftovers.py
    }
    session.run(
        "pytest",
        *(session.posargs or ["integration"]),
        env=environment(session) | variables,
        # containers take their time to go; nox would kill pytest while it removes them
        interrupt_timeout=120,
        terminate_timeout=120,
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Measure beside the limits: raw tritonclient, boto3, a plain copy, Triton's load, MLflow."""
    install(session, "bench")
    session.run(
        "python",
        "packages/mlflow-triton-plugin/benchmarks",
        *session.posargs,
        env=environment(session),
    )
