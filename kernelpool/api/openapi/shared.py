"""What the operations of ACA's data plane have in common: parameters, headers, the errors of each kind of work."""

from __future__ import annotations

from kernelpool.api.openapi.operation import Json, header, parameter, ref, text

# Errors beside those that anything may meet: of what looks at a session, of what may allocate one.
FINDS = (502,)
USES = (409, 502, 507)

VERSION = "2025-10-02-preview"
SESSION = "example-session"

PATH_PARAMETERS: dict[str, Json] = {
    "pool": parameter("pool", text(), "The pool's name.", "path", required=True, example="python"),
    "subscriptionId": parameter("subscriptionId", text(), "Anything.", "path", required=True, example="0"),
    "subscription": parameter("subscription", text(), "Anything.", "path", required=True, example="0"),
    "group": parameter("group", text(), "Anything.", "path", required=True, example="group"),
    "resourceGroup": parameter("resourceGroup", text(), "Anything.", "path", required=True, example="group"),
    "execution": parameter(
        "execution", text(), "The execution's `id`.", "path", required=True, example="example-execution"
    ),
    "kernel": parameter(
        "kernel", text(), "The kernel's `id`.", "path", required=True, example="00000000-0000-0000-0000-000000000000"
    ),
    "session": parameter(
        "session", text(), "The session's `id`.", "path", required=True, example="00000000-0000-0000-0000-000000000000"
    ),
    "spec": parameter("spec", text(), "A pool's name.", "path", required=True, example="python"),
    "logo": parameter("logo", text(), "Its file.", "path", required=True, example="logo-svg.svg"),
    "tail": parameter("tail", text(), "A path of the container's.", "path", required=True, example="health"),
    "name": parameter(
        "name",
        text(minLength=1),
        "Relative to `path`. A slash in it may be sent as it is, or as `%2F`.",
        "path",
        required=True,
        example="notes.txt",
    ),
}
"""Of all paths, by the names that the routes give them."""

PARAMETERS: dict[str, Json] = {
    "apiVersion": parameter(
        "api-version",
        text(pattern=r"^\d{4}-\d{2}-\d{2}(-[Pp][Rr][Ee][Vv][Ii][Ee][Ww])?$"),
        "Any published one. Only the shape of file listings depends on it: old up to 2024-08-02-preview.",
        required=True,
        example=VERSION,
    ),
    "identifier": parameter(
        "identifier",
        text(pattern=r"""^[A-Za-z0-9_|}{\[\]:";'<>?/.,@#$%^&*()\-+=!~`]{4,128}$""", minLength=4, maxLength=128),
        "Which session. The first execution, upload or listing with a new one allocates it.",
        required=True,
        example=SESSION,
    ),
    "path": parameter("path", text(), "A directory of the workspace, `/mnt/data` without it."),
    "skip": parameter(
        "skip", {"type": "integer", "minimum": 0, "maximum": 2**31}, "How many to leave out; a page has 300."
    ),
    "after": parameter(
        "after", {"type": "integer", "minimum": 0, "maximum": 2**31}, "The `number` of the last one of the page before."
    ),
    "range": parameter("Range", text(), "`bytes=<first>-<last>`, or a part of that.", "header"),
    "operationId": parameter(
        "operation-id",
        text(pattern="^[A-Za-z0-9._:~-]{1,128}$"),
        "Becomes the execution's id. Sent twice, the code still runs once.",
        "header",
        example="example-execution",
    ),
    "lastEventId": parameter(
        "Last-Event-ID", text(), "Of a stream that was lost: the last id that was seen.", "header"
    ),
    "prefer": parameter(
        "Prefer", text(), "`respond-async`: as `executionType` Asynchronous, and for Shell pools, too.", "header"
    ),
    "outputs": parameter("outputs", {"type": "boolean"}, "`false` leaves `outputs` out of the answer."),
    "outputStreamsMaxLength": parameter(
        "outputStreamsMaxLength",
        {"type": "integer", "minimum": 0, "maximum": 64 << 20},
        "Bytes of stdout and of stderr in the answer; 0 does not cut.",
    ),
    "jupyterFormat": parameter(
        "returnJupyterFormatExecutionResult", {"type": "boolean"}, "The result as its text/plain, null without one."
    ),
}

HEADERS: dict[str, Json] = {
    "SupportedVersions": header("The api-versions that are known by name.", always=True),
    "SessionGuid": header("Names the sandbox; a new one means that variables and files are gone."),
    "NewAllocation": header("Whether this request allocated the session.", {"enum": ["true", "false"]}),
    "SessionEtag": header("Of the session.", always=True),
    "OperationId": header("The execution's id."),
    "OperationLocation": header("Where to poll the execution.", {"type": "string", "format": "uri"}),
    "Milliseconds": header("A time, in milliseconds.", {"type": "integer", "minimum": 0}),
}

POOL_PARAMETERS = [ref("apiVersion", "parameters")]
SESSION_PARAMETERS = [*POOL_PARAMETERS, ref("identifier", "parameters")]

VERSION_HEADERS = {"api-supported-versions": ref("SupportedVersions", "headers")}
SESSION_HEADERS = {
    **VERSION_HEADERS,
    "x-ms-session-guid": ref("SessionGuid", "headers"),
    "x-ms-new-allocation": ref("NewAllocation", "headers"),
}

SAME_SESSION = {
    "pool": "$request.path.pool",
    "api-version": "$request.query.api-version",
    "identifier": "$request.query.identifier",
}
"""What a link passes on."""


def also(*names: str) -> list[Json]:
    """Parameters of these names, after those that name a session."""
    return [*SESSION_PARAMETERS, *(ref(name, "parameters") for name in names)]
