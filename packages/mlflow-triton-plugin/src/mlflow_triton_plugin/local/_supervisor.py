"""Runs `tritonserver`, and ends it with everything it started when the parent says so or dies.

A script of its own, started with `python -I -S`: the process that starts a server may have
threads, may fork, and may be killed outright; this one is small, does nothing else, and outlives
its parent by as long as the server takes to stop.

    stdin   a pipe held by the parent: a byte, or its end, means stop
    stdout  one line: the server's process id
    stderr  the log; the server's stdout and stderr too

Arguments: the prefix of the shared memory regions to remove, seconds between SIGTERM and
SIGKILL, the folder with the log, and the server's command line. The folder is removed when a
parent that died leaves nobody else to do it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Run the server until it ends or the parent wants it to; return its exit code."""
    prefix, grace_s, folder, command = argv[0], float(argv[1]), Path(argv[2]), argv[3:]
    parent = os.getppid()
    # stubs whose server died come to us, so that they can be waited for
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _wake_on_signals()
    server = _spawn(command)
    _tell(f"{server}\n")
    status = _watch(server, parent, wakeup)
    if status is None:
        status = _terminate(server, grace_s)
    _kill_group(server)
    _remove_regions(prefix)
    if os.getppid() != parent:
        _remove(folder)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _wake_on_signals() -> int:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (*_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read_end


def _spawn(command: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)  # so that the group can be killed and we are not in it
        # should this process be killed outright, the server still ends; its stubs follow it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execv(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # the parent is gone; stdin's end says so too
        os.write(1, text.encode())


def _watch(server: int, parent: int, wakeup: int) -> int | None:
    """Return the server's wait status, or None when it is to be stopped."""
    while True:
        # a parent's forked children hold the pipe open too: its death is looked for as well
        ready, _, _ = select.select([0, wakeup], [], [], _POLL_S)
        if wakeup in ready and set(os.read(wakeup, 512)) & set(_SIGNALS):
            return None
        status = _reap(server)
        if status is not None:
            return status
        if 0 in ready or os.getppid() != parent:
            return None


def _reap(server: int) -> int | None:
    """Collect orphans that came to us; return the server's wait status once it has ended."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in (0, server):
            return status if pid else None


def _terminate(server: int, grace_s: float) -> int:
    os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        status = _reap(server)
        if status is not None:
            return status
        time.sleep(0.01)
    _signal_group(server, signal.SIGKILL)
    return os.waitpid(server, 0)[1]


def _kill_group(server: int) -> None:
    """Kill what the server left behind, and wait until it is gone."""
    while _signal_group(server, signal.SIGKILL):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-server, os.WNOHANG)
        time.sleep(0.005)


def _signal_group(server: int, number: int) -> bool:
    try:
        os.killpg(server, number)
    except ProcessLookupError:
        return False
    return True


def _remove_regions(prefix: str) -> None:
    for region in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108 - where shm_open puts them
        region.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
