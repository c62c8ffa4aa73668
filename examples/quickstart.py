"""The main job, for real, showing every command: publish, deploy, predict, compare, update, delete.

It starts an embedded Triton on a temporary model repository, with MLflow on SQLite beside it, runs
the commands that a user would type, and leaves nothing behind.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow_triton_plugin.local import LocalTriton

EXAMPLES = Path(__file__).resolve().parent
MODEL = "onnx_float32_int32_int32"


def main() -> int:
    """Run the whole story."""
    with tempfile.TemporaryDirectory(prefix="mlflow-triton-quickstart-") as folder:
        repository = Path(folder, "models")
        repository.mkdir()
        os.chdir(folder)
        say("Start Triton. (The first time, a server of its own is installed into your cache.)")
        show(f"triton-local --model-repository {repository} --grpc-port 0 &")
        with LocalTriton(repository) as triton:
            os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
            export("TRITON_URL", triton.grpc_url)
            export("TRITON_MODEL_REPO", str(repository))
            publish()
            deploy()
            update()
            look_and_delete()
    say("Done: everything was as expected, and nothing is left behind.")
    return 0


def publish() -> None:
    """Publish the example both ways."""
    say("Publish a directory in Triton's layout (flavor triton), with an example and its answer …")
    ask = ("--input_example", EXAMPLES / "input.json", "--output_example")
    for end in ("", "_v2"):
        paths = (EXAMPLES / f"{MODEL}{end}", *ask, EXAMPLES / f"expected_output{end}.json")
        run("publish-model", "--model_name", MODEL, "--model_directory", *paths)
    say("… or log an ONNX model with MLflow itself (flavor onnx).")
    for line in inspect.getsource(log_with_mlflow).splitlines()[2:]:
        show(line.partition("  # noqa")[0].strip(), prompt=">>>")
    log_with_mlflow()


def log_with_mlflow() -> None:
    """Log the first version's ONNX file; what it prints of itself is the code to copy."""
    import mlflow.onnx  # noqa: PLC0415
    import onnx  # noqa: PLC0415

    model = onnx.load(EXAMPLES / MODEL / "1" / "model.onnx")
    mlflow.onnx.log_model(model, name="triton", registered_model_name="from_onnx")


def deploy() -> None:
    """Deploy both, and compare what they answer."""
    say("Deploy them: each is loaded, checked, recorded.")
    for name in (MODEL, "from_onnx"):
        deployments("create", "--name", name, "-m", f"models:/{name}/1")
        compare(name, "expected_output.json")


def update() -> None:
    """Serve version 2, then go back."""
    say("Update to version 2: it answers its own example before version 1 stops serving.")
    deployments("update", "--name", MODEL, "-m", f"models:/{MODEL}/2", "-C", "validate=true")
    compare(MODEL, "expected_output_v2.json")
    say("Going back copies nothing: version 1 is still on disk.")
    deployments("update", "--name", MODEL, "-m", f"models:/{MODEL}/1")
    compare(MODEL, "expected_output.json")


def look_and_delete() -> None:
    """List, get, delete."""
    say("See what is deployed.")
    deployments("list")
    deployments("get", "--name", MODEL)
    say("Delete.")
    for name in (MODEL, "from_onnx"):
        deployments("delete", "--name", name)
    deployments("list")


def compare(name: str, expected: str) -> None:
    """Predict to a file and hold it against the expected one."""
    paths = ("--input-path", EXAMPLES / "input.json", "--output-path", "output.json")
    deployments("predict", "--name", name, *paths)
    answer = json.loads(Path("output.json").read_text(encoding="utf-8"))
    wanted = json.loads((EXAMPLES / expected).read_text(encoding="utf-8"))
    if answer != wanted:
        sys.exit(f"{name} answered {answer}, and {expected} says {wanted}")
    print(f"output.json equals {expected}")


def deployments(command: str, *arguments: str | Path) -> None:
    """Run one of MLflow's deployments commands."""
    run("mlflow", "deployments", command, "-t", "triton", *arguments)


def run(*command: str | Path) -> None:
    """Show a command and run it; a failure ends the story."""
    words = [str(word) for word in command]
    show(shlex.join(words))
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        sys.exit(f"it ended with {done.returncode}: {done.stderr}")
    if done.stdout.strip():
        print(done.stdout.strip())


def export(name: str, value: str) -> None:
    """Set an environment variable, here and for the commands."""
    show(f"export {name}={value}")
    os.environ[name] = value


def say(text: str) -> None:
    """Tell what comes next."""
    print(f"\n# {text}", flush=True)


def show(command: str, prompt: str = "$") -> None:
    """Print a command as a terminal would show it."""
    print(f"{prompt} {command}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
