"""What a change would do, for who wants to see it first: files, config.pbtxt, versions, servers."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from mlflow_triton_plugin.changing import is_staged_apart
from triton_repo.config import CONFIG_FILENAME
from triton_repo.text import human_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.planning import Planned
    from mlflow_triton_plugin.server import TritonServers
    from triton_repo.change import Change
    from triton_repo.group_change import MemberChange
    from triton_repo.model_view import ModelView

__all__ = ["as_lines", "preview"]


def preview(
    place: ModelView, planned: Planned, servers: TritonServers, options: Options, operation: str
) -> dict[str, Any]:
    """A planned change.

    Args:
        place: the deployment's directory.
        planned: what is to be done.
        servers: who will load it.
        options: of the command.
        operation: `create` or `update`.

    Returns:
        `name`, `operation`, `flavor`, `model` (the URI that it comes from), `version` (the one
        deployed, 0 where the model's own policy decides), `serves` (versions, that one first),
        `files` (what is copied: size in bytes by path in the deployment), `files_apart` (what is
        there already, and is copied all the same while the change is staged apart), `size_bytes`
        (of both), `reuses` (a version on disk that already is this model, or None), `requests`
        (whether those of several callers are `joined`, and `why`), `restores`
        (files beside config.pbtxt, from what was set aside), `replaces` and `removes` (version
        directories), `removes_files` (beside config.pbtxt), `config` (config.pbtxt afterwards),
        `config_diff` (from what is there now, unified; empty where nothing changes), `servers`
        (who load it), `tried_apart` (whether it is loaded under another name first), `members`
        (what is done before it is loaded: for each model that it needs `name`, `member`, `versions`
        (those needed), `operation` (also `keep`), and as above `files`, `size_bytes`, `config` and
        `config_diff`), `removes_members` (directories of models, or versions in them, that nobody
        needs afterwards). `Deployer` adds `environment`: the archive that the model runs with, its
        `file`, `state`, `python` and `packages`, or None; and `falls_back`: the flavor that is
        deployed instead where a server lacks the backend of this one, or that does not load the
        model, or None.
    """
    change = planned.change
    apart = is_staged_apart(change, options, servers)
    return {
        "name": str(place.name),
        "operation": operation,
        "flavor": change.entry.flavor,
        "model": change.source.concrete_uri or change.source.uri,
        "version": change.serving[0] if change.serving else 0,
        "serves": list(change.serving),
        "files": _files(change),
        "files_apart": change.copied_apart(apart=apart),
        "size_bytes": change.size_bytes(apart=apart),
        "reuses": change.reuse,
        "requests": change.joining.described(),
        "restores": sorted(change.shared_restored),
        "replaces": sorted(change.replaced),
        "removes": sorted(change.doomed),
        "removes_files": sorted(change.shared_gone),
        **_config(place, change),
        "servers": [server.endpoint for server in servers],
        "tried_apart": (apart or change.in_place) and servers.load_paths,
        "members": [_member(each) for each in planned.members],
        "removes_members": _no_longer_needed(change),
    }


def _member(planned: MemberChange) -> dict[str, Any]:
    change = planned.change
    operation = "keep"
    if change is not None:
        operation = "create" if change.base is None else "update"
    config = (planned.place.read(CONFIG_FILENAME) or b"").decode("utf-8", "replace")
    return {
        "name": str(planned.place.name),
        "member": planned.member,
        "versions": list(planned.versions.versions),
        "operation": operation,
        "files": _files(change) if change is not None else {},
        "size_bytes": change.size_bytes() if change is not None else 0,
        **(
            _config(planned.place, change)
            if change is not None
            else {"config": config, "config_diff": ""}
        ),
    }


def _no_longer_needed(change: Change) -> list[str]:
    """What of other models was needed, and will not be once the change is done."""
    base = change.base
    if base is None:
        return []
    gone = change.doomed | change.replaced | ({change.reuse} if change.reuse is not None else set())
    after = base.now.needs(base.versions.keys() - gone)
    for each in change.entry.models.values():
        after[each.name] = after.get(each.name, frozenset()).union(each.versions)
    found = []
    for name, versions in sorted(base.now.needs().items()):
        if name not in after:
            found.append(f"{name}/")
        else:
            found += [f"{name}/{version}/" for version in sorted(versions - after[name])]
    return found


def _files(change: Change) -> dict[str, int]:
    return {path: file.size_bytes for path, file in _copied(change)}


def _config(place: ModelView, change: Change) -> dict[str, str]:
    before = _text(place.read(CONFIG_FILENAME) or b"")
    after = _text(change.config.data if change.config is not None else b"")
    return {"config": after, "config_diff": _diff(before, after)}


def as_lines(plan: dict[str, Any]) -> Iterator[str]:
    """A plan for people: `+` is copied, `~` is changed, `-` is removed."""
    name = plan["name"]
    version = f" as version {plan['version']}" if plan["version"] else ""
    yield f"{plan['operation']} {name}: {plan['model']}{version}, flavor {plan['flavor']}"
    if plan["falls_back"] is not None:
        yield (
            f"= {plan['falls_back']} instead, where a server has no backend for {plan['flavor']}, "
            "or one that does not load it"
        )
    for member in plan["members"]:
        yield from _member_lines(member)
    yield from _copies(plan)
    for path in plan["restores"]:
        yield f"~ {name}/{path} is again what it was with that version"
    for number in plan["replaces"]:
        yield f"~ {name}/{number}/ makes room for the one above"
    yield from _diff_lines(plan)
    for path in plan["removes_files"]:
        yield f"- {name}/{path}"
    for number in plan["removes"]:
        yield f"- {name}/{number}/ is one more than keep_versions keeps"
    for path in plan["removes_members"]:
        yield f"- {path} is needed by no version of {name} any more"
    apart = ", after it was loaded apart" if plan["tried_apart"] else ""
    serves = ", ".join(map(str, plan["serves"])) or "what the model's own policy says"
    names = [*(member["name"] for member in plan["members"]), name] if plan["members"] else []
    order = f", in this order: {', '.join(names)}" if names else ""
    yield f"load on {', '.join(plan['servers'])}{order}{apart}; serve {serves}"
    yield _requests_line(plan["requests"])


def _requests_line(requests: Mapping[str, Any]) -> str:
    """Whether requests of several callers are joined, and why, as a line for people."""
    how = "joined" if requests["joined"] else "asked one by one"
    return f"requests are {how}: {requests['why']}"


def _member_lines(member: dict[str, Any]) -> Iterator[str]:
    name, versions = member["name"], ", ".join(map(str, member["versions"]))
    called = "" if member["member"] == name else f" ({member['member']})"
    sign = "=" if member["operation"] == "keep" else "+" if member["files"] else "~"
    told = "is there already" if not member["files"] else "comes beside what serves"
    yield f"{sign} {name}{called}, version {versions}, {told}"
    for path, size_bytes in member["files"].items():
        yield f"+ {name}/{path} ({human_size(size_bytes)})"
    yield from _diff_lines(member)


def _diff_lines(plan: dict[str, Any]) -> Iterator[str]:
    if plan["config_diff"]:
        yield f"~ {plan['name']}/{CONFIG_FILENAME}"
        yield from (f"    {line}" for line in plan["config_diff"].splitlines())


def _copies(plan: dict[str, Any]) -> Iterator[str]:
    name, environment = plan["name"], plan["environment"]
    if plan["reuses"] is not None:
        copied = "" if plan["files"] or plan["files_apart"] else "; nothing is copied"
        yield f"= {name}/{plan['reuses']}/ is this model already{copied}"
    for path, size_bytes in plan["files"].items():
        yield f"+ {name}/{path} ({human_size(size_bytes)})"
    for path, size_bytes in plan["files_apart"].items():
        yield f"= {name}/{path} ({human_size(size_bytes)}) is copied apart, for the time being"
    packages = ", ".join(environment["packages"]) if environment is not None else ""
    if environment is not None and environment.get("differs"):
        yield (
            f"= the server's Python lacks {', '.join(environment['differs'])}; an environment with "
            f"Python {environment['python']} ({environment['state']}): {packages}"
        )
    if environment is not None and environment["state"] == "to be packed":
        yield (
            f"+ {name}/{environment['file']}, to be packed for Python {environment['python']}: "
            f"{packages}"
        )


def _copied(change: Change) -> Iterator[tuple[str, Any]]:
    for number, tree in sorted(change.place.items()):
        for file in tree.files:
            yield f"{number}/{file.path}", file
    for file in change.shared.files:
        yield str(file.path), file


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "now", "afterwards", lineterm=""
    )
    return "\n".join(lines)
