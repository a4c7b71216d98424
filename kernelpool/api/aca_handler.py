"""What all handlers of ACA's data plane share: the pool that the path names, the api-version, the identifier."""

from __future__ import annotations

import re

from kernelpool.api.base import ApiHandler
from kernelpool.api.query import SUPPORTED_VERSIONS, required_identifier
from kernelpool.gateway import PoolInfo, Session

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

    def describe_session(self, session: Session) -> None:
        self.set_header("x-ms-session-guid", session.info.sandbox)
        self.set_header("x-ms-new-allocation", "true" if session.is_new else "false")
