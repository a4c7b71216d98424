"""What the tools take. Fields are flat and none may be null, though null is read: some models cannot do otherwise."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kernelpool.api.mcp.transcript import MAX_TEXT, MOST_TEXT

Session = Annotated[
    str,
    Field(
        description="The session to work in, 4 to 128 characters; a new one is made when there is none of that name. "
        "Leave it out to stay in your own session."
    ),
]
Environment = Annotated[str, Field(min_length=1, description="The environmentId that a launch tool returned.")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Characters = Annotated[int, Field(ge=200, le=MOST_TEXT, description="How much text to return at most.")]
Execution = Annotated[str, Field(description="The executionId that a run returned.")]


class Arguments(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return (
            {name: value for name, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class Nothing(Arguments):
    pass


class InSession(Arguments):
    session: Session = ""


class _Running(InSession):
    timeout: Seconds = Field(0, description="Seconds that it may run; 0 is the pool's default.")
    background: bool = Field(
        False, description="Return at once with an executionId while it runs on; read_output waits for its output."
    )
    max_characters: Characters = MAX_TEXT


class RunCode(_Running):
    code: str = Field(description="The code. The value of its last expression is shown, as in a notebook cell.")


class RunCommand(_Running):
    command: str = Field(description="A command line for bash. It runs in /mnt/data, in a shell of its own.")


class ReadOutput(InSession):
    execution: Execution
    offset: int = Field(0, ge=0, description="The character of the output to begin with.")
    max_characters: Characters = MAX_TEXT
    wait: float = Field(0, ge=0, le=600, description="Seconds to wait for its end, should it still be running.")


class CancelExecution(InSession):
    execution: Execution


class ListFiles(InSession):
    path: str = Field("", description="A directory below /mnt/data; empty is /mnt/data itself.")
    recursive: bool = Field(False, description="Also list what is in directories below it.")


class ReadFile(InSession):
    path: str = Field(description="A file below /mnt/data.")
    offset: int = Field(0, ge=0, description="The byte to begin with.")
    max_characters: Characters = MAX_TEXT


class WriteFile(InSession):
    path: str = Field(description="A file below /mnt/data. What was there before is replaced.")
    text: str = Field("", description="What to write, as text in UTF-8.")
    base64: str = Field("", description="What to write, as base64, in place of text.")

    def content(self) -> bytes:
        return base64.b64decode(self.base64, validate=True) if self.base64 else self.text.encode()

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.text and self.base64:
            raise ValueError("give text or base64, not both")
        try:
            self.content()
        except binascii.Error as error:
            raise ValueError(f"base64 is not valid: {error}") from None
        except UnicodeEncodeError:
            raise ValueError("text is not valid Unicode") from None
        return self


class ExportNotebook(InSession):
    path: str = Field("notebook.ipynb", description="The file below /mnt/data to write it to.")


class RunPythonInEnvironment(Arguments):
    """ACA's."""

    environment: Environment = Field(alias="environmentId")
    code: str = Field(alias="pythonCode", description="The Python code to run.")


def _as_words(value: list[str]) -> list[str]:
    if any("\0" in word for word in value):
        raise ValueError("no argument may hold a NUL")
    return value


Words = Annotated[list[str], AfterValidator(_as_words)]


class RunShellInEnvironment(Arguments):
    """ACA's. One of the two; an older lab of theirs calls the second one `command`."""

    environment: Environment = Field(alias="environmentId")
    line: str = Field("", alias="shellCommand", description="A command line for bash.")
    words: Words = Field(
        default_factory=list, alias="execCommandAndArgs", description="A program and its arguments, without a shell."
    )

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("command"), list):
            return {"execCommandAndArgs": values["command"], **values}
        return values

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if bool(self.line) == bool(self.words):
            raise ValueError("give either shellCommand or execCommandAndArgs")
        return self
