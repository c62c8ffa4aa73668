"""The images: which ones, and how they are built where none is named. The only place that says it.

An image's tag is a digest of all that goes into it, so that one that is there is used again. The
packages are resolved and unpacked here, by uv, with this machine's index, proxy and certificates:
none of that gets into an image, and nothing in it needs a network (but Debian's Python, where the
base image has none).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import docker
from docker.errors import BuildError, ImageNotFound

from mlflow_triton_plugin.local import provisioning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["BUILT", "Image", "base_image", "image_of"]

_HERE = Path(__file__).parent / "images"
_LABEL = "mlflow-triton-integration-image"
#: Of what an image is made in; without a name it is of no use afterwards.
_STAGE = "mlflow-triton-integration-stage"
_TAIL_LINES = 30
#: glibc of Debian 12 and Ubuntu 22.04, which the server's wheel asks for too.
_PLATFORM = "x86_64-manylinux_2_35"
_LITTER = shutil.ignore_patterns("__pycache__", "tests", "test", "*.pyi", "bin")


@dataclass(frozen=True)
class Image:
    """An image of our own.

    Attributes:
        name: `triton`, `mlflow`, …; the repository is `mlflow-triton/<name>`.
        variable: what names another one instead.
        published: such another one, as its makers publish it.
        folder: its Dockerfile's.
        requirements: the packages in it, by pip's rules.
        entrypoint: what its container runs, as a shell's `exec` takes it; empty where the
            Dockerfile says so itself.
        no_deps: the packages alone, without what they depend on.
    """

    name: str
    variable: str
    published: str
    folder: str
    requirements: tuple[str, ...]
    entrypoint: str = ""
    no_deps: bool = False


def _triton(name: str, *requirements: str, variable: str = "") -> Image:
    published = "nvcr.io/nvidia/tritonserver:24.10-py3"
    return Image(name, variable, published, "triton", requirements, no_deps=True)


def _other_server(wheel: str) -> tuple[str, ...]:
    """The embedded server's packages, with another release of the server itself."""
    return (wheel, *provisioning.REQUIREMENTS[1:])


_MLFLOW = f"mlflow[auth]=={metadata.version('mlflow')}"

#: Every image, by its name.
BUILT = {
    image.name: image
    for image in (
        _triton("triton", *provisioning.REQUIREMENTS, variable="TRITON_IMAGE"),
        _triton("triton-2.44", *_other_server("nvidia-pytriton==0.5.5")),
        _triton("triton-2.39", *_other_server("nvidia-pytriton==0.4.2")),
        Image(
            "mlflow", "MLFLOW_IMAGE", "ghcr.io/mlflow/mlflow:v3.17.2-full", "python",
            (_MLFLOW, "boto3>=1.36"), '"$@"',
        ),
        Image(
            "s3", "S3_IMAGE", "motoserver/moto:5.1.18", "python",
            (f"moto[server]=={metadata.version('moto')}",), 'moto_server -H 0.0.0.0 "$@"',
        ),
    )
}  # fmt: skip


def base_image() -> str:
    """What ours are made from: BASE_IMAGE, or Debian's."""
    return os.environ.get("BASE_IMAGE") or "debian:bookworm-slim"


def image_of(name: str) -> str:
    """The image to run: the one that its variable names, or ours, built unless it is there.

    Raises:
        RuntimeError: it cannot be built; with the end of the build's log.
    """
    image = BUILT[name]
    named = os.environ.get(image.variable) if image.variable else None
    return named or _build(image)


def _build(image: Image) -> str:
    client = docker.from_env(timeout=600)
    try:
        tag = f"mlflow-triton/{image.name}:{_digest(image, _base_id(client))}"
        try:
            client.images.get(tag)
        except ImageNotFound:
            _say(f"building {tag} from {base_image()}")
            with tempfile.TemporaryDirectory(prefix="mlflow-triton-image-") as context:
                _build_in(client, image, Path(context), tag)
            client.images.prune(filters={"dangling": True, "label": _STAGE})
        return tag
    finally:
        client.close()


def _build_in(client: docker.DockerClient, image: Image, context: Path, tag: str) -> None:
    version = _python_version(client, context)
    packages = context / "site-packages"
    _install(image, version, packages)
    shutil.copytree(_HERE / image.folder, context, dirs_exist_ok=True)
    if image.folder == "triton":
        backend = context / "backends" / "onnxruntime"
        backend.mkdir(parents=True)
        shutil.copy(provisioning.BACKEND_SOURCE, backend)
    else:
        _write_programs(image, context / "programs")
    _docker_build(client, context, tag, {"PYTHON_VERSION": version})
    size_mb = client.images.get(tag).attrs["Size"] // 1_000_000
    _say(f"built {tag}, {size_mb} MB")


def _install(image: Image, version: str, target: Path) -> None:
    """Resolve and unpack for the image's Python, whatever this machine's is."""
    command = [
        "uv", "pip", "install", "--quiet", "--target", str(target), "--link-mode", "copy",
        "--python-platform", _PLATFORM, "--python-version", version, "--only-binary", ":all:",
        *(["--no-deps"] if image.no_deps else []), *image.requirements,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the packages of {image.name} cannot be had: {done.stderr.strip()}")
    shutil.rmtree(target / "bin", ignore_errors=True)  # scripts of this machine's Python


def _write_programs(image: Image, folder: Path) -> None:
    """The programs of an image's packages, for its own Python."""
    folder.mkdir()
    programs = {
        "entrypoint": image.entrypoint,
        "mlflow": 'python3 -m mlflow "$@"',
        "moto_server": 'python3 -m moto.server "$@"',
    }
    for name, command in programs.items():
        (folder / name).write_text(f"#!/bin/sh\nexec {command}\n", "utf-8")
        (folder / name).chmod(0o755)


def _python_version(client: docker.DockerClient, context: Path) -> str:
    """Of the Python that the base has, or gets: such as 3.11."""
    shutil.copy(_HERE / "ensure-python", context)
    stage = context / "python"
    stage.mkdir()
    shutil.copy(_HERE / "ensure-python", stage)
    (stage / "Dockerfile").write_text(
        f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}} AS python\nLABEL {_STAGE}=true\n"
        "COPY ensure-python /usr/local/sbin/\nRUN ensure-python\n",
        "utf-8",
    )
    image = _docker_build(client, stage, None, {})
    shutil.rmtree(stage)
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    output: bytes = client.containers.run(
        image, ["python3", "-c", asked], entrypoint=[], remove=True, labels=[_LABEL]
    )
    return output.decode().strip()


def _docker_build(
    client: docker.DockerClient, context: Path, tag: str | None, arguments: Mapping[str, str]
) -> str:
    try:
        image, _ = client.images.build(
            path=str(context),
            tag=tag,
            rm=True,
            forcerm=True,
            buildargs={"BASE_IMAGE": base_image(), **_proxies(), **arguments},
            labels={_LABEL: "true"},
        )
    except BuildError as exc:
        lines = "".join(str(line.get("stream", "")) for line in exc.build_log).splitlines()
        raise RuntimeError(
            f"{tag or 'the base'} cannot be built: {exc.msg}\n" + "\n".join(lines[-_TAIL_LINES:])
        ) from exc
    return str(image.id)


def _proxies() -> dict[str, str]:
    """For apt; Docker keeps these arguments out of the image and its history."""
    names = ("http_proxy", "https_proxy", "no_proxy")
    found = {name: os.environ.get(name) or os.environ.get(name.upper()) for name in names}
    return {name: value for name, value in found.items() if value}


def _base_id(client: docker.DockerClient) -> str:
    try:
        return str(client.images.get(base_image()).id)
    except ImageNotFound:
        return str(client.images.pull(base_image()).id)


def _digest(image: Image, base_id: str) -> str:
    digest = hashlib.sha256(json.dumps([base_id, _PLATFORM, *vars(image).values()]).encode())
    for path in _content(image):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _content(image: Image) -> Iterator[Path]:
    yield _HERE / "ensure-python"
    yield from sorted((_HERE / image.folder).iterdir())
    if image.folder == "triton":
        yield provisioning.BACKEND_SOURCE


def _say(text: str) -> None:
    print(f"integration: {text}", file=sys.stderr, flush=True)  # noqa: T201 - progress of minutes


def main(names: Sequence[str] = tuple(BUILT)) -> None:
    """Build what is not there, so that no test waits for it."""
    for name in names:
        _say(f"{name}: {image_of(name)}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or tuple(BUILT))
