"""Uploads taken apart as they come in, in whatever pieces they come."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.api.downloads import content_disposition, parse_range
from kernelpool.api.multipart import FileData, FileEnd, FileStart, MultipartReader, Piece, Pipe, RawReader, Reader
from kernelpool.errors import InvalidRequest

TYPE = "multipart/form-data; boundary=frontier"


def body(*files: tuple[str, bytes]) -> bytes:
    parts = [
        b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in files
    ]
    return b"".join(parts) + b"--frontier--\r\n"


def files_of(reader: Reader, chunks: list[bytes]) -> list[tuple[str, bytes]]:
    pieces: list[Piece] = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.finish()
    files: list[tuple[str, bytes]] = []
    for piece in pieces:
        match piece:
            case FileStart(name):
                files.append((name, b""))
            case FileData(data):
                files[-1] = (files[-1][0], files[-1][1] + data)
            case FileEnd():
                pass
    return files


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.integers(1, 90))
def test_how_the_body_is_cut_makes_no_difference(contents: list[bytes], size: int) -> None:
    files = [(f"{number}.bin", data) for number, data in enumerate(contents) if b"--frontier" not in data]

    assert files_of(MultipartReader(TYPE), cut(body(*files), size)) == files


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_data_that_looks_like_a_boundary_is_data(size: int) -> None:
    tricky = b"\r\n--frontie\r\n--\r\n--frontierX"[:-2] + b"\r\n\r\n--"

    [(_, data)] = files_of(MultipartReader(TYPE), cut(body(("a", b"\r\n--frontie\r\n-" + tricky[:11])), size))

    assert data == b"\r\n--frontie\r\n-" + tricky[:11]


def test_form_fields_are_passed_over() -> None:
    field = b'--frontier\r\nContent-Disposition: form-data; name="path"\r\n\r\n/tmp\r\n'

    assert files_of(MultipartReader(TYPE), [field + body(("a", b"1"))]) == [("a", b"1")]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'form-data; name="file"; filename="a b.txt"', "a b.txt"),
        (b"form-data; name=file; filename=plain.txt", "plain.txt"),
        (b'form-data; name="file"; filename="semi;colon.txt"', "semi;colon.txt"),
        ('form-data; name="file"; filename="ü.txt"'.encode(), "ü.txt"),
        (b'form-data; name="file"; filename="a\\"b.txt"', 'a"b.txt'),
        (b'form-data; name="file"; filename="a%22b.txt"', 'a"b.txt'),
        (b'form-data; name="file"; filename="a%20b.txt"', "a%20b.txt"),
        (b"form-data; name=file; filename=\"=?utf-8?B?w7wudHh0?=\"; filename*=utf-8''%C3%BC.txt", "ü.txt"),
        (b'form-data; name="file"; filename="kept.txt"; filename*=utf-8\'\'other.txt', "kept.txt"),
        (b"form-data; name=file; filename*=UTF-8''%C3%BC.txt", "ü.txt"),
    ],
)
def test_file_names_as_clients_write_them(disposition: bytes, name: str) -> None:
    part = b"--frontier\r\ncontent-disposition: " + disposition + b"\r\n\r\nx\r\n--frontier--\r\n"

    assert files_of(MultipartReader(TYPE), [part]) == [(name, b"x")]


def test_a_body_that_is_cut_off_is_no_upload() -> None:
    reader = MultipartReader(TYPE)
    reader.feed(body(("a", b"12345"))[:-20])

    with pytest.raises(InvalidRequest):
        reader.finish()


def test_a_raw_body_is_one_file_also_when_it_is_empty() -> None:
    assert files_of(RawReader("a"), [b"1", b"2"]) == [("a", b"12")]
    assert files_of(RawReader("a"), []) == [("a", b"")]


async def test_a_full_pipe_makes_its_writer_wait() -> None:
    pipe = Pipe(limit=2)
    await pipe.put(FileStart("a"))
    await pipe.put(FileData(b"1"))
    third = asyncio.create_task(pipe.put(FileEnd()))
    await asyncio.sleep(0)

    assert not third.done()
    assert await pipe.get() == FileStart("a")
    await third


async def test_a_closed_pipe_holds_nobody_up() -> None:
    pipe = Pipe(limit=1)
    await pipe.put(FileStart("a"))
    waiting = asyncio.create_task(pipe.put(FileEnd()))
    await asyncio.sleep(0)

    await pipe.close()

    await waiting
    assert await pipe.get() == FileStart("a")
    assert await pipe.get() is None


async def test_a_file_without_its_end_is_an_error() -> None:
    pipe = Pipe()
    await pipe.put(FileData(b"1"))
    await pipe.close()

    with pytest.raises(InvalidRequest):
        [_ async for _ in pipe.file()]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (None, None)),
        ("", (None, None)),
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, None)),
        ("bytes=-5", (-5, None)),
        ("bytes=5-4", (None, None)),
        ("bytes=-", (None, None)),
        ("bytes=0-1,2-3", (None, None)),
    ],
)
def test_ranges(header: str | None, expected: tuple[int | None, int | None]) -> None:
    assert parse_range(header) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_name_ends_its_header_or_its_quotes(name: str) -> None:
    header = content_disposition(name)

    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
