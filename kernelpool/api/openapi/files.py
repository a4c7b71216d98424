"""The files of ACA's data plane, for the OpenAPI document. `resources` makes what is described here."""

from __future__ import annotations

from kernelpool.api.openapi.operation import (
    POOL,
    Json,
    Operation,
    Surface,
    answer,
    array_of,
    at_both_bases,
    header,
    json_answer,
    link,
    object_of,
    parameter,
    ref,
    text,
)
from kernelpool.api.openapi.shared import FINDS, SAME_SESSION, SESSION_HEADERS, USES, VERSION_HEADERS, also

_TIME = text(format="date-time")
_SIZE = {"type": "integer", "minimum": 0}

SCHEMAS: dict[str, Json] = {
    "File": object_of(
        {
            "name": text("Without its directory."),
            "type": {"enum": ["file", "directory"]},
            "contentType": text("By the name alone. Directories have none."),
            "sizeInBytes": _SIZE,
            "lastModifiedAt": _TIME,
            "directory": text("Relative to `path`, `.` for that path itself."),
        },
        optional=["contentType"],
    ),
    "FileList": object_of({"value": array_of(ref("File"))}),
    "LegacyFileList": object_of(
        {
            "value": array_of(
                object_of({"properties": object_of({"filename": text(), "size": _SIZE, "lastModifiedTime": _TIME})})
            )
        },
        description="Without directories.",
    ),
}

_UPLOAD: Json = {
    "required": True,
    "description": "Parts named `file` with a file name; several are several files.",
    "content": {
        "multipart/form-data": {
            "schema": object_of({"file": {"type": "string", "format": "binary", "description": "Its name counts."}})
        }
    },
}
_RAW: Json = {"description": "The file's bytes; without any it is empty.", "content": {"application/octet-stream": {}}}
_PARAMETERS = also("path")
_EITHER_LIST = {"anyOf": [ref("FileList"), ref("LegacyFileList")]}
_EITHER = {"anyOf": [ref("File"), ref("LegacyFileList")]}

_DOWNLOAD_HEADERS = {
    **VERSION_HEADERS,
    "Accept-Ranges": header("`bytes`", always=True),
    "Content-Disposition": header("`attachment`, with the file's name.", always=True),
}
_DOWNLOAD: Json = {"application/octet-stream": {}}
_TYPED: Json = {"*/*": {}}

_LINKS = {
    operation: link(operation, **SAME_SESSION, name="$response.body#/name", path="$request.query.path")
    for operation in ("getFile", "downloadFile", "deleteFile")
}


def _upload(id: str, summary: str, answers: dict[int, Json]) -> Operation:
    return Operation(id, summary, answers, parameters=_PARAMETERS, body=_UPLOAD, errors=USES)


def _look(id: str, summary: str) -> Operation:
    answers = {200: json_answer("What is known of it.", _EITHER, SESSION_HEADERS)}
    return Operation(id, summary, answers, parameters=_PARAMETERS, errors=FINDS)


def _delete(id: str, summary: str) -> Operation:
    done = object_of({"message": text()})
    answers = {
        200: json_answer("Deleted, said in the old shape.", done, VERSION_HEADERS),
        204: answer("Deleted.", headers=VERSION_HEADERS),
    }
    return Operation(id, summary, answers, parameters=_PARAMETERS, errors=FINDS)


def _download(id: str, summary: str, content: Json) -> Operation:
    part = {**_DOWNLOAD_HEADERS, "Content-Range": header("Which bytes of how many.", always=True)}
    answers = {
        200: answer("The file.", content, _DOWNLOAD_HEADERS),
        206: answer("The part of it that `Range` named.", content, part),
    }
    return Operation(id, summary, answers, parameters=also("path", "range"), errors=(409, 416, *FINDS))


def _measure(id: str, summary: str, content: Json) -> Operation:
    answers = {200: answer("The headers that GET would have.", content, _DOWNLOAD_HEADERS)}
    return Operation(id, summary, answers, parameters=_PARAMETERS, errors=FINDS)


def _put(id: str) -> Operation:
    answers = {200: json_answer("What is known of it.", ref("File"), SESSION_HEADERS)}
    return Operation(id, "Make the body a file", answers, parameters=_PARAMETERS, body=_RAW, errors=USES)


SURFACE = Surface(
    "Files",
    "The session's files. Names are relative to `/mnt/data`; in the sandbox it is the working directory.",
    at_both_bases(
        {
            f"GET {POOL}/files": Operation(
                "listFiles",
                "List files",
                {200: json_answer("At most 20,000 entries.", _EITHER_LIST, SESSION_HEADERS)},
                parameters=[*_PARAMETERS, parameter("recursive", {"type": "boolean"}, "With all directories below.")],
                errors=USES,
            ),
            f"POST {POOL}/files": _upload(
                "uploadFiles",
                "Upload files",
                {
                    200: answer(
                        "The file, or a list when there were several.",
                        {"application/json": {"schema": {"anyOf": [ref("File"), ref("FileList")]}}},
                        SESSION_HEADERS,
                        _LINKS,
                    )
                },
            ),
            f"GET {POOL}/files/{{name}}": _look("getFile", "What is known of a file"),
            f"DELETE {POOL}/files/{{name}}": _delete("deleteFile", "Delete a file, or a directory with all in it"),
            f"GET {POOL}/files/{{name}}/content": _download("downloadFile", "A file's bytes", _DOWNLOAD),
            f"HEAD {POOL}/files/{{name}}/content": _measure("measureFile", "A file's size", _DOWNLOAD),
            f"PUT {POOL}/files/{{name}}/content": _put("putFile"),
            f"GET {POOL}/files/content/{{name}}": _download("downloadTyped", "A file's bytes, by the old name", _TYPED),
            f"HEAD {POOL}/files/content/{{name}}": _measure("measureTyped", "A file's size, by the old name", _TYPED),
            f"PUT {POOL}/files/content/{{name}}": _put("putTyped"),
            f"POST {POOL}/files/upload": _upload(
                "uploadLegacy",
                "Upload files, by the old name",
                {200: json_answer("All of them.", ref("LegacyFileList"), SESSION_HEADERS)},
            ),
            f"GET {POOL}/files/upload": _look("getFileUpload", "A file that is called upload"),
            f"DELETE {POOL}/files/upload": _delete("deleteFileUpload", "Delete a file that is called upload"),
            f"POST {POOL}/python/uploadFile": _upload(
                "uploadPython",
                "Upload files, by the oldest name",
                {200: json_answer("All of them.", ref("LegacyFileList"), SESSION_HEADERS)},
            ),
            f"GET {POOL}/python/uploadFile": _look("getFilePython", "A file that is called upload"),
            f"DELETE {POOL}/python/uploadFile": _delete("deleteFilePython", "Delete a file that is called upload"),
        }
    ),
    SCHEMAS,
)
