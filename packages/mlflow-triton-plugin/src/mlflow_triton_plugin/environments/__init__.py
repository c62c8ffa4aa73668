"""Execution environments: what a model requires, packed for Triton's Python backend.

```
requirements.txt ──recipe──▶ Recipe ──pack, once a machine──▶ <cache>/environments/<name>/….tar.gz
   ──place──▶ <deployment>/env-py311-<digest>.tar.gz, which EXECUTION_ENV_PATH of config.pbtxt names
```

The archive lies beside config.pbtxt: of an object store Triton downloads nothing but the model's
own directory. Its name is a digest of what is asked for (the requirements, the Python, the
machine), so that whoever has the same requirements finds it: the versions of a deployment in the
repository, the deployments of a machine in its cache.
"""

from mlflow_triton_plugin.environments.choosing import (
    ENV_PARAMETER,
    Environment,
    OwnEnvironment,
    bring_back,
    environment_for,
)

__all__ = ["ENV_PARAMETER", "Environment", "OwnEnvironment", "bring_back", "environment_for"]
