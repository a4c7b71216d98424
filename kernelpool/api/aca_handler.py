"""What all handlers of ACA's data plane share: the pool that the path names, the api-version, the identifier."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any

from kernelpool.api import sse
from kernelpool.api.base import ApiHandler, log
from kernelpool.api.json_text import dump_json
from kernelpool.api.query import SUPPORTED_VERSIONS, required_identifier
from kernelpool.api.refusals import error_envelope
from kernelpool.errors import KernelpoolError
from kernelpool.gateway import PoolInfo, Session

STALL_SECONDS = 60.0
"""A client that takes nothing of an answer for so long is taken for gone."""
POOL_PATH = r"(?i)/(?:pools|subscriptions/[^/]+/resourceGroups/[^/]+/sessionPools)/(?P<pool>[^/]+)"
"""A pool's base path: ours, or ACA's own."""


class AcaHandler(ApiHandler):
    """Knows the pool that the path names, and has checked the api-version."""

    pool: PoolInfo

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("api-supported-versions", SUPPORTED_VERSIONS)

    async def accept(self) -> None:
        self.pool = self.gateway.pool(self.principal, self.path_kwargs["pool"])
        self.query.api_version  # noqa: B018 - raises when it is missing or malformed

    @property
    def identifier(self) -> str:
        return required_identifier(self.query.identifier)

    @property
    def base_url(self) -> str:
        """Of the pool, as this caller reaches it."""
        match = re.match(POOL_PATH, self.request.path)
        return f"{self.origin}{match[0] if match else ''}"

    @property
    def wants_stream(self) -> bool:
        return self.request.method != "HEAD" and sse.is_wanted(self.request.headers.get("Accept", ""))

    async def push(self, data: bytes = b"") -> None:
        """Sends it, as fast as the client reads. Raises `TimeoutError` when it takes nothing."""
        self.write(data)
        async with asyncio.timeout(STALL_SECONDS):
            await self.flush()

    async def stream_events(self, work: Coroutine[Any, Any, None]) -> None:
        """Answers with Server-Sent Events, which `work` pushes. What goes wrong once they have begun becomes the last:
        the client may ask again, from the last id that it saw."""
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        self.set_header("X-Accel-Buffering", "no")
        try:
            await work
        except TimeoutError:
            self.connection.close()
            return
        except KernelpoolError as error:
            if not self._headers_written:  # it can still be said with a status
                raise
            log.warning("stream broke off", extra={"trace_id": self.trace_id, "error": repr(error)})
            envelope = error_envelope(error.code, error.message, self.trace_id, error.remedy)
            await self.push(sse.frame("error", dump_json(envelope)))
        await self.finish()

    def describe_session(self, session: Session) -> None:
        self.set_header("x-ms-session-guid", session.info.sandbox)
        self.set_header("x-ms-new-allocation", "true" if session.is_new else "false")
