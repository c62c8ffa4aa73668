"""MLflow deployments target `triton`."""
