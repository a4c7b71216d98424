"""The data plane of Azure Container Apps sessions: all its routes in one table.

A base path is `/pools/{pool}` or ACA's own `/subscriptions/…/resourceGroups/…/sessionPools/{pool}`, in any case.
Every route answers on every api-version.
"""

from __future__ import annotations

from typing import Any

from kernelpool.api import aca_executions as executions
from kernelpool.api import aca_files as files
from kernelpool.api import aca_sessions as sessions
from kernelpool.api import notebooks
from kernelpool.api.aca_handler import POOL_PATH, AcaHandler
from kernelpool.api.base import Collaborators
from kernelpool.api.dialects import Shape


def routes(collaborators: Collaborators) -> list[Any]:
    """The whole surface. The first match counts: what is more special stands above."""
    table: list[tuple[str, type[AcaHandler], dict[str, Any]]] = [
        ("/code/execute", executions.ExecuteHandler, {"shape": Shape.WRAPPED}),
        ("/python/execute", executions.ExecuteHandler, {"shape": Shape.FLAT}),
        ("/executions", executions.ExecutionsHandler, {"shape": Shape.MODERN}),
        ("/executions/(?P<execution>[^/]+)", executions.ExecutionHandler, {}),
        ("/executions/(?P<execution>[^/]+)/cancel", executions.CancelHandler, {}),
        ("/files/upload", files.UploadHandler, {}),
        ("/python/uploadFile", files.UploadHandler, {}),
        ("/files", files.FilesHandler, {}),
        ("/files/content/(?P<name>.+)", files.ContentHandler, {"typed": True}),
        ("/files/(?P<name>.+)/content", files.ContentHandler, {"typed": False}),
        ("/files/(?P<name>.+)", files.FileHandler, {}),
        ("/notebook", notebooks.NotebookHandler, {}),
        ("/session", sessions.SessionHandler, {}),
        ("/listSessions", sessions.ListHandler, {}),
        ("/metadata", sessions.MetadataHandler, {}),
        (r"/\.management/getSession", sessions.ManagementGetHandler, {}),
        (r"/\.management/listSessions", sessions.ManagementListHandler, {}),
        (r"/\.management/stopSession", sessions.ManagementStopHandler, {}),
    ]
    return [
        (POOL_PATH + path, handler, {"collaborators": collaborators, **arguments}) for path, handler, arguments in table
    ]
