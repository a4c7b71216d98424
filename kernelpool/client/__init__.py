"""The Python client of a gateway, blocking and on an event loop.

    from kernelpool.client import Client

    with Client("http://127.0.0.1:8080", token) as client, client.pool("python").session() as session:
        session.files.upload("data.csv")
        result = session.run("import pandas; pandas.read_csv('data.csv').plot()")
        print(result.stdout, result.error, result.images)

Code that raises gives a `Result` with an `error`; exceptions are for what is not the code's doing. `AsyncClient` is the
same with `await`.
"""

from kernelpool.client.aio import AsyncClient, AsyncExecution, AsyncFiles, AsyncPool, AsyncSession
from kernelpool.client.errors import (
    ClientError,
    Conflict,
    ConnectionBroken,
    ExecutionNotFound,
    ExecutionQueueFull,
    FileNotFound,
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PoolNotFound,
    RangeNotSatisfiable,
    SandboxLost,
    ServerFault,
    SessionLimitReached,
    SessionNotFound,
    TryLater,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
    WorkspaceFull,
)
from kernelpool.client.notebooks import CellEvent, CellOutput, CellState, ExecutionInfo, NotebookResult
from kernelpool.client.policy import Retries
from kernelpool.client.profiles import Profile
from kernelpool.client.resources import Metadata, PoolInfo, SessionInfo
from kernelpool.client.results import (
    DisplayUpdate,
    Done,
    Event,
    Failure,
    Image,
    OutputCleared,
    OutputEvent,
    OutputGap,
    Result,
    StateEvent,
    StateLost,
    Truncated,
)
from kernelpool.client.sync import Client, Execution, Files, Pool, Session
from kernelpool.models import (
    DisplayOutput,
    ErrorOutput,
    ExecutionState,
    FileInfo,
    Output,
    ResultOutput,
    StreamOutput,
)

__all__ = [
    "AsyncClient",
    "AsyncExecution",
    "AsyncFiles",
    "AsyncPool",
    "AsyncSession",
    "CellEvent",
    "CellOutput",
    "CellState",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionBroken",
    "DisplayOutput",
    "DisplayUpdate",
    "Done",
    "ErrorOutput",
    "Event",
    "Execution",
    "ExecutionInfo",
    "ExecutionNotFound",
    "ExecutionQueueFull",
    "ExecutionState",
    "Failure",
    "FileInfo",
    "FileNotFound",
    "Files",
    "Forbidden",
    "Image",
    "InvalidRequest",
    "Metadata",
    "NotFound",
    "NotebookResult",
    "Output",
    "OutputCleared",
    "OutputEvent",
    "OutputGap",
    "PayloadTooLarge",
    "Pool",
    "PoolInfo",
    "PoolNotFound",
    "Profile",
    "RangeNotSatisfiable",
    "Result",
    "ResultOutput",
    "Retries",
    "SandboxLost",
    "ServerFault",
    "Session",
    "SessionInfo",
    "SessionLimitReached",
    "SessionNotFound",
    "StateEvent",
    "StateLost",
    "StreamOutput",
    "Truncated",
    "TryLater",
    "Unauthorized",
    "UnexpectedAnswer",
    "Unreachable",
    "WorkspaceFull",
]
