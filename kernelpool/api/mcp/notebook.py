"""A session's notebook, for tools and resources: small enough to be in memory as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from pydantic import BaseModel, Field

from kernelpool.api.json_text import dump_json
from kernelpool.api.mcp.arguments import ExportNotebook
from kernelpool.api.mcp.call import Answer, Call
from kernelpool.api.notebooks import cells_of
from kernelpool.errors import PayloadTooLarge
from kernelpool.gateway import Session
from kernelpool.models import WorkspacePath
from kernelpool.notebooks.cells import Cells
from kernelpool.notebooks.document import head_of, language_metadata

MAX_NOTEBOOK = 32 << 20
"""Bytes of one that is written to a file."""


class Exported(BaseModel):
    session: str
    path: str
    cells: int
    size: int = Field(description="Bytes.")


async def export_notebook(call: Call, wanted: ExportNotebook) -> Answer:
    path = WorkspacePath.parse_file(wanted.path)
    async with call.find(wanted.session) as session:
        data = await notebook_of(call, session, MAX_NOTEBOOK)
        info = await session.write_file(path, _once(data))
        identifier = session.info.identifier
    count = data.count(b'{"cell_type":')
    exported = Exported(session=identifier, path=info.path, cells=count, size=info.size)
    return Answer(f"{count} cells written to {path.absolute}.", exported.model_dump())


async def notebook_of(call: Call, session: Session, limit: int) -> bytes:
    """The document, with all that the session ran by whichever door. Raises `PayloadTooLarge`."""
    caller = call.caller
    language = language_metadata(call.pool.language, await caller.gateway.metadata(caller.principal, call.pool.name))
    pieces, size = [], 0
    async with aclosing(cells_of(session, Cells(call.pool.language))) as cells:
        async for cell in cells:
            pieces.append(dump_json(cell))
            size += len(pieces[-1]) + 1
            if size > limit:
                raise PayloadTooLarge(f"the session's notebook is larger than {limit} bytes; ask the gateway for it")
    return dump_json(head_of(language)).removesuffix(b"}") + b',"cells":[' + b",".join(pieces) + b"]}"


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
