"""The tools for a session's files, and the same files as resources."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

from pydantic import BaseModel, Field

from kernelpool.api.mcp.arguments import ListFiles, ReadFile, WriteFile
from kernelpool.api.mcp.call import Answer, Call
from kernelpool.api.mcp.notebook import notebook_of
from kernelpool.api.mcp.transcript import IMAGES, MAX_ANSWER, Image, is_image
from kernelpool.api.resources import content_type, timestamp
from kernelpool.errors import InvalidRequest, NotFound, PayloadTooLarge, SessionNotFound
from kernelpool.gateway import Session
from kernelpool.models import FileInfo, WorkspacePath

MAX_LISTED = 500
MAX_IMAGE = MAX_ANSWER * 3 // 4 - 4096
"""Bytes of a file that is shown as an image: base64 makes a third more of them."""
MAX_RESOURCE = 8 << 20
"""Bytes of a resource, which is read as a whole."""
SCHEME = "kernelpool://sessions/"
FILES = "/files/"
NOTEBOOK = "/notebook.ipynb"


class Entry(BaseModel):
    path: str = Field(description="Relative to /mnt/data.")
    isDirectory: bool
    size: int
    modifiedAt: str


class Listing(BaseModel):
    session: str
    files: list[Entry]
    omitted: int = Field(description="Entries that are there but not listed.")


class Written(BaseModel):
    session: str
    path: str
    size: int
    uri: str = Field(description="To read it as a resource.")


@dataclass(frozen=True, slots=True)
class Content:
    """Of a resource."""

    mime: str
    data: bytes


async def list_files(call: Call, wanted: ListFiles) -> Answer:
    path = WorkspacePath.parse(wanted.path)
    async with call.use(wanted.session) as session:
        found = sorted(await session.list_files(path, recursive=wanted.recursive), key=lambda file: file.path)
        identifier = session.info.identifier
    entries = [_entry(file) for file in found[:MAX_LISTED]]
    omitted = len(found) - len(entries)
    lines = [f"{each.path}/" if each.isDirectory else f"{each.path}  {each.size} bytes" for each in entries]
    lines += [f"[{omitted} more are not listed]"] if omitted else []
    text = "\n".join(lines) or f"{path.absolute} is empty."
    return Answer(text, Listing(session=identifier, files=entries, omitted=omitted).model_dump())


async def read_file(call: Call, wanted: ReadFile) -> Answer:
    """Text as text, an image as an image."""
    path = WorkspacePath.parse_file(wanted.path)
    async with call.use(wanted.session) as session:
        info = await session.file_info(path)
        mime = content_type(path.text)
        if mime in IMAGES:
            return await _image(session, path, info, mime)
        data = await _read(session, path, wanted.offset, wanted.offset + wanted.max_characters)
    text = _text(data, at_end=wanted.offset + len(data) >= info.size)
    if text is None:
        raise InvalidRequest(f"{path.absolute} is no text: {info.size} bytes of {mime}; read it with code")
    ends_at = wanted.offset + len(text.encode())
    rest = info.size - ends_at
    more = f"\n[… {rest} bytes left out; read_file with offset={ends_at} reads them …]" if rest > 0 else ""
    return Answer(text + more if info.size else f"{path.absolute} is empty.")


async def write_file(call: Call, wanted: WriteFile) -> Answer:
    path = WorkspacePath.parse_file(wanted.path)
    async with call.use(wanted.session) as session:
        info = await session.write_file(path, _once(wanted.content()))
        identifier = session.info.identifier
    written = Written(session=identifier, path=info.path, size=info.size, uri=file_uri(identifier, info.path))
    return Answer(f"{info.size} bytes written to {path.absolute}.", written.model_dump())


# --- resources


def file_uri(session: str, path: str) -> str:
    return f"{SCHEME}{quote(session, safe='')}{FILES}{quote(path, safe='/')}"


def notebook_uri(session: str) -> str:
    return f"{SCHEME}{quote(session, safe='')}{NOTEBOOK}"


async def own_files(call: Call) -> list[FileInfo]:
    """Of the caller's own session, which is not made for it."""
    try:
        async with call.find("") as session:
            found = await session.list_files(WorkspacePath.parse(""), recursive=True)
    except SessionNotFound:
        return []
    return sorted((file for file in found if not file.is_directory), key=lambda file: file.path)[:MAX_LISTED]


async def read_resource(call: Call, uri: str) -> Content:
    """Raises `NotFound` for what is none of ours, `SessionNotFound`, `FileNotFound`, `PayloadTooLarge`."""
    session_name, _, rest = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not session_name:
        raise NotFound(f"there is no resource {uri[:200]!r}")
    async with call.find(unquote(session_name)) as session:
        if f"/{rest}" == NOTEBOOK:
            data = await notebook_of(call, session, MAX_RESOURCE)
            return Content("application/x-ipynb+json", data)
        if not f"/{rest}".startswith(FILES):
            raise NotFound(f"there is no resource {uri[:200]!r}")
        path = WorkspacePath.parse_file(unquote(rest.removeprefix(FILES[1:])))
        info = await session.file_info(path)
        if info.size > MAX_RESOURCE:
            raise PayloadTooLarge(f"the file has {info.size} bytes; a resource may have {MAX_RESOURCE}")
        return Content(content_type(path.text), await _read(session, path, 0, MAX_RESOURCE))


def as_text(content: Content) -> str | None:
    """None for what is no text."""
    return _text(content.data, at_end=True)


async def _image(session: Session, path: WorkspacePath, info: FileInfo, mime: str) -> Answer:
    if info.size > MAX_IMAGE:
        raise PayloadTooLarge(
            f"{path.absolute} has {info.size} bytes; at most {MAX_IMAGE} can be shown: make it smaller with code"
        )
    data = await _read(session, path, 0, MAX_IMAGE)
    if not is_image(mime, data):
        raise InvalidRequest(f"{path.absolute} is no image, whatever its name says: read it with code")
    text = f"{path.absolute}: {info.size} bytes of {mime}"
    return Answer(text, images=[Image(mime, base64.b64encode(data).decode())])


async def _read(session: Session, path: WorkspacePath, start: int, stop: int) -> bytes:
    """What there is of it: the file may have become shorter meanwhile."""
    info = await session.file_info(path)
    if start >= info.size:
        return b""
    async with session.read_file(path, start, min(stop, info.size)) as content:
        return b"".join([chunk async for chunk in content.chunks])


def _text(data: bytes, *, at_end: bool) -> str | None:
    """Up to the last whole character; None for what is no UTF-8."""
    for cut in range(1 if at_end else 4):
        try:
            text = data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else text
    return None


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _entry(file: FileInfo) -> Entry:
    size = 0 if file.is_directory else file.size
    return Entry(path=file.path, isDirectory=file.is_directory, size=size, modifiedAt=timestamp(file.modified_at))
