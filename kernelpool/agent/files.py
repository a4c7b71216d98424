"""The agent's routes for files. A body of any size passes through; at most one chunk of it is in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from dataclasses import asdict
from typing import Any

from tornado.web import stream_request_body

from kernelpool.agent.base import ActivatedHandler, Sandbox, encode
from kernelpool.agent.workspace import Upload
from kernelpool.errors import KernelpoolError, RangeNotSatisfiable
from kernelpool.models import FileInfo, WorkspacePath

CHUNK = 256 << 10


class FilesHandler(ActivatedHandler):
    async def get(self) -> None:
        recursive = self.get_query_argument("recursive", "0") == "1"
        with self.sandbox.transfers.one():
            found = await asyncio.to_thread(self.sandbox.workspace.list, self.path, recursive=recursive)
        await self.finish(encode({"files": found}))


class FileHandler(ActivatedHandler):
    def get(self) -> None:
        with self.sandbox.transfers.one():
            self.finish(encode(self.sandbox.workspace.info(self.path)))

    async def delete(self) -> None:
        with self.sandbox.transfers.one():
            await asyncio.to_thread(self.sandbox.workspace.delete, self.path)
        self.set_status(204)


@stream_request_body
class ContentHandler(ActivatedHandler):
    """A body of any size passes through; at most one chunk is in memory."""

    upload: Upload | None = None
    error: KernelpoolError | None = None
    """Of the upload. It is told when the body is through: who still writes does not read."""

    def initialize(self, sandbox: Sandbox) -> None:
        super().initialize(sandbox)
        self._upload_under_way = contextlib.ExitStack()

    def prepare(self) -> None:
        super().prepare()
        if self.request.method == "PUT":
            self._upload_under_way.enter_context(self.sandbox.transfers.one())
            # The caller sets the limit: what the workspace holds is bounded by its own size.
            self.request.connection.set_max_body_size(1 << 50)  # type: ignore[union-attr]
            try:
                self.upload = self.sandbox.workspace.create(WorkspacePath.parse_file(self.path.text))
            except KernelpoolError as error:
                self.error = error

    def data_received(self, chunk: bytes) -> None:
        if self.upload is None or self.error is not None:
            return
        try:
            self.upload.write(chunk)
        except KernelpoolError as error:
            self.error = error
            self.upload.abort()

    def put(self) -> None:
        if self.error is not None:
            raise self.error
        assert self.upload is not None
        self.finish(encode(self.upload.commit()))

    async def get(self) -> None:
        with self.sandbox.transfers.one():
            file, info = self.sandbox.workspace.open(self.path)
            with file:
                start, stop = byte_range(self.request.headers.get("Range"), info)
                if self.request.headers.get("Range"):
                    self.set_status(206)
                    self.set_header("Content-Range", f"bytes {start}-{stop - 1}/{info.size}")
                self.set_header("Content-Type", "application/octet-stream")
                self.set_header("Content-Length", str(stop - start))
                self.set_header("X-File", json.dumps(asdict(info)))  # ASCII, as a header must be
                file.seek(start)
                await self.flush()
                await self._send(file, stop - start)

    async def _send(self, file: Any, left: int) -> None:
        while left > 0:
            chunk = file.read(min(CHUNK, left))
            if not chunk:  # it shrank while we read: cut the answer off rather than pad it
                self.request.connection.stream.close()  # type: ignore[union-attr]
                return
            left -= len(chunk)
            self.write(chunk)
            await self.flush()

    def on_finish(self) -> None:
        if self.upload is not None:
            self.upload.abort()
        self._upload_under_way.close()

    def on_connection_close(self) -> None:
        self.on_finish()


def byte_range(header: str | None, info: FileInfo) -> tuple[int, int]:
    """The bytes start..stop that a Range header asks of a file. Raises `RangeNotSatisfiable`.

    Beyond RFC 9110 `bytes=-4-7` is from the fourth byte before the end to the eighth of the file.
    """
    if not header:
        return 0, info.size
    match = re.fullmatch(r"bytes=(-\d+|\d*)-(\d*)", header.strip(), re.ASCII)
    if not match or match.group(0) == "bytes=-":
        raise RangeNotSatisfiable("only one range of the form bytes=a-b is served")
    first, last = match.groups()
    if not first:
        start, stop = max(0, info.size - int(last)), info.size
    else:
        start = int(first) if first[0] != "-" else max(0, info.size + int(first))
        stop = min(info.size, int(last) + 1 if last else info.size)
    if start >= stop:
        raise RangeNotSatisfiable(f"the file has {info.size} bytes")
    return start, stop
