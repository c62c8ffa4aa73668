# ruff: noqa: RUF001 - these are their signs
"""What installers say of what went wrong; these are outputs of real ones, shortened."""

from __future__ import annotations

import pytest

from mlflow_triton_plugin.local._installer_words import is_full_disk, reason_of

UV_BUILD = """Resolved 1 package in 3.26s
   Building broken @ file:///b.tar.gz
error: Failed to build `broken @ file:///b.tar.gz`
  cause: The build backend returned an error
  cause: Call to `setuptools.build_meta:__legacy__.build_wheel` failed (exit status: 1)

         [stderr]
         Traceback (most recent call last):
           File "<string>", line 3, in <module>
         error: gcc is no compiler
         RuntimeError: no gcc

hint: Build failures usually indicate a problem with the package or the build environment
"""
UV_12_BUILD = """  × Failed to build `broken @ file:///a/folder/
  │ b.tar.gz`
  ├─▶ The build backend returned an error
  ╰─▶ Call to `setuptools.build_meta:__legacy__.build_wheel` failed (exit
      status: 1)

      [stderr]
      RuntimeError: no gcc


hint: Build failures usually indicate a problem with the package or the build environment
"""
UV_12_NONE = """Using Python 3.11.7 environment at: v
  × No solution found when resolving dependencies:
  ╰─▶ Because there is no version of
      six==1.99
"""
PIP_BUILD = """Building wheels for collected packages: broken
  error: subprocess-exited-with-error

  × Building wheel for broken did not run successfully.
  │ exit code: 1
  ╰─> [24 lines of output]
      Traceback (most recent call last):
      RuntimeError: no gcc
      [end of output]

  note: This error originates from a subprocess, and is likely not a problem with pip.
  ERROR: Failed building wheel for broken
Failed to build broken
ERROR: Could not build wheels for broken, which is required to install projects

[notice] A new release of pip is available: 23.2.1 -> 25.0
"""
PIP_GIT = """Collecting foo@ git+https://h/x/y.git
  Running command git clone /tmp/foo
  fatal: no such host
  error: subprocess-exited-with-error

  × git clone /tmp/foo did not run successfully.
  │ exit code: 128
  ╰─> See above for output.

  note: This error originates from a subprocess, and is likely not a problem with pip.
error: subprocess-exited-with-error

× git clone /tmp/foo did not run successfully.
│ exit code: 128
╰─> See above for output.

note: This error originates from a subprocess, and is likely not a problem with pip.
"""
PIP_CONFLICT = """ERROR: Cannot install -r /a b/r.txt (line 1) and numpy<2.

The conflict is caused by:
    a 4.1 depends on numpy>=2

To fix this you could try to:
1. loosen the range of package versions you've specified

ERROR: ResolutionImpossible: for help visit https://h/dealing-with-dependency-conflicts
"""
PIP_EXCEPTION = """ERROR: Exception:
Traceback (most recent call last):
  File "base_command.py", line 180, in exc_logging_wrapper
    status = run_func(*args)
AssertionError: 'foo' != 'f' for wheel
"""


SAID = {
    "uv 0.9": ("error: Failed\n  Caused by: copying\n  Caused by: no room\n", "Failed: no room"),
    "uv 0.13": ("Resolved 2\nerror: Failed\n  cause: a\n  cause: no room\n", "Failed: no room"),
    "uv in 20 columns": (
        "error: Failed\n(a)\n  cause: copying\n  a to b\n  cause: no\n    room\n",
        "Failed (a): no room",
    ),
    "uv builds": (UV_BUILD, "Failed to build `broken @ file:///b.tar.gz`: RuntimeError: no gcc"),
    "uv 0.12 builds": (
        UV_12_BUILD,
        "Failed to build `broken @ file:///a/folder/ b.tar.gz`: RuntimeError: no gcc",
    ),
    "uv 0.12 has none": (
        UV_12_NONE,
        "No solution found when resolving dependencies: Because there is no version of six==1.99",
    ),
    "pip builds": (
        PIP_BUILD,
        "Building wheel for broken did not run successfully. exit code: 1: RuntimeError: no gcc",
    ),
    "pip asks git": (
        PIP_GIT,
        "git clone /tmp/foo did not run successfully. exit code: 128: fatal: no such host",
    ),
    "pip's conflict": (
        PIP_CONFLICT,
        "Cannot install one of these and numpy<2. The conflict is: a 4.1 depends on numpy>=2",
    ),
    "pip's own fault": (PIP_EXCEPTION, "AssertionError: 'foo' != 'f' for wheel"),
    "pip has none": (
        "ERROR: one\nERROR: No match for six (from -r /a b/r.txt (line 1))\nbye\n",
        "No match for six",
    ),
    "no error": ("one\ntwo\n", "two"),
    "nothing above": (
        "error: a-failed\n╰─> See above for output.",
        "a-failed: See above for output.",
    ),
    "nothing before": ("[end of output]", "it failed: [end of output]"),
    "only advice": ("hint: try again\n", "hint: try again"),
    "nothing": ("", "no reason given"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_failed_is_told_with_its_cause(name: str) -> None:
    output, reason = SAID[name]
    assert reason_of(output) == reason


@pytest.mark.parametrize(
    ("output", "is_full"),
    [
        ("  cause: No space left on device (os error 28)", True),
        ("error: failed to copy\n  cause: kein Platz (os error 28)", True),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left", True),
        ("ERROR: … [Errno 122] Disk quota exceeded", True),
        ("error: Connection refused (os error 111)", False),
    ],
)
def test_a_full_disk_is_known_by_its_words_and_numbers(output: str, *, is_full: bool) -> None:
    assert is_full_disk(output) == is_full
