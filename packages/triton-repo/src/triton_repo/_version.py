"""This package's version, read from its metadata."""

from importlib.metadata import version

__all__ = ["WRITER", "__version__"]

__version__ = version("triton-repo")

#: How records say what wrote them.
WRITER = f"triton-repo {__version__}"
