"""Functions that a client defines for the model to call, and which of them an answer may, must or must not call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.json_object import JsonObject
from agent.protocol.errors import ProtocolError

MAX_TOOLS = 128


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """`parameters` is a JSON Schema of an object."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | UnsetType = UNSET
    parameters: JsonObject | UnsetType = UNSET


class McpTool(msgspec.Struct, frozen=True, tag_field="type", tag="mcp"):
    """Accepted and left out: this server runs no MCP tools."""

    server_label: str | UnsetType = UNSET


class NamedFunction(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    name: str


class NamedMcp(msgspec.Struct, frozen=True, tag_field="type", tag="mcp"):
    server_label: str | UnsetType = UNSET


Tool = FunctionTool | McpTool
Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["auto", "none", "required"] | NamedFunction | NamedMcp


def functions(tools: Sequence[Tool], where: str) -> list[FunctionTool]:
    """Those of the tools that can be called. Raises `ProtocolError` under `where` for definitions that do not fit."""
    found: dict[str, FunctionTool] = {}
    for index, tool in enumerate(tools):
        if isinstance(tool, McpTool):
            continue
        param = f"{where}[{index}]"
        if tool.name in found:
            raise _invalid(f"{param}.name", f"two functions are called {tool.name!r}")
        if isinstance(tool.parameters, dict):
            _check_schema(tool.parameters, f"{param}.parameters")
        found[tool.name] = tool
    return list(found.values())


def _check_schema(schema: JsonObject, param: str) -> None:
    """Of JSON Schema what a call's arguments hang on: that they are an object, and what is in it."""
    if schema.get("type", "object") != "object":
        raise _invalid(f"{param}.type", f"a function's arguments are an 'object', not {repr(schema['type'])[:100]}")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise _invalid(f"{param}.properties", "this is an object of schemas by name")
    for name, inner in properties.items():
        if not isinstance(inner, dict | bool):
            raise _invalid(f"{param}.properties.{name[:64]}", "a schema is an object")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _invalid(f"{param}.required", "this is a list of names")


def check_choice(choice: ToolChoice, tools: Sequence[FunctionTool], where: str) -> None:
    """Raises `ProtocolError` where the choice names what is not there to be called."""
    if isinstance(choice, NamedFunction) and choice.name not in {tool.name for tool in tools}:
        raise _invalid(where, f"no function {choice.name[:64]!r} is defined in 'tools'")
    if isinstance(choice, NamedMcp):
        raise _invalid(where, "this server runs no MCP tools")


def _invalid(param: str, why: str) -> ProtocolError:
    return ProtocolError("invalid_value", f"Invalid value for '{param}': {why}.", param=param)


def definition(tool: FunctionTool) -> str:
    """Its JSON, without the type."""
    plain: JsonObject = msgspec.to_builtins(tool)
    return msgspec.json.encode({key: value for key, value in plain.items() if key != "type"}).decode()
