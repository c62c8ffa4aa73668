"""`python -m mlflow_triton_plugin.local`, the same as `triton-local`."""

import sys

from mlflow_triton_plugin.local.cli import main

if __name__ == "__main__":
    sys.exit(main())
