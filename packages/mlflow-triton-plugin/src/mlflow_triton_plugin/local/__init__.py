"""The embedded Triton: a real `tritonserver` without Docker, root or a GPU."""
