"""The embedded Triton: a real `tritonserver` without Docker, root or a GPU.

```python
with LocalTriton("models") as triton:
    client = tritonclient.grpc.InferenceServerClient(triton.grpc_url)
```
"""

from mlflow_triton_plugin.local._packages import model_packages, read_requirements, requirements_of
from mlflow_triton_plugin.local.errors import (
    LocalTritonError,
    ProvisioningError,
    StartError,
    UnsupportedPlatformError,
)
from mlflow_triton_plugin.local.server import LocalTriton

__all__ = [
    "LocalTriton",
    "LocalTritonError",
    "ProvisioningError",
    "StartError",
    "UnsupportedPlatformError",
    "model_packages",
    "read_requirements",
    "requirements_of",
]
