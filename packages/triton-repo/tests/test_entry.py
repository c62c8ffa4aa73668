"""Names that may become a directory, and files that may be copied into it."""

from __future__ import annotations

import os
import socket
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_repo.config import ModelConfig
from triton_repo.entry import EntryFile, RepositoryEntry, Tree
from triton_repo.errors import ArtifactError, InvalidNameError
from triton_repo.names import check_name
from triton_repo.scan import scan_tree

# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "resnet", "_x", "7b", "a.b", "Model-1_2", "a+b=c@d~e", "x" * 200]
)
def test_ordinary_names_pass_unchanged(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        ".hidden",
        "-option",
        "a/b",
        "/a",
        "a/",
        "../a",
        "a\\b",
        "a\nb",
        "a\n",
        "\na",
        "a\r",
        "a\tb",
        "a b",
        " a",
        "a\0b",
        "%2e%2e",
        "a%2fb",
        "a:b",
        "a*",
        "a?b",
        "a#b",
        "$HOME",
        "`id`",
        "a;b",
        "a|b",
        "a&b",
        "'a'",
        '"a"',
        "{a}",
        "~root",
        "é",
        "\u0430",  # Cyrillic
        "a\u2215b",  # division slash
        "a\u2044b",  # fraction slash
        "a\uff0fb",  # full-width slash
        "\uff0e\uff0e",  # full-width dots
        "a\u200bb",
        "\u202ea",
        "x" * 201,
        "é" * 100,
    ],
)
def test_a_name_that_could_leave_or_mislead_is_refused(name: str) -> None:
    """A model named `.` once emptied a whole repository."""
    with pytest.raises(InvalidNameError) as caught:
        check_name(name)
    assert caught.value.name == name
    assert repr(name) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", [None, 7, b"a", ["a"]])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(InvalidNameError):
        check_name(name)  # type: ignore[arg-type]


@given(st.text(max_size=20) | st.text("ab./\\%\n-_", max_size=6))
def test_a_name_that_passes_is_one_visible_directory(name: str) -> None:
    try:
        passed = check_name(name)
    except InvalidNameError:
        return
    assert PurePosixPath("/root", passed).parts == ("/", "root", name)
    assert name.isascii()
    assert name.isprintable()
    assert name[0] not in ".-~%"
    assert not {"/", "\\", "%", " "} & set(name)


# -- trees ------------------------------------------------------------------------------------


def names_of(tree: Tree) -> dict[str, int]:
    return {str(file.path): file.size_bytes for file in tree.files}


def test_a_tree_has_every_file_and_every_empty_directory(tmp_path: Path) -> None:
    """Dotted ones too, in an order that does not depend on the file system."""
    for path, content in {"b": b"22", "a/z": b"1", "a/.hidden": b"", ".dot/x": b"333"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    tree = scan_tree(tmp_path, inside=tmp_path)
    assert names_of(tree) == {"b": 2, ".dot/x": 3, "a/.hidden": 0, "a/z": 1}
    assert tree.empty_directories == (PurePosixPath("empty/deeper"),)
    assert tree.size_bytes == 6
    assert tree.names() == sorted(tree.names())
    assert tree == scan_tree(tmp_path, inside=tmp_path)


def test_what_is_not_wanted_is_left_out_with_all_below_it(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "drop").mkdir()
    (tmp_path / "keep" / "a").touch()
    (tmp_path / "drop" / "link").symlink_to("/etc/hostname")
    tree = scan_tree(tmp_path, inside=tmp_path, keep=lambda path: path.parts[0] != "drop")
    assert names_of(tree) == {"keep/a": 0}


def test_links_inside_are_followed(tmp_path: Path) -> None:
    """To a file, to a directory, and out of the scanned directory but not out of the artifact."""
    (tmp_path / "model" / "data").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "weights").write_bytes(b"12345")
    (tmp_path / "model" / "data" / "a").write_bytes(b"1")
    (tmp_path / "model" / "to-file").symlink_to("data/a")
    (tmp_path / "model" / "to-directory").symlink_to("../shared")
    (tmp_path / "model" / "absolute").symlink_to(tmp_path / "shared" / "weights")
    tree = scan_tree(tmp_path / "model", inside=tmp_path)
    assert names_of(tree) == {"absolute": 5, "data/a": 1, "to-directory/weights": 5, "to-file": 1}
    with pytest.raises(ArtifactError, match="leads out of the model"):
        scan_tree(tmp_path / "model", inside=tmp_path / "model")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc/hostname", "leads out of the model"),
        ("/", "leads out of the model"),
        ("..", "leads out of the model"),
        ("../model-2/secret", "leads out of the model"),
        ("missing", "leads nowhere"),
        ("link", "leads nowhere"),
        (".", "contains it"),
    ],
)
def test_links_that_leave_break_or_circle_are_refused(
    tmp_path: Path, target: str, message: str
) -> None:
    """`model-2` is not inside `model`, though its path begins with it."""
    (tmp_path / "model-2").mkdir()
    (tmp_path / "model-2" / "secret").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(target)
    with pytest.raises(ArtifactError, match=message) as caught:
        scan_tree(tmp_path / "model", inside=tmp_path / "model")
    assert str(tmp_path / "model" / "link") in str(caught.value)


def test_links_that_lead_to_each_other_are_refused(tmp_path: Path) -> None:
    """Neither contains itself, and together they have no end."""
    for here, there in (("a", "b"), ("b", "a")):
        (tmp_path / here).mkdir()
        for number in range(3):
            (tmp_path / here / f"to-{there}-{number}").symlink_to(f"../{there}")
    with pytest.raises(ArtifactError, match="circle"):
        scan_tree(tmp_path, inside=tmp_path)


def test_the_same_directory_twice_is_no_circle(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    (tmp_path / "also").symlink_to("data")
    assert names_of(scan_tree(tmp_path, inside=tmp_path)) == {"also/x": 0, "data/x": 0}


def test_pipes_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="pipe is neither a file nor a directory"):
        scan_tree(tmp_path, inside=tmp_path)
    (tmp_path / "pipe").unlink()
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(ArtifactError, match="socket is neither a file nor a directory"):
            scan_tree(tmp_path, inside=tmp_path)


def test_a_directory_that_is_not_there_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        scan_tree(tmp_path / "missing", inside=tmp_path)


# -- entries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "a/..", "", "."])
def test_no_file_can_be_planned_outside_its_directory(path: str) -> None:
    """Whoever plans it: a config.pbtxt's file name, an ONNX graph's external data."""
    with pytest.raises(ArtifactError, match="leaves its directory"):
        EntryFile(PurePosixPath(path), Path("source"), 1)


def test_a_renumbered_version_takes_its_pin_along() -> None:
    file = EntryFile(PurePosixPath("a"), Path("a"), 3)
    shared = Tree((EntryFile(PurePosixPath("labels"), Path("labels"), 4),))
    config = ModelConfig.parse("version_policy { specific { versions: 1 } } # mine")
    entry = RepositoryEntry(check_name("m"), "triton", {1: Tree((file,))}, shared, config)
    moved = entry.renumbered(7)
    assert moved.versions == {7: Tree((file,))}
    assert moved.config is not None
    assert moved.config.pinned_versions == (7,)
    assert moved.config.text.endswith("# mine")
    assert moved.size_bytes == entry.size_bytes == 7


@pytest.mark.parametrize("text", ["", "version_policy { latest { num_versions: 2 } }"])
def test_a_renumbered_version_keeps_any_other_policy(text: str) -> None:
    entry = RepositoryEntry(check_name("m"), "triton", {1: Tree()}, config=ModelConfig.parse(text))
    moved = entry.renumbered(7)
    assert moved.config is not None
    assert moved.config.text == text
