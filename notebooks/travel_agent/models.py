"""Who answers: any endpoint that speaks OpenAI's chat completions, or stored answers, where none is configured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

Message = dict[str, Any]
"""As in OpenAI's API: `role`, `content`, and `tool_calls` where a model wants tools."""

STORED = Path(__file__).parents[1] / "data" / "answers.json"
SECONDS = 120.0


class Model(Protocol):
    def answer(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Message:
        """The next message of the conversation."""


class Endpoint:
    """`<url>/chat/completions` of OpenAI, Azure, vLLM, Ollama, llama.cpp …"""

    def __init__(self, url: str, key: str, model: str) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._key = key
        self._model = model

    def answer(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Message:
        body = {"model": self._model, "messages": list(messages), **({"tools": list(tools)} if tools else {})}
        headers = {"Authorization": f"Bearer {self._key}"}
        response = httpx.post(self._url, json=body, headers=headers, timeout=SECONDS)
        response.raise_for_status()
        message: Message = response.json()["choices"][0]["message"]
        return message


class Recorded:
    """Answers from a file, in their order, for the one conversation that they were written for."""

    def __init__(self, file: Path = STORED) -> None:
        self._answers = iter(json.loads(file.read_text())["answers"])

    def answer(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Message:
        """Raises `RuntimeError` when the conversation has taken another turn than the stored one."""
        stored = next(self._answers, None)
        if stored is None:
            raise RuntimeError(
                "there are no more stored answers; set OPENAI_BASE_URL for a model that answers anything"
            )
        if stored["asked_by"] != messages[-1]["role"] or stored["with_tools"] != bool(tools):
            raise RuntimeError("the stored answers are for another conversation; set OPENAI_BASE_URL")
        message: Message = stored["message"]
        return message


def configured_model(environment: Mapping[str, str] = os.environ) -> Model:
    """By OPENAI_BASE_URL (or OPENAI_API_KEY alone, for OpenAI itself) and OPENAI_MODEL; else the stored answers."""
    url, key = environment.get("OPENAI_BASE_URL"), environment.get("OPENAI_API_KEY")
    if not url and not key:
        return Recorded()
    return Endpoint(url or "https://api.openai.com/v1", key or "none", environment.get("OPENAI_MODEL", "gpt-4o"))
