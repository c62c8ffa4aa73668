"""Is what stands in the repository still what was placed there? Every file is read and compared.

```
record ──expect──▶ paths and digests ──read──▶ what differs ──look again──▶ findings
```

Nothing is written and no lock is taken, so that a repository that is only readable can be checked.
A command that runs meanwhile is told from damage by looking twice: what differs counts where it
differs in both looks, with no journal there and the same record around both.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from triton_repo.config import CONFIG_FILENAME, NO_CONFIG, ModelConfig
from triton_repo.errors import (
    ConfigError,
    DeploymentNotFoundError,
    InvalidNameError,
    ObjectNotFoundError,
    StoreError,
)
from triton_repo.journal import OUR_DIRECTORY
from triton_repo.layout import is_bytecode, is_shared_path
from triton_repo.model_view import ASIDE, JOURNAL, ModelView, PlaceState
from triton_repo.names import check_name
from triton_repo.record import RECORD_FILENAME, DeploymentRecord, FileDigest, RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from triton_repo.record import VersionRecord
    from triton_repo.store import Store

    #: What a recorded path holds now, or why that cannot be said.
    _Seen = FileDigest | StoreError

__all__ = [
    "NO_MODELS",
    "Finding",
    "Integrity",
    "Problem",
    "deployed",
    "recorded_bytes",
    "verify",
    "verify_repository",
]

Problem = Literal["missing", "changed", "extra", "unreadable", "interrupted", "unrecorded"]

#: Directories at the root that file systems make, closed to everybody but root.
NO_MODELS = frozenset({"lost+found"})

#: One look to find something, another to be sure; the rest is for commands that run meanwhile.
_LOOKS = 5
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the record says.

    Attributes:
        deployment: its name.
        path: below the deployment's directory; a directory ends in `/`; empty for all of it.
        problem: `missing`, `changed` or `extra`; `unreadable`: the file system or the record does
            not let us judge; `interrupted`: a command is at it, or was killed; `unrecorded`: no
            digests were recorded.
        detail: what was found and what was recorded, or the reason, for people.
    """

    deployment: str
    path: str
    problem: Problem
    detail: str = ""

    def __str__(self) -> str:
        """One line, whatever the file is called: `resnet/3/model.onnx: changed (…)`."""
        where = f"{self.deployment}/{self.path}" if self.path else self.deployment
        return _printable(f"{where}: {self.problem}" + (f" ({self.detail})" if self.detail else ""))


@dataclass(frozen=True)
class Integrity:
    """What one deployment was found to be.

    Attributes:
        deployment: its name.
        findings: what is not as recorded, by path; empty where everything is.
        files: how many files were read.
        size_bytes: their sizes, added up.
    """

    deployment: str
    findings: tuple[Finding, ...] = ()
    files: int = 0
    size_bytes: int = 0


# -- whole repositories -----------------------------------------------------------------------


def verify_repository(store: Store, names: Iterable[str] = ()) -> list[Finding]:
    """Check deployments file by file against their records.

    Args:
        store: the repository.
        names: the deployments; all of them when there are none. Other models are left out.

    Returns:
        Everything that is not as recorded.

    Raises:
        InvalidNameError, DeploymentNotFoundError: a name is none, or has no deployment.
        StoreError: the repository cannot be read.
    """
    named = tuple(names)
    findings: list[Finding] = []
    for view in deployed(store, named):
        try:
            findings += verify(view).findings
        except DeploymentNotFoundError:  # deleted since we listed it
            if named:
                raise
    return findings


def deployed(store: Store, names: Iterable[str] = ()) -> list[ModelView]:
    """The deployments of a repository, damaged and interrupted ones included.

    Args:
        store: the repository.
        names: which ones, and with each the models that it needs; all of them when there are none.

    Raises:
        InvalidNameError, DeploymentNotFoundError: a name is none, or has no deployment.
        StoreError: the repository cannot be read.
    """
    views = [ModelView(store, check_name(name)) for name in dict.fromkeys(names)]
    present = _children(store)
    for view in views:
        if view.name not in present or not _is_deployed(view):
            raise _not_deployed(view)
    wanted = {name for view in views for name in _needed(view)} - {view.name for view in views}
    members = [view for view in _views(store, sorted(wanted)) if _is_deployed(view)]
    return [*views, *members] or [view for view in _views(store, present) if _is_deployed(view)]


def _needed(view: ModelView) -> set[str]:
    try:
        return view.needed()
    except (RecordError, StoreError):  # told by who checks it
        return set()


def _children(store: Store) -> list[str]:
    try:
        return store.children("")
    except StoreError:
        store.check()  # says it better, where it is the repository itself
        raise


def _views(store: Store, names: Iterable[str]) -> Iterator[ModelView]:
    for name in names:
        try:
            view = ModelView(store, check_name(name))
        except InvalidNameError:  # no command of ours made it
            continue
        if name not in NO_MODELS:
            yield view


def _is_deployed(view: ModelView) -> bool:
    try:
        return view.state() in (PlaceState.DEPLOYED, PlaceState.INTERRUPTED)
    except ObjectNotFoundError:  # it went away while we looked
        return False
    except StoreError:  # closed to us: nobody may take that for whole
        return True


def _not_deployed(view: ModelView) -> DeploymentNotFoundError:
    return DeploymentNotFoundError(
        f"no deployment {view.name} in {view.store.uri}: there is no such directory, or it was not "
        "deployed by MLflow",
        name=view.name,
    )


def recorded_bytes(view: ModelView) -> int:
    """How many bytes `verify` will read, as far as that is known."""
    try:
        record = view.record()
    except (RecordError, StoreError):
        return 0
    if record is None:
        return 0
    return sum(each.size_bytes for each in _expect(record).files.values())


# -- one deployment ---------------------------------------------------------------------------


def verify(view: ModelView, on_read: Callable[[int], None] | None = None) -> Integrity:
    """Read every file of a deployment and compare it with the record.

    Bytecode that Python backends write beside their sources (`__pycache__`) is left out. A file
    that cannot be read is a finding, not an error.

    Args:
        view: the deployment's directory.
        on_read: told the number of bytes after each file.

    Raises:
        DeploymentNotFoundError: there is no such deployment, or it was deleted meanwhile.
    """
    earlier: _Look | None = None
    for attempt in range(_LOOKS):
        if attempt:
            time.sleep(_PAUSE_S)
        look = _look(view, earlier, on_read)
        if look is not None and not look.findings:
            return look.result(view, ())
        if look is not None and earlier is not None and earlier.stamp == look.stamp:
            seen = {(finding.path, finding.problem) for finding in earlier.findings}
            both = [each for each in look.findings if (each.path, each.problem) in seen]
            return look.result(view, both)
        earlier = look
    return Integrity(view.name, (_interruption(view),))


@dataclass(frozen=True)
class _Look:
    """What one look found while no command was at it.

    Attributes:
        stamp: the record's bytes, the same before and after; None where they cannot be read.
        findings: what differs.
        whole: files that are as recorded, with what they are.
    """

    stamp: bytes | None
    findings: tuple[Finding, ...] = ()
    whole: Mapping[str, FileDigest] = field(default_factory=dict)

    def result(self, view: ModelView, findings: Iterable[Finding]) -> Integrity:
        return Integrity(
            view.name,
            tuple(sorted(findings, key=lambda each: each.path)),
            files=len(self.whole),
            size_bytes=sum(each.size_bytes for each in self.whole.values()),
        )


def _look(
    view: ModelView, earlier: _Look | None, on_read: Callable[[int], None] | None
) -> _Look | None:
    """Look once; None where a command was at it.

    Raises:
        DeploymentNotFoundError: there is no such deployment.
    """
    try:
        stamp = _stamp(view)
        if stamp is None:
            return None
        # what was whole a moment ago need not be read again to be sure of the rest
        whole = earlier.whole if earlier is not None and earlier.stamp == stamp else {}
        look = _compare(view, stamp, whole, on_read)
        return look if _stamp(view) == stamp else None
    except ObjectNotFoundError:  # its directories are going away, or changing places
        return None
    except StoreError as exc:
        path = exc.key.partition("/")[2] if exc.key.startswith(f"{view.name}/") else ""
        return _Look(None, (_unreadable(view, path, exc),))


def _stamp(view: ModelView) -> bytes | None:
    """The record's bytes; None while there is a journal, or a change is about to begin.

    Raises:
        DeploymentNotFoundError: there is no such deployment.
    """
    state = view.state()
    if state is PlaceState.INTERRUPTED:
        return None
    data = view.read(RECORD_FILENAME) if state is PlaceState.DEPLOYED else None
    if state is PlaceState.DEPLOYED and data is None:  # deleted between the two
        return None
    if data is None:
        raise _not_deployed(view)
    return data


def _interruption(view: ModelView) -> Finding:
    """Say who is at it, or was."""
    try:
        journal = view.journal()
    except StoreError as exc:  # damaged
        return Finding(view.name, JOURNAL, "interrupted", str(exc))
    if journal is None and view.state() is not PlaceState.INTERRUPTED:
        detail = "it kept being changed while it was read; verify it again"
        return Finding(view.name, "", "interrupted", detail)
    if journal is None:
        detail = "a command was killed here before it began; mlflow-triton repair clears it away"
        return Finding(view.name, "", "interrupted", detail)
    detail = (
        f"{journal.operation} by {journal.holder or 'somebody'} since {journal.since or '?'} is "
        "under way or was killed; if it was, mlflow-triton repair finishes or undoes it"
    )
    return Finding(view.name, "", "interrupted", detail)


# -- what is expected -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Expected:
    """What the record says must be there, by path below the deployment's directory.

    Attributes:
        record: the record.
        main: the version whose config.pbtxt and files beside it are in place; None where the
            record does not tell.
        files: version directories, what is beside config.pbtxt, and what was set aside.
        aside: of what was set aside, which version needs it, and as what file.
    """

    record: DeploymentRecord
    main: VersionRecord | None
    files: Mapping[str, FileDigest]
    aside: Mapping[str, tuple[int, str]]

    def known_beside(self, path: str) -> set[FileDigest]:
        """What some version had at a path beside config.pbtxt."""
        versions = self.record.versions.values()
        return {seen.shared[path] for seen in versions if path in seen.shared}


def _expect(record: DeploymentRecord) -> _Expected:
    files = {
        f"{number}/{path}": digest
        for number, seen in record.versions.items()
        for path, digest in seen.files.items()
    }
    aside: dict[str, tuple[int, str]] = {}
    if record.main is not None:
        files |= record.shared
        for number, seen in record.versions.items():
            for path, digest in record.set_aside_of(seen).items():
                kept = f"{ASIDE}/{digest.sha256}"
                files[kept], aside[kept] = digest, (number, path)
    return _Expected(record, record.main, files, aside)


# -- what is there ----------------------------------------------------------------------------


def _compare(
    view: ModelView,
    stamp: bytes,
    whole: Mapping[str, FileDigest],
    on_read: Callable[[int], None] | None,
) -> _Look:
    try:
        record = DeploymentRecord.parse(stamp, where=RECORD_FILENAME)
    except RecordError as exc:
        return _Look(stamp, (Finding(view.name, RECORD_FILENAME, "unreadable", str(exc)),))
    if not record.versions:
        detail = "NVIDIA's plugin deployed it and recorded no digests; an update records them"
        return _Look(stamp, (Finding(view.name, "", "unrecorded", detail),))
    expected = _expect(record)
    below = set(view.store.children(view.name))
    findings = [_gone_directory(view, number, record) for number in _gone(record, below)]
    gone = tuple(f"{number}/" for number in _gone(record, below))
    wanted = {path: each for path, each in expected.files.items() if not path.startswith(gone)}

    present, unlisted = _listing(view)
    findings += unlisted
    findings += _unknown_directories(view, record, below)
    extra = sorted(path for path in present if _is_extra(path, expected))
    # what an older version had beside config.pbtxt may have stayed there
    tolerable = {path for path in extra if expected.known_beside(path)}
    seen = _read(view, [*wanted, *tolerable], whole, on_read)
    stayed = {path for path in tolerable if seen[path] in expected.known_beside(path)}
    findings += [_extra(view, path) for path in extra if path not in stayed]
    for path, digest in wanted.items():
        if path in expected.aside and _stayed_beside(expected, path, seen, stayed):
            continue
        findings += _differing(view, path, seen[path], digest, expected)
    findings += _config_findings(view, expected)
    findings += _missing_members(view, record)
    same = {path: digest for path, digest in wanted.items() if seen[path] == digest}
    return _Look(stamp, tuple(findings), same)


def _gone(record: DeploymentRecord, below: Collection[str]) -> list[int]:
    return [number for number in sorted(record.versions) if str(number) not in below]


def _gone_directory(view: ModelView, number: int, record: DeploymentRecord) -> Finding:
    count = len(record.versions[number].files)
    detail = f"the whole version directory, {count} file{'' if count == 1 else 's'}"
    return Finding(view.name, f"{number}/", "missing", detail)


def _listing(view: ModelView) -> tuple[Mapping[str, int], list[Finding]]:
    try:
        return view.store.list_files(view.name), []
    except ObjectNotFoundError:
        raise
    except StoreError as exc:
        reason = f"what is extra cannot be told: {_reason(exc)}"
        return {}, [Finding(view.name, "", "unreadable", reason)]


def _unknown_directories(
    view: ModelView, record: DeploymentRecord, below: Collection[str]
) -> list[Finding]:
    """Directories that Triton takes for versions, and the record does not know."""
    known = {str(number) for number in record.versions}
    return [
        Finding(view.name, f"{name}/", "extra", "Triton takes it for a version; none was recorded")
        for name in below
        if _is_version_like(name) and name not in known
    ]


def _is_extra(path: str, expected: _Expected) -> bool:
    """Whether a file that is there is none of those that the record, or a server, put there."""
    if path in expected.files:
        return False
    top, *rest = PurePosixPath(path).parts
    if _is_version_like(top) and rest:
        known = top.isdecimal() and str(int(top)) == top and int(top) in expected.record.versions
        return known and not is_bytecode(PurePosixPath(path))
    if expected.main is None:
        return False
    return is_shared_path(PurePosixPath(path)) or top.startswith(OUR_DIRECTORY)


def _is_version_like(name: str) -> bool:
    return re.match(r"\s*[+-]?[0-9]", name) is not None  # Triton takes the leading digits


def _extra(view: ModelView, path: str) -> Finding:
    detail = "not recorded"
    if any(part.startswith(f"{OUR_DIRECTORY}_") for part in PurePosixPath(path).parts):
        detail = "left by a killed command; mlflow-triton repair removes it"
    return Finding(view.name, path, "extra", detail)


def _stayed_beside(
    expected: _Expected, path: str, seen: Mapping[str, _Seen], stayed: Collection[str]
) -> bool:
    """Whether what is not set aside is still where an older version had it."""
    _, original = expected.aside[path]
    return (
        isinstance(seen[path], ObjectNotFoundError)
        and original in stayed
        and seen[original] == expected.files[path]
    )


def _read(
    view: ModelView,
    paths: Iterable[str],
    whole: Mapping[str, FileDigest],
    on_read: Callable[[int], None] | None,
) -> dict[str, _Seen]:
    """What every path holds; those in `whole` are not read again."""

    def read(path: str) -> _Seen:
        try:
            return view.store.digest(view.key(path))
        except StoreError as exc:
            return exc

    seen: dict[str, _Seen] = dict(whole)
    unread = [path for path in paths if path not in whole]
    pool = ThreadPoolExecutor(view.store.readers, thread_name_prefix="verify")
    try:
        for path, each in zip(unread, pool.map(read, unread), strict=True):
            seen[path] = each
            if on_read is not None and isinstance(each, FileDigest):
                on_read(each.size_bytes)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C: only what is being read is read to its end
    return seen


def _differing(
    view: ModelView, path: str, seen: _Seen, recorded: FileDigest, expected: _Expected
) -> list[Finding]:
    if seen == recorded:
        return []
    if isinstance(seen, ObjectNotFoundError):
        return [Finding(view.name, path, "missing", _missing_detail(path, recorded, expected))]
    if isinstance(seen, StoreError):
        return [_unreadable(view, path, seen)]
    detail = (
        f"{seen.size_bytes} bytes, sha256 {seen.sha256}; recorded "
        f"{recorded.size_bytes} bytes, sha256 {recorded.sha256}"
    )
    return [Finding(view.name, path, "changed", detail)]


def _missing_detail(path: str, recorded: FileDigest, expected: _Expected) -> str:
    needed = expected.aside.get(path)
    if needed is not None:
        version, original = needed
        return f"version {version} needs it, as {original}, to serve again without being fetched"
    return f"recorded {recorded.size_bytes} bytes, sha256 {recorded.sha256}"


def _unreadable(view: ModelView, path: str, exc: StoreError) -> Finding:
    return Finding(view.name, path, "unreadable", _reason(exc))


def _reason(exc: StoreError) -> str:
    """The system's own words where it has some: whether we may write is not the question here."""
    cause = exc.__cause__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(exc)


# -- config.pbtxt -----------------------------------------------------------------------------


def _config_findings(view: ModelView, expected: _Expected) -> list[Finding]:
    record, main = expected.record, expected.main
    if main is None:
        serving = ", ".join(map(str, record.serving)) or "none"
        detail = (
            f"it serves version {serving}, and knows nothing of it: config.pbtxt and what is "
            "beside it cannot be judged"
        )
        return [Finding(view.name, RECORD_FILENAME, "unreadable", detail)]
    try:
        data = view.read(CONFIG_FILENAME)
    except StoreError as exc:
        return [_unreadable(view, CONFIG_FILENAME, exc)]
    problem = _missing_config(record, main) if data is None else _config_problem(data, record, main)
    return [Finding(view.name, CONFIG_FILENAME, *problem)] if problem else []


def _missing_config(record: DeploymentRecord, main: VersionRecord) -> tuple[Problem, str] | None:
    if main.config:
        return "missing", "one was recorded"
    if set(NO_CONFIG.served(record.versions)) != set(record.serving):
        return "missing", f"it pinned version {_numbers(record.serving)}"
    return None


def _config_problem(
    data: bytes, record: DeploymentRecord, main: VersionRecord
) -> tuple[Problem, str] | None:
    try:
        ours = ModelConfig.parse(main.config)
    except ConfigError as exc:
        return None if data == _bytes(main.config) else ("changed", f"the recorded {exc}")
    serving = sorted(record.serving)
    pin_needed = main.members == 1 and set(ours.served(record.versions)) != set(serving)
    if data == ours.pinned(serving).data or (data == ours.data and not pin_needed):
        return None
    try:
        config = ModelConfig.parse(data)
    except ConfigError as exc:
        return "changed", str(exc)
    if not main.config and config.text != ours.pinned(config.pinned_versions).text:
        return "extra", "none was recorded"
    if data in (ours.data, ours.pinned(config.pinned_versions).data):
        pinned = _numbers(config.pinned_versions) or "none"
        return "changed", f"it pins version {pinned}; recorded as serving: {_numbers(serving)}"
    return "changed", "it is not the recorded text; an update keeps it where it suits"


def _missing_members(view: ModelView, record: DeploymentRecord) -> list[Finding]:
    """The models that this one needs, and that are not there; their files are theirs to check."""
    findings = []
    for name, versions in sorted(record.needs().items()):
        there = ModelView(view.store, check_name(name)).versions()
        gone = _numbers(versions - {*there})
        if gone:
            detail = f"it needs version {gone} of {name}, which is not in the repository"
            findings.append(Finding(view.name, "", "missing", detail))
    return findings


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _numbers(versions: Iterable[int]) -> str:
    return ", ".join(str(version) for version in sorted(versions))


def _printable(text: str) -> str:
    """The same text in one line, for file names that hold control characters or odd bytes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )
