"""Every error that a caller can meet: code, HTTP status, message, what to do.

    KernelpoolError
    ├── CallerError              the caller can mend the request now
    │   ├── InvalidRequest
    │   │   ├── InvalidIdentifier
    │   │   ├── InvalidPath
    │   │   ├── InvalidFileName
    │   │   ├── InvalidApiVersion
    │   │   ├── MalformedHead
    │   │   │   ├── TargetTooLong
    │   │   │   └── HeadersTooLarge
    │   │   ├── InvalidNotebook
    │   │   └── UnsupportedMediaType
    │   ├── Unauthorized
    │   │   └── InvalidToken
    │   ├── Forbidden
    │   │   └── OriginNotAllowed
    │   ├── Misdirected
    │   ├── NotFound
    │   │   ├── PoolNotFound
    │   │   ├── SessionNotFound
    │   │   ├── ExecutionNotFound
    │   │   ├── KernelNotFound
    │   │   ├── JupyterSessionNotFound
    │   │   └── FileNotFound
    │   ├── Conflict
    │   ├── PayloadTooLarge
    │   ├── RangeNotSatisfiable
    │   └── WorkspaceFull
    ├── TryLater                 the same request may pass later
    │   ├── SessionLimitReached
    │   ├── QuotaExceeded
    │   ├── ExecutionQueueFull
    │   ├── AllocationTimeout
    │   ├── GatewayDraining
    │   ├── TooManyConnections
    │   ├── BackendUnavailable
    │   └── SandboxUnreachable
    └── Fault                    ours to mend; the caller can only report it
        ├── SandboxLost
        ├── AgentFault
        ├── ContainerFault
        │   ├── ContainerUnreachable
        │   └── ContainerSilent
        ├── StartFailed
        └── PrepareFailed

User code that raises is not here: it is an output. Surfaces translate these classes; nobody else knows HTTP.
"""

from __future__ import annotations

from typing import ClassVar


class KernelpoolError(Exception):
    """Base of all. `str()` of it is shown to callers, so it holds no path, secret or stack of the gateway."""

    code: ClassVar[str] = "InternalError"
    status: ClassVar[int] = 500
    remedy: ClassVar[str] = "Report this to the operator of the gateway, with the traceId."

    @property
    def message(self) -> str:
        return str(self) or self.code


class CallerError(KernelpoolError):
    status = 400


class InvalidRequest(CallerError):
    code = "InvalidRequest"
    remedy = "Correct the field that the message names."


class InvalidIdentifier(InvalidRequest):
    code = "InvalidSessionIdentifier"
    remedy = (
        "Send ?identifier= with 4 to 128 of the characters A-Z a-z 0-9 "
        "and _ | } { [ ] : \" ; ' < > ? / . , @ # $ % ^ & * ( ) - + = ! ~ `."
    )


class InvalidIdentifierLength(InvalidIdentifier):
    code = "InvalidLengthOfSessionIdentifier"


class InvalidPath(InvalidRequest):
    code = "FilePathInvalid"
    remedy = "Name a path inside /mnt/data, without '..' and control characters."


class InvalidFileName(InvalidPath):
    code = "FileNameInvalid"


class InvalidApiVersion(InvalidRequest):
    code = "InvalidApiVersion"
    remedy = "Send ?api-version=2025-10-02-preview (or any earlier one)."


class MalformedHead(InvalidRequest):
    code = "MalformedRequest"
    remedy = "Send the request as RFC 9112 has it; the message says what is ambiguous."


class TargetTooLong(MalformedHead):
    code = "UriTooLong"
    status = 414
    remedy = "Send less in the URL; the message names the limit."


class HeadersTooLarge(MalformedHead):
    code = "RequestHeadersTooLarge"
    status = 431
    remedy = "Send fewer or shorter headers; the message names the limit."


class InvalidNotebook(InvalidRequest):
    code = "InvalidNotebook"
    remedy = "Send a notebook that nbformat's `validate` passes; the message says what is wrong, and where."


class UnsupportedMediaType(InvalidRequest):
    code = "UnsupportedMediaType"
    status = 415
    remedy = "Send the body as the message says, in UTF-8 and without Content-Encoding."


class Unauthorized(CallerError):
    """`challenge` becomes the WWW-Authenticate header, in the words of RFC 6750."""

    code = "Unauthorized"
    status = 401
    remedy = (
        "Send the header 'Authorization: Bearer <token>' with the token that `kernelpool serve` printed at its first "
        "start, an API key that has neither expired nor been revoked, or a token of an issuer that the operator trusts."
    )
    challenge: ClassVar[str] = "Bearer"


class InvalidToken(Unauthorized):
    """Always the same words: what is wrong with a credential helps only who should not have it."""

    challenge = 'Bearer error="invalid_token"'

    def __init__(self) -> None:
        super().__init__("The bearer token is not valid.")


class Forbidden(CallerError):
    code = "Forbidden"
    status = 403
    remedy = "Ask the operator for a key or a role that may do this."
    challenge: ClassVar[str] = 'Bearer error="insufficient_scope"'


class OriginNotAllowed(Forbidden):
    code = "OriginNotAllowed"
    remedy = "Ask the operator to add the page's origin to allowed_origins; behind a TLS proxy, trusted_proxies."


class Misdirected(CallerError):
    code = "MisdirectedRequest"
    status = 421
    remedy = "Use a host name that the gateway knows, or ask the operator to add this one to allowed_hosts."


class McpServerNotEnabled(CallerError):
    code = "SessionMCPServerNotEnabled"
    remedy = "Ask the operator to set `mcp.enabled` of the pool (isMcpServerEnabled, in Azure's words)."


class NotFound(CallerError):
    code = "NotFound"
    status = 404
    remedy = "Check the URL."


class PoolNotFound(NotFound):
    code = "SessionPoolNotFound"
    remedy = "Check the pool's name in the URL."


class SessionNotFound(NotFound):
    code = "NoSessionFoundError"
    remedy = "Any execution or upload with this identifier makes the session anew."


class McpSessionNotFound(NotFound):
    code = "McpSessionNotFound"
    remedy = "Send `initialize`, whose answer names a new one."


class ExecutionNotFound(NotFound):
    code = "ExecutionNotFound"
    remedy = "Poll the session that the execution was submitted to, while the session lives."


class KernelNotFound(NotFound):
    code = "KernelNotFound"
    remedy = "List the kernels: one whose session has ended is not there any more, and neither are its variables."


class JupyterSessionNotFound(NotFound):
    code = "JupyterSessionNotFound"
    remedy = "List the sessions: one ends with its kernel."


class FileNotFound(NotFound):
    code = "FileNotFound"
    remedy = "List the files of the session to see what is there."


class Conflict(CallerError):
    code = "Conflict"
    status = 409
    remedy = "Do as the message says."


class PayloadTooLarge(CallerError):
    code = "PayloadTooLarge"
    status = 413
    remedy = "Send less at once; the message names the limit."


class RangeNotSatisfiable(CallerError):
    code = "RangeNotSatisfiable"
    status = 416
    remedy = "Ask for bytes that the file has; the message names its size."


class WorkspaceFull(CallerError):
    code = "WorkspaceFull"
    status = 507
    remedy = "Delete files in /mnt/data, or ask the operator for a pool with a larger workspace."


class TryLater(KernelpoolError):
    """`retry_after` is in seconds and becomes the Retry-After header."""

    status = 503
    retry_after: float = 1.0
    remedy = "Send the request again after the seconds in Retry-After."


class SessionLimitReached(TryLater):
    code = "SessionsCountExceedsLimit"
    status = 429
    remedy = "Stop a session that is no longer needed, or try again when one has passed its cooldown."


class QuotaExceeded(TryLater):
    code = "QuotaExceeded"
    status = 429
    remedy = "Wait for the seconds in Retry-After, or ask the operator for a larger quota; the message names it."

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ExecutionQueueFull(TryLater):
    code = "ExecutionQueueFull"
    status = 429
    remedy = "Wait for an execution of this session to finish."


class ContainerBusy(TryLater):
    code = "ContainerBusy"
    status = 429
    remedy = "Wait for a request to this session's container to end, or close a WebSocket."


class AllocationTimeout(TryLater):
    code = "AllocationTimeout"


class GatewayDraining(TryLater):
    code = "GatewayDraining"


class TooManyConnections(TryLater):
    code = "TooManyConnections"


class BackendUnavailable(TryLater):
    code = "BackendUnavailable"


class SandboxUnreachable(TryLater):
    """The connection broke, the sandbox lives: an execution that was asked for may be running."""

    code = "SandboxUnreachable"
    remedy = "Send the request again, an execution with the same id: it never runs twice."


class Fault(KernelpoolError):
    status = 500


class SandboxLost(Fault):
    """The sandbox died or fell silent; its variables and files are gone."""

    code = "SandboxLost"
    status = 502
    remedy = "Send the request again: the identifier gets a new, empty session."


class AgentFault(Fault):
    """The agent answered with something that its contract does not allow: it may have been taken over."""

    code = "AgentFault"
    status = 502
    remedy = "Stop the session and start again with a new one."


class ContainerFault(Fault):
    """A custom container did not answer as HTTP demands. The session goes on."""

    code = "ContainerFault"
    status = 502
    remedy = (
        "Mend the application in the pool's image; `.management/stopSession` gives the identifier a fresh container."
    )


class ContainerUnreachable(ContainerFault):
    code = "ContainerUnreachable"
    remedy = (
        "Try again if it is starting something; see that the application listens on the pool's target_port and lives, "
        "and give the pool a liveness probe, so that a container that hangs is replaced."
    )


class ContainerSilent(ContainerFault):
    code = "ContainerSilent"
    status = 504
    remedy = "Let the application answer sooner, or piece by piece, or give the pool more `container.silence`."


class McpNotInstalled(Fault):
    code = "McpNotInstalled"
    status = 501
    remedy = "Install the gateway with its extra, pip install 'kernelpool[mcp]', and start it again."


class StartFailed(Fault):
    """A sandbox did not come up. Nothing of it is left behind."""

    code = "SandboxStartFailed"
    status = 503
    remedy = "Run `kernelpool doctor` on the gateway's machine."


class StateDirectoryInUse(StartFailed):
    """Another gateway has it."""


class PrepareFailed(Fault):
    """A runtime's file system could not be made. Nothing half-made is left behind. What the tools said is its note, for
    the operator: shown by `serve`, and in the log."""

    code = "RuntimePrepareFailed"
    status = 503
    remedy = "Mend what the message names, then run `kernelpool serve` again."
