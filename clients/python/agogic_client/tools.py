"""Python functions that the model may call."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

Tool = Callable[..., Any]
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def describe(function: Tool) -> dict[str, Any]:
    """The function as the protocol lists it: its name, its docstring and its parameters."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {
        "type": "function",
        "name": function.__name__,
        "description": inspect.getdoc(function) or "",
        "parameters": {
            "type": "object",
            "properties": {one.name: {"type": _TYPES.get(hints.get(one.name, str), "string")} for one in parameters},
            "required": [one.name for one in parameters if one.default is inspect.Parameter.empty],
        },
    }


async def call_tool(tools: Sequence[Tool], name: str, arguments: str) -> str:
    """What the function says, as JSON unless it is a string; what went wrong, as the model is told it."""
    try:
        function = next((tool for tool in tools if tool.__name__ == name), None)
        if function is None:
            raise LookupError(f"there is no function {name}")
        said = function(**json.loads(arguments or "{}"))
        if inspect.isawaitable(said):
            said = await said
        return said if isinstance(said, str) else json.dumps(said)
    except Exception as error:  # whatever the function of an app throws, the model is told and the call goes on
        return json.dumps({"error": str(error)})
