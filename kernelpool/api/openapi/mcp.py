"""The MCP endpoint in the OpenAPI document: one message in, one out. What messages there are, the protocol says."""

from __future__ import annotations

from kernelpool.api.openapi.operation import (
    POOL,
    Json,
    Operation,
    Surface,
    answer,
    at_both_bases,
    header,
    object_of,
    parameter,
    ref,
    text,
)

_ID: Json = {"type": ["string", "integer", "null"]}
_SESSION = header("The MCP session that `initialize` has opened; later requests may name it.")
_JSON = "application/json"
_FAULT: Json = {"anyOf": [ref("McpError"), ref("Error")]}
"""The latter for what is refused before it is known where it goes."""
_REFUSED = {_JSON: {"schema": _FAULT}}
_STREAM = {"schema": text("Each `data:` is a message; the last one is the answer.")}
_EXAMPLE = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}

_PARAMETERS = [
    parameter("identifier", text(), "The code session that tools work in when a call names none."),
    parameter("Mcp-Session-Id", text(), "As `initialize` said. Whoever has none needs none.", "header"),
    parameter("Mcp-Protocol-Version", text(), "A revision, such as `2025-11-25`.", "header"),
    parameter("x-ms-apikey", text(), "The pool's key, or any token, in the place of Authorization.", "header"),
]

SURFACE = Surface(
    "MCP",
    "The Model Context Protocol over Streamable HTTP, without `api-version`. Needs the gateway's extra `mcp`.",
    at_both_bases(
        {
            f"POST {POOL}/mcp": Operation(
                "sendMcpMessage",
                "Send a message",
                {
                    200: answer(
                        "The answer to a request.",
                        {
                            _JSON: {"schema": {"anyOf": [ref("McpResult"), ref("McpError")]}},
                            "text/event-stream": _STREAM,
                        },
                        {"Mcp-Session-Id": _SESSION},
                    ),
                    202: answer("It was no request."),
                    400: answer("No message, or one of a revision that is not known here; or as everywhere.", _REFUSED),
                    404: answer("No such MCP session, method or pool.", _REFUSED),
                    406: answer("A client of a new revision that takes no JSON, or no stream."),
                },
                parameters=_PARAMETERS,
                errors=(501,),
                fault=_FAULT,
                body={"required": True, "content": {_JSON: {"schema": {"type": "object"}, "example": _EXAMPLE}}},
            ),
            f"DELETE {POOL}/mcp": Operation(
                "endMcpSession",
                "End an MCP session",
                {204: answer("It is over, and so is the code session behind it.")},
                parameters=_PARAMETERS,
                fault=_FAULT,
            ),
        }
    ),
    {
        "McpResult": object_of({"jsonrpc": text(), "id": _ID, "result": {"type": "object"}}),
        "McpError": object_of(
            {
                "jsonrpc": text(),
                "id": _ID,
                "error": object_of({"code": {"type": "integer"}, "message": text(), "data": {}}, optional=["data"]),
            }
        ),
    },
)
