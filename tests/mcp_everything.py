"""The tools, resources and prompts that MCP's conformance suite looks for, in the place of ours: what it then tests is
our HTTP and our exchange of messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

Context = ServerRequestContext[Any, Any]
Content = list[types.ContentBlock]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
IMAGE = types.ImageContent(data=PNG, mime_type="image/png")
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}


def text(words: str) -> types.TextContent:
    return types.TextContent(text=words)


def embedded(uri: str) -> types.EmbeddedResource:
    words = "This is an embedded resource content."
    return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, mime_type="text/plain", text=words))


async def log(context: Context) -> Content:
    for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await context.session.send_log_message("info", words, related_request_id=context.request_id)
        await asyncio.sleep(0.05)
    return [text("done")]


async def progress(context: Context) -> Content:
    for percent in (0, 50, 100):
        await context.session.report_progress(percent, 100, f"Completed step {percent} of 100")
        await asyncio.sleep(0.05)
    return [text("done")]


def showing(*content: types.ContentBlock) -> Callable[[Context], Awaitable[Content]]:
    async def show(context: Context) -> Content:
        return list(content)

    return show


TOOLS: dict[str, Callable[[Context], Awaitable[Content]]] = {
    "test_simple_text": showing(text("This is a simple text response for testing.")),
    "test_image_content": showing(IMAGE),
    "test_audio_content": showing(types.AudioContent(data=WAV, mime_type="audio/wav")),
    "test_embedded_resource": showing(embedded("test://embedded-resource")),
    "test_multiple_content_types": showing(
        text("Multiple content types test:"), IMAGE, embedded("test://mixed-content-resource")
    ),
    "test_tool_with_logging": log,
    "test_tool_with_progress": progress,
    "test_error_handling": showing(text("This tool intentionally returns an error for testing")),
}
PROMPTS = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
}


async def list_tools(context: Context, params: Any) -> types.ListToolsResult:
    tools = [types.Tool(name=name, description=name, input_schema={"type": "object"}) for name in TOOLS]
    return types.ListToolsResult(
        tools=[*tools, types.Tool(name="json_schema_2020_12_tool", description="x", input_schema=SCHEMA)]
    )


async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    if params.name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    content = await TOOLS[params.name](context)
    return types.CallToolResult(content=content, is_error=params.name == "test_error_handling")


async def list_resources(context: Context, params: Any) -> types.ListResourcesResult:
    uris = ("test://static-text", "test://static-binary", "test://watched-resource")
    return types.ListResourcesResult(resources=[types.Resource(uri=uri, name=uri, description="x") for uri in uris])


async def list_templates(context: Context, params: Any) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(name="x", uri_template="test://template/{id}/data")
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = str(params.uri)
    content: types.TextResourceContents | types.BlobResourceContents
    if uri == "test://static-binary":
        content = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
    elif uri.startswith("test://template/"):
        id = uri.split("/")[3]
        words = json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})
        content = types.TextResourceContents(uri=uri, mime_type="application/json", text=words)
    else:
        words = "This is the content of the static text resource."
        content = types.TextResourceContents(uri=uri, mime_type="text/plain", text=words)
    return types.ReadResourceResult(contents=[content])


async def list_prompts(context: Context, params: Any) -> types.ListPromptsResult:
    arguments = {
        name: [types.PromptArgument(name=each, description="x", required=True) for each in names]
        for name, names in PROMPTS.items()
    }
    return types.ListPromptsResult(
        prompts=[types.Prompt(name=name, description="x", arguments=each) for name, each in arguments.items()]
    )


async def get_prompt(context: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    given = params.arguments or {}
    said: dict[str, Content] = {
        "test_simple_prompt": [text("This is a simple prompt for testing.")],
        "test_prompt_with_arguments": [
            text(f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'")
        ],
        "test_prompt_with_embedded_resource": [embedded(given.get("resourceUri", "test://x")), text("Process it.")],
        "test_prompt_with_image": [IMAGE, text("Please analyze the image above.")],
    }
    messages = [types.PromptMessage(role="user", content=content) for content in said[params.name]]
    return types.GetPromptResult(messages=messages)


async def complete(context: Context, params: Any) -> types.CompleteResult:
    return types.CompleteResult(completion=types.Completion(values=["paris", "park"], total=2, has_more=False))


async def nothing(context: Context, params: Any) -> types.EmptyResult:
    return types.EmptyResult()


def make_everything(language: str) -> Server[Any]:
    """In the place of `kernelpool.api.mcp.server.make_server`."""
    server: Server[Any] = Server(
        "everything",
        version="1",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=nothing,
        on_unsubscribe_resource=nothing,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
    )
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, nothing)
    return server
