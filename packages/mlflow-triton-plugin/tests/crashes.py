"""A test whose Triton died of a fault of Triton's own runs once more, and the run says so.

Triton deletes a model as soon as its last request is released. Its destructor
(`TritonBackendThread::StopBackendThread`, up to today's main) reads the last element of a list
without a lock. The model's thread still has that element in its hands until the request's
`Execute` has returned; the list is then empty, and tritonserver dies of a SIGSEGV. It is rare:
once in a thousand models that go while they are asked. A crash by something of ours comes back
in the second run, and fails it.
"""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from mlflow_triton_plugin.local import LocalTriton

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["name_reruns", "pytest_report_teststatus", "pytest_runtest_protocol"]

_RERUN = "rerun"
_SIGSEGV = 128 + signal.SIGSEGV

_started: list[LocalTriton] = []
_crashed: list[LocalTriton] = []


def _watched(of: Callable[[LocalTriton], object]) -> Callable[[LocalTriton], object]:
    """Look at the server before its `start` or `stop` forgets how it ended."""

    @functools.wraps(of)
    def call(server: LocalTriton) -> object:
        if server.poll() == _SIGSEGV and server not in _crashed:
            _crashed.append(server)
        if server not in _started:
            _started.append(server)
        return of(server)

    return call


setattr(LocalTriton, "start", _watched(LocalTriton.start))  # noqa: B010 - a method of ours
setattr(LocalTriton, "stop", _watched(LocalTriton.stop))  # noqa: B010 - the same


def _has_crashed() -> bool:
    """Whether a server died of a SIGSEGV since this was asked last, or since it was started."""
    found = bool(_crashed) or any(server.poll() == _SIGSEGV for server in _started)
    _crashed.clear()
    _started[:] = [server for server in _started if server.is_running]
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test; where it failed and a server crashed, once more with new fixtures and servers."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if any(report.failed for report in reports) and _has_crashed():
        for report in reports:
            if report.failed:
                report.outcome = _RERUN  # type: ignore[assignment]
                item.ihook.pytest_runtest_logreport(report=report)
        item.session._setupstate.teardown_exact(None)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_report_teststatus(
    report: pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Name what is run again."""
    return (_RERUN, "R", ("RERUN", {"yellow": True})) if report.outcome == _RERUN else None


def name_reruns(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at a run's end which tests ran again."""
    for report in terminalreporter.getreports(_RERUN):
        terminalreporter.write_line(
            f"RERUN {report.nodeid}: tritonserver died of a SIGSEGV in its {report.when}"
        )
