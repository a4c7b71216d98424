"""Paths from outside, and the workspace seen from inside."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.agent.files import byte_range
from kernelpool.agent.workspace import Workspace, changed, image_name
from kernelpool.errors import FileNotFound, InvalidFileName, InvalidPath, InvalidRequest, RangeNotSatisfiable
from kernelpool.models import LATEST, FileInfo, WorkspacePath


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


def test_a_snapshot_looks_at_no_more_than_so_many_entries_whatever_they_are(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelpool.agent.workspace.MAX_SCANNED", 3)
    make: list[Callable[[Path], object]] = [Path.mkdir, lambda path: path.symlink_to("x"), os.mkfifo]
    for kind, prefix in [*zip(make, "abc", strict=True), (Path.touch, "."), (Path.touch, "\\")]:
        folder = workspace.root / f"folder-{prefix}"
        folder.mkdir()
        for number in range(4):
            kind(folder / f"{prefix}{number}")

        assert Workspace(str(folder)).snapshot() == ({}, False)


def test_a_time_that_no_date_can_say_is_cut(workspace: Workspace) -> None:
    for name, at in (("past", -(10**9)), ("future", 10**15)):
        (workspace.root / name).touch()
        os.utime(workspace.root / name, (at, at))

    found = workspace.list(WorkspacePath(""), recursive=False)

    assert all(0 <= info.modified_at <= LATEST for info in found)


def make_deep(folder: Path, levels: int) -> None:
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.mkdir("deeper", dir_fd=here)
        there = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)


def test_a_directory_of_any_depth_can_be_deleted(workspace: Workspace) -> None:
    make_deep(workspace.root / "deep", 3000)

    workspace.delete(WorkspacePath("deep"))

    assert os.listdir(workspace.root) == []


def test_delete_follows_no_link_at_any_depth(workspace: Workspace) -> None:
    (workspace.root / "kept").mkdir()
    (workspace.root / "kept" / "file").touch()
    (workspace.root / "a" / "b" / "c").mkdir(parents=True)
    for folder in ("a", "a/b", "a/b/c"):
        (workspace.root / folder / "link").symlink_to(workspace.root / "kept")

    workspace.delete(WorkspacePath("a"))

    assert [info.path for info in workspace.list(WorkspacePath(""), recursive=True)] == ["kept", "kept/file"]


def test_delete_takes_what_may_not_be_read_or_written(workspace: Workspace) -> None:
    (workspace.root / "a" / "b" / "c").mkdir(parents=True)
    (workspace.root / "a" / "b" / "c" / "file").touch()
    for folder, mode in (("a/b/c", 0o000), ("a/b", 0o500)):
        (workspace.root / folder).chmod(mode)

    workspace.delete(WorkspacePath("a"))

    assert os.listdir(workspace.root) == []


def test_used_bytes_are_those_of_a_file_system_of_its_own(workspace: Workspace) -> None:
    assert workspace.used_bytes == 0

    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"x" * 1_000_000)
        file.flush()

        assert Workspace("/dev/shm").used_bytes >= 1_000_000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (0, 10)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-", (2, 10)),
        ("bytes=-4", (6, 10)),
        ("bytes=-40", (0, 10)),
        ("bytes=-4-7", (6, 8)),
        ("bytes=-40-1", (0, 2)),
        ("bytes=0-99", (0, 10)),
    ],
)
def test_a_range_is(header: str | None, expected: tuple[int, int]) -> None:
    assert byte_range(header, FileInfo("f", False, 10, 0)) == expected


@pytest.mark.parametrize(
    "header", ["bytes=-", "bytes=-0", "bytes=10-", "bytes=5-4", "bytes=-4-5", "bytes=--1", "x", "bytes=1-2,3-4"]
)
def test_a_range_is_refused(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        byte_range(header, FileInfo("f", False, 10, 0))


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
