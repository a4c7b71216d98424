"""GET /openapi.json, and the page at /docs that shows it: Swagger UI, served from here, so it works offline.

None of it holds a secret or says how this gateway is configured, so none of it needs a token. `static/` holds the
files of npm's `swagger-ui-dist` 5.35.0, compressed and otherwise as they were (a test compares their hashes).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kernelpool.api.base import Collaborators, OpenHandler
from kernelpool.api.json_text import dump_json
from kernelpool.api.openapi.operation import Json, Operation, Surface, answer, json_answer, parameter

STATIC = Path(__file__).parent / "static"

ASSETS = {
    "docs.js": "text/javascript; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
COMPRESSED = {"swagger-ui-bundle.js", "swagger-ui.css"}

PAGE_HEADERS = {
    # Swagger UI sets style attributes and has icons in its style sheet; no script but our own files runs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class DocumentHandler(OpenHandler):
    def initialize(self, collaborators: Collaborators, document: bytes = b"") -> None:
        super().initialize(collaborators)
        self._document = document

    async def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(self._document)


class PageHandler(OpenHandler):
    async def get(self) -> None:
        for name, value in PAGE_HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(await asyncio.to_thread((STATIC / "docs.html").read_bytes))


class AssetHandler(OpenHandler):
    """What the page loads. The route lets no other name through."""

    async def get(self, file: str) -> None:
        name = file
        if file in COMPRESSED:
            name = f"{file}.gz"
            self.set_header("Content-Encoding", "gzip")
        self.set_header("Content-Type", ASSETS[file])
        self.finish(await asyncio.to_thread((STATIC / name).read_bytes))


_FILE = parameter("file", {"enum": sorted(ASSETS)}, "", "path", required=True, example="docs.js")

SURFACE = Surface(
    "Description",
    "This document. No token.",
    {
        "GET /openapi.json": Operation(
            "getOpenApi", "This document", {200: json_answer("OpenAPI 3.1.", {"type": "object"})}, is_open=True
        ),
        "GET /docs": Operation(
            "getDocs",
            "It as a page",
            {200: answer("A page that loads nothing from elsewhere.", {"text/html": {}})},
            is_open=True,
        ),
        "GET /docs/{file}": Operation(
            "getDocsFile",
            "What the page loads",
            {200: answer("Style or script.", {"text/javascript": {}, "text/css": {}})},
            parameters=[_FILE],
            errors=(401, 404),
            is_open=True,
        ),
    },
)


def routes(collaborators: Collaborators, document: Json) -> list[Any]:
    shared = {"collaborators": collaborators}
    return [
        ("/openapi.json", DocumentHandler, {**shared, "document": dump_json(document)}),
        ("/docs", PageHandler, shared),
        (f"/docs/(?P<file>{'|'.join(ASSETS)})", AssetHandler, shared),
    ]
