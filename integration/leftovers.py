"""What a session leaves in Docker: nothing. And what one that was killed left, which goes first."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from docker.errors import APIError

from mlflow_triton_plugin.testing.containers import LABEL, owner, remove_container

if TYPE_CHECKING:
    import docker

__all__ = ["remove_of_the_dead", "remove_ours"]


def remove_ours(client: docker.DockerClient) -> None:
    """Remove every container and network of this process."""
    _remove(client, owner())


def remove_of_the_dead(client: docker.DockerClient) -> None:
    """Remove those of this machine's processes that are no more."""
    containers = client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
    networks = client.networks.list(filters={"label": LABEL})
    labels = [each.labels for each in containers]
    labels += [each.attrs.get("Labels") or {} for each in networks]
    for whose in {each.get(LABEL, "") for each in labels}:
        host, _, pid = whose.rpartition(":")
        if host == socket.gethostname() and not _is_alive(int(pid)):
            _remove(client, whose)


def _remove(client: docker.DockerClient, whose: str) -> None:
    label = f"{LABEL}={whose}"
    for container in client.containers.list(
        all=True, filters={"label": label}, ignore_removed=True
    ):
        remove_container(container)
    for network in client.networks.list(filters={"label": label}):
        with suppress(APIError):  # gone, or somebody of another session looks at it
            network.remove()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
