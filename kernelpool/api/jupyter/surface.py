"""The Jupyter surface, for the OpenAPI document. `models` makes what is described here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kernelpool.api.openapi.operation import (
    POOL,
    Json,
    Operation,
    Surface,
    answer,
    array_of,
    header,
    json_answer,
    object_of,
    parameter,
    ref,
    text,
)
from kernelpool.models import KernelPhase

BASE = f"{POOL}/jupyter"
_COUNT = {"type": "integer", "minimum": 0}
_TIME = text(format="date-time")
_NULL_TEXT = {"type": ["string", "null"]}
_TEXTS = array_of({"type": "string"})
_WRITES = (409, 502, 507)

SCHEMAS: dict[str, Json] = {
    "Kernel": object_of(
        {
            "id": text("Of the session, for good: it survives a restart of the kernel and of the gateway."),
            "name": text("Of the kernelspec: the pool."),
            "last_activity": _TIME,
            "execution_state": {"enum": [*(phase.value for phase in KernelPhase), "unknown"]},
            "connections": _COUNT | {"description": "WebSockets of Jupyter clients."},
            "identifier": text("By which the same session is used over REST."),
        }
    ),
    "Kernelspec": object_of(
        {
            "name": text(),
            "spec": object_of(
                {
                    "argv": _TEXTS,
                    "env": {"type": "object"},
                    "display_name": text(),
                    "language": text(),
                    "interrupt_mode": text(),
                    "metadata": {"type": "object"},
                }
            ),
            "resources": {"type": "object", "description": "Paths of logos."},
        }
    ),
    "JupyterSession": object_of(
        {
            "id": text(),
            "path": text("What the client calls its document."),
            "name": text(),
            "type": text(),
            "kernel": ref("Kernel"),
            "notebook": object_of({"path": text(), "name": text()}),
        }
    ),
    "JupyterServer": object_of({"version": text("Of kernelpool.")}),
    "JupyterUser": object_of(
        {
            "identity": object_of(
                {
                    **{name: text() for name in ("username", "name", "display_name", "initials")},
                    "avatar_url": _NULL_TEXT,
                    "color": _NULL_TEXT,
                }
            ),
            "permissions": {"type": "object", "additionalProperties": _TEXTS},
        }
    ),
    "JupyterStatus": object_of(
        {"started": _TIME, "last_activity": _TIME, "kernels": _COUNT, "connections": _COUNT},
        description="Of the caller's own kernels.",
    ),
    "Kernelspecs": object_of(
        {"default": text(), "kernelspecs": {"type": "object", "additionalProperties": ref("Kernelspec")}}
    ),
}

_KERNEL = json_answer("The kernel.", ref("Kernel"))
_SESSION = json_answer("The session.", ref("JupyterSession"))
_LOCATION = {"Location": header("Its path, without any token.")}
_ENDED = answer("Done.")
_SOCKET = answer("The connection is a WebSocket now.")
# What a client sends: null is as good as nothing.
_ENV = {
    "type": ["object", "null"],
    "description": "`KERNEL_KERNELPOOL_IDENTIFIER` chooses the identifier; nothing else counts.",
}
_WANTED = {
    "type": ["object", "null"],
    "properties": {
        "id": _NULL_TEXT | {"description": "A kernel."},
        "name": _NULL_TEXT | {"description": "A kernelspec."},
    },
}


def _body(fields: Mapping[str, Json], example: Json) -> Json:
    schema = {"type": "object", "properties": dict(fields)}
    return {
        "description": "JSON, whatever its Content-Type.",
        "content": {"application/json": {"schema": schema, "example": example}},
    }


_DOCUMENT = dict.fromkeys(("path", "name", "type"), _NULL_TEXT)
_OPERATIONS: dict[str, Operation] = {
    "GET /": Operation("getJupyterPage", "No page", {}, errors=(404,), is_open=True),
    "GET /tree": Operation("getJupyterTree", "No page", {}, errors=(404,), is_open=True),
    "GET /hub/api": Operation("getJupyterHub", "No hub", {}, errors=(404,), is_open=True),
    "GET /api": Operation(
        "getJupyterVersion", "What server this is", {200: json_answer("It.", ref("JupyterServer"))}, is_open=True
    ),
    "GET /api/me": Operation(
        "getJupyterUser",
        "Who asks",
        {200: json_answer("He.", ref("JupyterUser"))},
        parameters=[parameter("permissions", text(), "JSON: actions by resource, to learn which are allowed.")],
    ),
    "GET /api/status": Operation(
        "getJupyterStatus", "How much there is", {200: json_answer("Of the caller.", ref("JupyterStatus"))}
    ),
    "GET /api/kernelspecs": Operation(
        "listKernelspecs", "The pools, as kernelspecs", {200: json_answer("All of them.", ref("Kernelspecs"))}
    ),
    "GET /api/kernelspecs/{spec}": Operation(
        "getKernelspec", "A pool, as a kernelspec", {200: json_answer("It.", ref("Kernelspec"))}
    ),
    "GET /kernelspecs/{spec}/{logo}": Operation(
        "getKernelLogo", "A logo", {200: answer("The picture.", {"image/svg+xml": {}, "image/png": {}})}
    ),
    "GET /api/kernels": Operation(
        "listKernels",
        "The caller's sessions, as kernels",
        {200: json_answer("All of them, whatever surface made them.", array_of(ref("Kernel")))},
    ),
    "POST /api/kernels": Operation(
        "startKernel",
        "A new session, as a kernel",
        {201: json_answer("The kernel.", ref("Kernel"), _LOCATION)},
        body=_body({"name": _NULL_TEXT | {"description": "A kernelspec."}, "env": _ENV}, {"name": "python"}),
        errors=_WRITES,
    ),
    "GET /api/kernels/{kernel}": Operation("getKernel", "A kernel", {200: _KERNEL}),
    "DELETE /api/kernels/{kernel}": Operation("deleteKernel", "End a session", {204: _ENDED}),
    "POST /api/kernels/{kernel}/interrupt": Operation(
        "interruptKernel", "Interrupt what runs", {204: _ENDED}, errors=_WRITES
    ),
    "POST /api/kernels/{kernel}/restart": Operation(
        "restartKernel", "A fresh kernel for the session", {200: _KERNEL}, errors=_WRITES
    ),
    "GET /api/kernels/{kernel}/channels": Operation(
        "connectKernel",
        "A WebSocket to a kernel",
        {101: _SOCKET},
        description="In the framing `v1.kernel.websocket.jupyter.org` if it is offered, else in the older one of JSON.",
        parameters=[
            parameter("session_id", text(maxLength=256), "Names the client: with the same it gets what it missed."),
            parameter("last_msg_id", text(maxLength=256), "The message that it saw last."),
        ],
        errors=_WRITES,
    ),
    "GET /api/events/subscribe": Operation("watchJupyterEvents", "A WebSocket that is silent", {101: _SOCKET}),
    "GET /api/sessions": Operation(
        "listJupyterSessions",
        "Documents with a kernel",
        {200: json_answer("All of them.", array_of(ref("JupyterSession")))},
    ),
    "POST /api/sessions": Operation(
        "openJupyterSession",
        "A kernel for a document",
        {201: json_answer("The one that the path has, or a new one.", ref("JupyterSession"), _LOCATION)},
        body=_body({**_DOCUMENT, "kernel": _WANTED}, {"path": "a.ipynb", "type": "notebook"}),
        errors=_WRITES,
    ),
    "GET /api/sessions/{session}": Operation("getJupyterSession", "A document's kernel", {200: _SESSION}),
    "PATCH /api/sessions/{session}": Operation(
        "changeJupyterSession",
        "Another name or kernel",
        {200: _SESSION},
        body=_body({**_DOCUMENT, "kernel": _WANTED}, {"name": "a"}),
        errors=_WRITES,
    ),
    "DELETE /api/sessions/{session}": Operation("deleteJupyterSession", "End it, and its kernel", {204: _ENDED}),
}


def _below_pool(operations: Mapping[str, Operation]) -> dict[str, Operation]:
    """The same again, of one pool. Every id is unique."""
    return {
        f"{method} {BASE}{path}": replace(operation, id=f"{operation.id}OfPool")
        for (method, path), operation in ((name.split(" "), operation) for name, operation in operations.items())
    }


SURFACE = Surface(
    "Jupyter",
    f"The gateway as a Jupyter server, at the root with all pools and below `{BASE}` with one. Besides the header, a "
    "token may stand in `?token=`, and as `/k/<token>` in front of the path.",
    {**_OPERATIONS, **_below_pool(_OPERATIONS)},
    SCHEMAS,
)
