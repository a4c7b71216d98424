"""All tools, as a table: what each is called, what it says of itself to a model, and the function that does it.

Names with `Environment` in them are ACA's, for agents that were written for its MCP server; the others say more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from kernelpool.api.mcp import arguments as take
from kernelpool.api.mcp import files, notebook, running
from kernelpool.api.mcp.call import Answer, Call


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    title: str
    description: str
    arguments: type[BaseModel]
    run: Callable[[Call, Any], Awaitable[Answer]]
    answer: type[BaseModel] | None = None
    """None where there is nothing to compute with."""
    reads_only: bool = False
    destroys: bool = False
    repeats: bool = False
    """Called twice it does no more than once."""

    @property
    def input_schema(self) -> dict[str, Any]:
        return _schema(self.arguments)

    @property
    def output_schema(self) -> dict[str, Any] | None:
        return _schema(self.answer) if self.answer else None


@cache
def tools_of(language: str) -> Mapping[str, Tool]:
    """Those of a pool, by name."""
    return {tool.name: tool for tool in (*_run(language), *_LOOK, *_FILES, *_SESSION, *_aca(language))}


def _run(language: str) -> tuple[Tool, ...]:
    name = shown(language)
    return (
        Tool(
            "run_code",
            f"Run {name} code",
            f"Run {name} code in an isolated sandbox and return what it prints, shows and evaluates to. Variables, "
            "imports and files in /mnt/data stay for the next call. Images that it displays are returned as images. "
            "Long output keeps its head and tail; read_output reads the rest. For code that may take minutes, set "
            "background and poll with read_output.",
            take.RunCode,
            running.run_code,
            running.Run,
            destroys=True,
        ),
        Tool(
            "run_command",
            "Run a shell command",
            "Run a command line with bash in the same sandbox and return its output and exit code. It runs beside the "
            "code, in a shell of its own: files stay, its variables and directory do not. Processes that it leaves in "
            "the background live on.",
            take.RunCommand,
            running.run_command,
            running.Run,
            destroys=True,
        ),
    )


_LOOK = (
    Tool(
        "read_output",
        "Read a run's output",
        "Read the output of an earlier run, by its executionId: the part that was left out (offset), or that of a "
        "run in the background (wait).",
        take.ReadOutput,
        running.read_output,
        running.Run,
        reads_only=True,
        repeats=True,
    ),
    Tool(
        "cancel_execution",
        "Cancel a run",
        "Stop a run by its executionId. What it has printed so far is returned, and variables stay.",
        take.CancelExecution,
        running.cancel_execution,
        running.Run,
        destroys=True,
        repeats=True,
    ),
)

_FILES = (
    Tool(
        "list_files",
        "List files",
        "List the files of the sandbox in /mnt/data.",
        take.ListFiles,
        files.list_files,
        files.Listing,
        reads_only=True,
        repeats=True,
    ),
    Tool(
        "read_file",
        "Read a file",
        "Read a text file of the sandbox, or look at an image (png, jpeg, webp, gif).",
        take.ReadFile,
        files.read_file,
        reads_only=True,
        repeats=True,
    ),
    Tool(
        "write_file",
        "Write a file",
        "Write a file of the sandbox, from text or base64.",
        take.WriteFile,
        files.write_file,
        files.Written,
        destroys=True,
        repeats=True,
    ),
)

_SESSION = (
    Tool(
        "export_notebook",
        "Export as notebook",
        "Write everything that was run in the session, with its output, to a Jupyter notebook in /mnt/data.",
        take.ExportNotebook,
        notebook.export_notebook,
        notebook.Exported,
        repeats=True,
    ),
    Tool(
        "reset_session",
        "Reset the sandbox",
        "Throw the sandbox away, with all variables and files. The next call gets a fresh one.",
        take.InSession,
        running.reset_session,
        running.Reset,
        destroys=True,
        repeats=True,
    ),
)


def _aca(language: str) -> tuple[Tool, ...]:
    launched = "and return its environmentId, for"
    shells = tuple(
        Tool(
            name,
            "Launch a shell environment",
            f"Launch a fresh environment {launched} runShellCommandInRemoteEnvironment. For one that is kept for you, "
            "use run_command.",
            take.Nothing,
            running.launch,
            running.Launched,
        )
        for name in ("launchShell", "launchShellEnvironment")
    )
    run_shell = Tool(
        "runShellCommandInRemoteEnvironment",
        "Run a command in an environment",
        "Run a command line with bash, or a program with its arguments, in the environment of this environmentId, "
        "which keeps files.",
        take.RunShellInEnvironment,
        running.run_shell_in_environment,
        running.EnvironmentRun,
        destroys=True,
    )
    return (*shells, run_shell, *(_python(launched) if language == "python" else ()))


def _python(launched: str) -> tuple[Tool, ...]:
    return (
        Tool(
            "launchPythonEnvironment",
            "Launch a Python environment",
            f"Launch a fresh Python environment {launched} runPythonCodeInRemoteEnvironment. For one that is kept for "
            "you, use run_code.",
            take.Nothing,
            running.launch,
            running.Launched,
        ),
        Tool(
            "runPythonCodeInRemoteEnvironment",
            "Run Python in an environment",
            "Run Python code in the environment of this environmentId, which keeps variables and files.",
            take.RunPythonInEnvironment,
            running.run_python_in_environment,
            running.EnvironmentRun,
            destroys=True,
        ),
    )


_NAMES = {"javascript": "JavaScript", "typescript": "TypeScript"}
"""Of languages that are not written as other words are."""


def shown(language: str) -> str:
    return _NAMES.get(language, language.capitalize())


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Without titles, which say nothing, and flat: no model of ours refers to another but by value."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    flat: dict[str, Any] = _flat(schema, definitions)
    flat.pop("description", None)
    required = flat.get("required", [])
    properties = flat["properties"]
    flat["properties"] = {name: properties[name] for name in sorted(properties, key=lambda name: name not in required)}
    return flat


def _flat(value: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_flat(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _flat(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {
        name: {key: _flat(item, definitions) for key, item in each.items()}
        if name == "properties"
        else _flat(each, definitions)
        for name, each in value.items()
        if name != "title"
    }
