"""Publish models to MLflow for Triton."""
