"""Files over ACA's data plane, old routes and new. Both ways they stream, whatever the size."""

from __future__ import annotations

import asyncio

from kernelpool.agents import FileContent
from kernelpool.api import resources
from kernelpool.api.aca_handler import AcaHandler
from kernelpool.api.base import Collaborators, log
from kernelpool.api.downloads import HEADERS, content_disposition, content_range, parse_range
from kernelpool.api.multipart import FileStart, MislabelledReader, MultipartReader, Piece, Pipe, RawReader, Reader
from kernelpool.api.quirks import percent_encodes_file_names
from kernelpool.errors import InvalidRequest, KernelpoolError, PayloadTooLarge, RangeNotSatisfiable
from kernelpool.models import WORKSPACE, FileInfo, WorkspacePath

FRAMING = 1 << 20
"""Bytes of an upload that may be something else than its files: boundaries, headers, form fields."""


class _Handler(AcaHandler):
    def listed(self) -> WorkspacePath:
        """The directory that `?path=` names; the workspace itself without it, or for "/", as Azure's CLI has it."""
        text = self.query.text("path") or ""
        return WorkspacePath.parse(text if text.startswith(WORKSPACE) else text.lstrip("/"))

    def named(self, name: str) -> WorkspacePath:
        """A file by a name that is relative to `?path=`, or absolute in the workspace."""
        return WorkspacePath.parse_file(name) if name.startswith("/") else self.listed().child(name)

    async def look_at(self, name: str) -> None:
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.describe_session(session)
            file = await session.file_info(self.named(name))
        if self.query.wants_legacy_shape:
            self.answer({"value": [resources.legacy_file(file, self.listed())]})
        else:
            self.answer(resources.modern_file(file, self.listed()))

    async def remove(self, name: str) -> None:
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            await session.delete_file(self.named(name))
        if self.query.wants_legacy_shape:
            self.answer({"message": "file deleted successfully"})
        else:
            self.answer_nothing()


class _ReceivingHandler(_Handler):
    """Takes files from its body while it comes in. Storing runs beside reading, and either ends the other."""

    takes_json = False

    def initialize(self, collaborators: Collaborators) -> None:
        super().initialize(collaborators)
        self._pipe = Pipe()
        self._reader: Reader | None = None
        self._storing: asyncio.Task[None] | None = None
        self._stored: list[FileInfo] = []
        self._received = 0

    @property
    def body_limit(self) -> int:
        return self.pool.settings.max_upload + FRAMING

    def reader(self) -> Reader:
        """Raises `InvalidRequest` when the headers announce what cannot be read."""
        headers = self.request.headers
        content_type = headers.get("Content-Type", "")
        if content_type.lower().startswith("application/json"):
            return MislabelledReader(content_type)
        encoded = percent_encodes_file_names(headers.get("User-Agent", ""))
        return MultipartReader(content_type, percent_encoded_names=encoded)

    async def accept(self) -> None:
        await super().accept()
        if self.request.method in ("POST", "PUT"):
            self.identifier  # noqa: B018 - raises when it is missing
            self.listed()
            self._reader = self.reader()

    async def receive(self, chunk: bytes) -> None:
        if self._reader is None:
            return await super().receive(chunk)
        self._received += len(chunk)
        try:
            if self._received > self.body_limit:
                raise PayloadTooLarge(f"upload is larger than {self.pool.settings.max_upload} bytes")
            await self._pass_on(self._reader.feed(chunk))
        except KernelpoolError:
            self._stop_storing()
            raise
        return None

    async def received(self) -> list[FileInfo]:
        """All files, stored. To be called when the body is complete."""
        assert self._reader is not None  # `accept` has made it
        await self._pass_on(self._reader.finish())
        await self._pipe.close()
        if self._storing is not None:
            await self._storing
        if not self._stored:
            raise InvalidRequest("body holds no file: a part with name 'file' and a file name is needed")
        return self._stored

    async def _pass_on(self, pieces: list[Piece]) -> None:
        """Raises what storing has raised, as soon as it has."""
        if self._storing is None:
            self._storing = self.collaborators.works.start(self._store(), self.exchange.context)
        for piece in pieces:
            await self._pipe.put(piece)
        if self._storing.done():
            self._storing.result()

    def on_finish(self) -> None:
        """However it ended: nothing is stored after the answer."""
        self._stop_storing()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._stop_storing()

    def _stop_storing(self) -> None:
        if self._storing is not None:
            self._storing.cancel()

    async def _store(self) -> None:
        """The session is not touched before there is a file with a good name."""
        try:
            first = await self._next_path()
            if first is None:
                return
            async with self.gateway.use(self.principal, self.pool.name, self.identifier) as session:
                self.describe_session(session)
                path: WorkspacePath | None = first
                while path is not None:
                    self._stored.append(await session.write_file(path, self._pipe.file()))
                    path = await self._next_path()
        finally:
            await self._pipe.close()

    async def _next_path(self) -> WorkspacePath | None:
        while (piece := await self._pipe.get()) is not None:
            if isinstance(piece, FileStart):
                return self.named(piece.name)
        return None


class FilesHandler(_ReceivingHandler):
    """The listing, in the shape that the api-version asks for, and today's upload."""

    async def get(self, pool: str) -> None:
        await self.serve(self._list())

    async def post(self, pool: str) -> None:
        await self.serve(self._upload())

    async def _list(self) -> None:
        path, recursive = self.listed(), self.query.flag("recursive", False)
        async with self.gateway.use(self.principal, self.pool.name, self.identifier) as session:
            self.describe_session(session)
            files = await session.list_files(path, recursive=recursive)
        legacy = self.query.wants_legacy_shape
        self.answer((resources.legacy_listing if legacy else resources.modern_listing)(files, path))

    async def _upload(self) -> None:
        """One file is answered as ACA does; several, which ACA does not take, as a list."""
        files, path = await self.received(), self.listed()
        if len(files) == 1:
            self.answer(resources.modern_file(files[0], path))
        else:
            self.answer(resources.modern_listing(files, path))


class UploadHandler(_ReceivingHandler):
    """The upload of old; what is not an upload is about a file of that name."""

    async def post(self, pool: str) -> None:
        await self.serve(self._upload())

    async def get(self, pool: str) -> None:
        await self.serve(self.look_at("upload"))

    async def delete(self, pool: str) -> None:
        await self.serve(self.remove("upload"))

    async def _upload(self) -> None:
        self.answer(resources.legacy_listing(await self.received(), self.listed()))


class FileHandler(_Handler):
    """One file or directory: what is known of it, and its end."""

    async def get(self, pool: str, name: str) -> None:
        await self.serve(self.look_at(name))

    async def delete(self, pool: str, name: str) -> None:
        await self.serve(self.remove(name))


class ContentHandler(_ReceivingHandler):
    """A file's bytes: GET and HEAD as ACA has them, with ranges; PUT (ours) makes the body the file."""

    def initialize(self, collaborators: Collaborators, typed: bool = False) -> None:
        super().initialize(collaborators)
        self._typed = typed

    async def get(self, pool: str, name: str) -> None:
        await self.serve(self._get(name))

    async def head(self, pool: str, name: str) -> None:
        await self.serve(self._head(name))

    async def put(self, pool: str, name: str) -> None:
        await self.serve(self._put())

    def reader(self) -> Reader:
        return RawReader(self.named(self.path_kwargs["name"]).absolute)

    async def _put(self) -> None:
        self.answer(resources.modern_file((await self.received())[0], self.listed()))

    async def _head(self, name: str) -> None:
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            file = await session.file_info(self.named(name))
        if file.is_directory:
            raise InvalidRequest(f"{file.path} is a directory")
        self._describe_file(file, file.size)
        await self.finish()

    async def _get(self, name: str) -> None:
        path = self.named(name)
        start, stop = parse_range(self.request.headers.get("Range"))
        async with self.gateway.find(self.principal, self.pool.name, self.identifier) as session:
            self.describe_session(session)
            try:
                async with session.read_file(path, start, stop) as content:
                    if start is not None:
                        self.set_status(206)
                        self.set_header("Content-Range", content_range(content.info, content.start, content.stop))
                    self._describe_file(content.info, content.stop - content.start)
                    await self._send(content)
            except RangeNotSatisfiable as error:
                size = (await session.file_info(path)).size
                self.set_header("Content-Range", f"bytes */{size}")
                await self.finish(self.describe_error(error))

    def _describe_file(self, file: FileInfo, length: int) -> None:
        for header, value in HEADERS.items():
            self.set_header(header, value)
        self.set_header(
            "Content-Type", resources.content_type(file.name) if self._typed else "application/octet-stream"
        )
        self.set_header("Content-Disposition", content_disposition(file.name))
        self.set_header("Content-Length", str(length))

    async def _send(self, content: FileContent) -> None:
        """Exactly the bytes announced. When the sandbox breaks off in the middle, all that can still be told is that
        the answer is not complete: by closing the connection."""
        left = content.stop - content.start
        try:
            await self.push()
            async for chunk in content.chunks:
                left -= len(chunk)
                if left < 0:
                    break
                await self.push(chunk)
        except (KernelpoolError, TimeoutError) as error:
            log.warning("download broke off", extra={"trace_id": self.trace_id, "error": repr(error)})
        if left == 0:
            await self.finish()
        else:
            self.connection.close()
