"""Paths from outside, and the workspace seen from inside."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.agent.workspace import Workspace, changed, image_name
from kernelpool.errors import FileNotFound, InvalidFileName, InvalidPath, InvalidRequest
from kernelpool.models import WorkspacePath


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", "a"),
        ("a/b.txt", "a/b.txt"),
        ("/mnt/data/a", "a"),
        ("/mnt/data", ""),
        ("", ""),
        (".", ""),
        ("./a//b/", "a/b"),
        ("ünï cödé 😀.txt", "ünï cödé 😀.txt"),
        ("....", "...."),
        ("~", "~"),
        ("%2e%2e", "%2e%2e"),  # decoded once, by the surface; what is left is a name
    ],
)
def test_path_is(text: str, path: str) -> None:
    assert WorkspacePath.parse(text).text == path


@pytest.mark.parametrize(
    "text",
    [
        "..",
        "../x",
        "a/../../b",
        "a/..",
        "/etc/passwd",
        "/mnt/database",
        "//mnt/data",
        "a\0.png",
        "a\nb",
        "a\r\nX: y",
        "a\x7f",
        "..\\x",
        "C:\\x",
        "\\\\host\\s",
        "x" * 256,
        "é" * 128,
        "/".join("x" * 200 for _ in range(30)),
        "\ud800",
    ],
)
def test_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidPath):
        WorkspacePath.parse(text)


@given(st.text(max_size=40))
def test_a_parsed_path_never_leaves_the_workspace(text: str) -> None:
    try:
        path = WorkspacePath.parse(text)
    except InvalidPath:
        return
    assert os.path.normpath(path.absolute) == path.absolute
    assert path.absolute == "/mnt/data" or path.absolute.startswith("/mnt/data/")


def test_the_workspace_itself_is_no_file() -> None:
    with pytest.raises(InvalidFileName):
        WorkspacePath.parse_file("/mnt/data")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path))


def test_list_shows_what_is_there_in_order(workspace: Workspace) -> None:
    (workspace.root / "b").mkdir()
    (workspace.root / "b" / "c").write_text("12")
    (workspace.root / "a").write_text("1")
    (workspace.root / ".kernelpool-upload-1").write_text("under way")
    os.symlink("nowhere", workspace.root / "dangling")

    flat = workspace.list(WorkspacePath(""), recursive=False)
    deep = workspace.list(WorkspacePath(""), recursive=True)

    assert [(info.path, info.size) for info in flat if not info.is_directory] == [("a", 1)]
    assert [info.path for info in deep] == ["a", "b", "b/c"]
    assert [info.directory for info in deep] == [".", ".", "b"]


def test_names_that_nobody_could_ask_for_are_left_out(workspace: Workspace) -> None:
    for name in (b"\xff", b"new\nline", b"back\\slash"):
        Path(os.fsdecode(os.fsencode(workspace.root) + b"/" + name)).touch()

    assert workspace.list(WorkspacePath(""), recursive=True) == []


def test_a_loop_of_links_ends(workspace: Workspace) -> None:
    os.symlink(".", workspace.root / "self")

    assert [info.path for info in workspace.list(WorkspacePath(""), recursive=True)] == ["self"]


def test_list_of_a_file_and_of_nothing(workspace: Workspace) -> None:
    (workspace.root / "f").touch()

    with pytest.raises(InvalidRequest, match="not a directory"):
        workspace.list(WorkspacePath("f"), recursive=False)
    with pytest.raises(FileNotFound, match="/mnt/data/g does not exist"):
        workspace.list(WorkspacePath("g"), recursive=False)


def test_an_upload_is_seen_whole_or_not_at_all(workspace: Workspace) -> None:
    path = WorkspacePath("deep/er/f")
    upload = workspace.create(path)
    upload.write(b"half")
    assert [info.path for info in workspace.list(WorkspacePath(""), recursive=True)] == ["deep", "deep/er"]

    upload.write(b"+half")
    assert upload.commit().size == 9
    upload.abort()

    assert (workspace.root / "deep/er/f").read_bytes() == b"half+half"


def test_an_aborted_upload_leaves_nothing(workspace: Workspace) -> None:
    upload = workspace.create(WorkspacePath("f"))
    upload.write(b"x")

    upload.abort()

    assert os.listdir(workspace.root) == []


def test_an_upload_replaces_a_link_not_its_target(workspace: Workspace) -> None:
    (workspace.root / "target").write_text("kept")
    os.symlink("target", workspace.root / "link")
    upload = workspace.create(WorkspacePath("link"))

    upload.commit()

    assert (workspace.root / "target").read_text() == "kept"
    assert not (workspace.root / "link").is_symlink()


def test_an_upload_over_a_directory_is_refused(workspace: Workspace) -> None:
    (workspace.root / "d").mkdir()

    with pytest.raises(InvalidRequest, match="is a directory"):
        workspace.create(WorkspacePath("d"))


def test_delete_takes_directories_and_never_the_workspace(workspace: Workspace) -> None:
    (workspace.root / "d" / "e").mkdir(parents=True)

    workspace.delete(WorkspacePath("d"))
    with pytest.raises(InvalidPath):
        workspace.delete(WorkspacePath(""))

    assert os.listdir(workspace.root) == []


def test_a_snapshot_tells_what_was_written(workspace: Workspace) -> None:
    (workspace.root / "same").write_text("1")
    (workspace.root / "grown").write_text("1")
    before, _ = workspace.snapshot()
    (workspace.root / "grown").write_text("12")
    (workspace.root / "sub").mkdir()
    (workspace.root / "sub" / "new").write_text("1")
    (workspace.root / ".cache").mkdir()
    (workspace.root / ".cache" / "hidden").write_text("1")

    after, complete = workspace.snapshot()

    assert (changed(before, after), complete) == (("grown", "sub/new"), True)


def test_a_snapshot_of_too_much_says_so(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelpool.agent.workspace.MAX_SCANNED", 3)
    for number in range(5):
        (workspace.root / str(number)).touch()

    entries, complete = workspace.snapshot()

    assert (len(entries), complete) == (3, False)


def test_images_are_written_under_a_name_that_is_safe(workspace: Workspace) -> None:
    name = image_name("op:1~x", 2)

    saved = workspace.save_image(name, "image/png", base64.b64encode(b"\x89PNG").decode())

    assert saved == "image-op-1-x-2.png"
    assert (workspace.root / saved).read_bytes() == b"\x89PNG"


def test_an_image_that_cannot_be_written_is_no_failure(workspace: Workspace) -> None:
    (workspace.root / "n.png").mkdir()

    assert workspace.save_image("n", "image/png", "aGk=") is None
    assert workspace.save_image("m", "image/png", "a") is None
    assert os.listdir(workspace.root) == ["n.png"]
