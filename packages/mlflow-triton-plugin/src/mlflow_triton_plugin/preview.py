"""What a change would do, for who wants to see it first: files, config.pbtxt, versions, servers."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from triton_repo.config import CONFIG_FILENAME
from triton_repo.text import human_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton_plugin.options import Options
    from mlflow_triton_plugin.server import TritonServers
    from triton_repo.change import Change
    from triton_repo.model_view import ModelView

__all__ = ["as_lines", "preview"]


def preview(
    place: ModelView, change: Change, servers: TritonServers, options: Options, operation: str
) -> dict[str, Any]:
    """A planned change.

    Args:
        place: the deployment's directory.
        change: what is planned.
        servers: who will load it.
        options: of the command.
        operation: `create` or `update`.

    Returns:
        `name`, `operation`, `flavor`, `model` (the URI that it comes from), `version` (the one
        deployed, 0 where the model's own policy decides), `serves` (versions, that one first),
        `files` (what is copied: size in bytes by path in the deployment), `files_apart` (what is
        there already, and is copied all the same while the change is staged apart), `size_bytes`
        (of both), `reuses` (a version on disk that already is this model, or None), `restores`
        (files beside config.pbtxt, from what was set aside), `replaces` and `removes` (version
        directories), `removes_files` (beside config.pbtxt), `config` (config.pbtxt afterwards),
        `config_diff` (from what is there now, unified; empty where nothing changes), `servers`
        (who load it), `tried_apart` (whether it is loaded under another name first). `Deployer`
        adds `environment`: the archive that the model runs with, its `file`, `state`, `python` and
        `packages`, or None; and `falls_back`: the flavor that is deployed instead where a server
        lacks the backend of this one, or None.
    """
    apart = options.tries_apart
    before = place.read(CONFIG_FILENAME) or b""
    after = change.config.data if change.config is not None else b""
    files = {f"{path}": file.size_bytes for path, file in _copied(change)}
    return {
        "name": str(place.name),
        "operation": operation,
        "flavor": change.entry.flavor,
        "model": change.source.concrete_uri or change.source.uri,
        "version": change.serving[0] if change.serving else 0,
        "serves": list(change.serving),
        "files": files,
        "files_apart": change.copied_apart(apart=apart),
        "size_bytes": change.size_bytes(apart=apart),
        "reuses": change.reuse,
        "restores": sorted(change.shared_restored),
        "replaces": sorted(change.replaced),
        "removes": sorted(change.doomed),
        "removes_files": sorted(change.shared_gone),
        "config": _text(after),
        "config_diff": _diff(_text(before), _text(after)),
        "servers": [server.endpoint for server in servers],
        "tried_apart": (apart or change.in_place) and servers.load_paths,
    }


def as_lines(plan: dict[str, Any]) -> Iterator[str]:
    """A plan for people: `+` is copied, `~` is changed, `-` is removed."""
    name = plan["name"]
    version = f" as version {plan['version']}" if plan["version"] else ""
    yield f"{plan['operation']} {name}: {plan['model']}{version}, flavor {plan['flavor']}"
    if plan["falls_back"] is not None:
        yield f"= {plan['falls_back']} instead, where a server has no backend for {plan['flavor']}"
    yield from _copies(plan)
    for path in plan["restores"]:
        yield f"~ {name}/{path} is again what it was with that version"
    for number in plan["replaces"]:
        yield f"~ {name}/{number}/ makes room for the one above"
    if plan["config_diff"]:
        yield f"~ {name}/{CONFIG_FILENAME}"
        yield from (f"    {line}" for line in plan["config_diff"].splitlines())
    for path in plan["removes_files"]:
        yield f"- {name}/{path}"
    for number in plan["removes"]:
        yield f"- {name}/{number}/ is one more than keep_versions keeps"
    apart = ", after it was loaded apart" if plan["tried_apart"] else ""
    serves = ", ".join(map(str, plan["serves"])) or "what the model's own policy says"
    yield f"load on {', '.join(plan['servers'])}{apart}; serve {serves}"


def _copies(plan: dict[str, Any]) -> Iterator[str]:
    name, environment = plan["name"], plan["environment"]
    if plan["reuses"] is not None:
        copied = "" if plan["files"] or plan["files_apart"] else "; nothing is copied"
        yield f"= {name}/{plan['reuses']}/ is this model already{copied}"
    for path, size_bytes in plan["files"].items():
        yield f"+ {name}/{path} ({human_size(size_bytes)})"
    for path, size_bytes in plan["files_apart"].items():
        yield f"= {name}/{path} ({human_size(size_bytes)}) is copied apart, for the time being"
    if environment is not None and environment["state"] == "to be packed":
        packages = ", ".join(environment["packages"])
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
