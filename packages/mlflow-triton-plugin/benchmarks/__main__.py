"""Measures the plugin beside the limit, in one run: `nox -s bench`.

Ours and the limit take turns, so that noise of the machine hits both; what counts is the ratio of
the medians.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import create
import durable
import listing
import predict
import rollback
import s3

import pyfunc
from mlflow_triton_plugin.local import LocalTriton

BENCHMARKS = {
    "predict": predict.run,
    "create": create.run_create,
    "update": create.run_update,
    "rollback": rollback.run,
    "durable": durable.run,
    "list": listing.run,
    "s3": s3.run,
    "pyfunc": pyfunc.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="which ones; all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and a smaller model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        repository = Path(folder, "repository")
        repository.mkdir()
        with LocalTriton(repository, extra_args=["--disable-auto-complete-config"]) as triton:
            os.environ |= {
                "TRITON_URL": triton.grpc_url,
                "TRITON_MODEL_REPO": str(repository),
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            }
            os.chdir(folder)  # MLflow puts artifacts into the working directory
            for name in arguments.names or BENCHMARKS:
                BENCHMARKS[name](triton, Path(folder), quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
