"""Sessions and metadata of ACA's data plane, for the OpenAPI document. `resources` makes what is described here."""

from __future__ import annotations

from kernelpool.api.openapi.operation import (
    POOL,
    Json,
    Operation,
    Surface,
    answer,
    array_of,
    at_both_bases,
    json_answer,
    object_of,
    ref,
    text,
)
from kernelpool.api.openapi.shared import POOL_PARAMETERS, SESSION_HEADERS, SESSION_PARAMETERS, VERSION_HEADERS

_TIME = text(format="date-time")
_NEXT = text("Where the next page is, when there is one.", format="uri")

SCHEMAS: dict[str, Json] = {
    "Session": object_of(
        {
            "identifier": text(),
            "etag": text(),
            "createdAt": _TIME,
            "lastAccessedAt": _TIME,
            "expireAt": _TIME,
            "expiresAt": _TIME,
            "egress": object_of(
                {"mode": text(enum=["none", "outside", "domains"]), "domains": array_of(text())},
                description="What this session may reach, whatever its pool says by now; `domains` in that mode only.",
            ),
        },
        description="`expireAt` and `expiresAt` are the same under both names that clients read.",
    ),
    "Metadata": object_of(
        {
            "runtimes": array_of(object_of({"name": text(), "version": text()})),
            "preInstalledPackages": array_of(object_of({"name": text(), "version": text()})),
            "createdAt": _TIME,
            "lastUpdatedAt": _TIME,
            "jupyterKernel": object_of(
                {"name": text(), "version": text(), "projectUrl": text(), "description": text()}
            ),
        }
    ),
}

_PAGE = [*POOL_PARAMETERS, ref("skip", "parameters")]
_SESSION = json_answer("The session.", ref("Session"), VERSION_HEADERS)
_WITH_ETAG = {**SESSION_HEADERS, "x-ms-session-etag": ref("SessionEtag", "headers")}

SURFACE = Surface(
    "Sessions",
    "What an identifier holds. `/.management` says the same in the words of custom-container pools.",
    at_both_bases(
        {
            f"GET {POOL}/session": Operation(
                "getSession",
                "A session",
                {200: json_answer("The session.", ref("Session"), _WITH_ETAG)},
                parameters=SESSION_PARAMETERS,
            ),
            f"DELETE {POOL}/session": Operation(
                "deleteSession",
                "End a session, with all that runs in it",
                {204: answer("Ended.", headers=VERSION_HEADERS)},
                parameters=SESSION_PARAMETERS,
            ),
            f"GET {POOL}/listSessions": Operation(
                "listSessions",
                "All sessions, oldest first",
                {
                    200: json_answer(
                        "A page.",
                        object_of({"sessions": array_of(ref("Session")), "nextLink": _NEXT}, optional=["nextLink"]),
                        VERSION_HEADERS,
                    )
                },
                parameters=_PAGE,
            ),
            f"POST {POOL}/.management/getSession": Operation(
                "managementGetSession", "A session", {200: _SESSION}, parameters=SESSION_PARAMETERS
            ),
            f"POST {POOL}/.management/listSessions": Operation(
                "managementListSessions",
                "All sessions, oldest first",
                {
                    200: json_answer(
                        "A page.",
                        object_of(
                            {
                                "value": array_of(ref("Session")),
                                "count": {"type": "integer", "minimum": 0, "description": "Of this page."},
                                "nextLink": _NEXT,
                            },
                            optional=["nextLink"],
                        ),
                        VERSION_HEADERS,
                    )
                },
                parameters=_PAGE,
            ),
            f"POST {POOL}/.management/stopSession": Operation(
                "managementStopSession",
                "End a session",
                {200: answer("Ended.", {"text/plain": {"schema": text("A sentence.")}}, VERSION_HEADERS)},
                parameters=SESSION_PARAMETERS,
            ),
            f"GET {POOL}/metadata": Operation(
                "getMetadata",
                "Interpreter, kernel and packages",
                {200: json_answer("Of the pool's runtime.", ref("Metadata"), VERSION_HEADERS)},
                parameters=POOL_PARAMETERS,
            ),
        }
    ),
    SCHEMAS,
)
