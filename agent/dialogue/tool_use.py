"""Functions in a conversation: what an answer may call, its calls as events, and the results that come back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.dialogue.conversation import Conversation, FunctionCall, Item
from agent.protocol import server_events as events
from agent.protocol.client_events import ResponseParams
from agent.protocol.errors import ProtocolError
from agent.protocol.items import FunctionCallOutputItem
from agent.protocol.server_events import ServerEvent
from agent.protocol.session_object import SessionSettings
from agent.protocol.tools import FunctionTool, NamedFunction, Tool, ToolChoice, check_choice, definition, functions
from agent.wire import NO_TOOLS, ToolUse

# Over WebRTC a message should stay below 16 KiB; letters may take six bytes as JSON.
_DELTA_CHARACTERS = 2048


def tool_use(params: ResponseParams, settings: SessionSettings) -> ToolUse:
    """What a response may call: what it says itself over what the session says. Raises `ProtocolError`."""
    own = params.tools is not None or params.tool_choice is not None
    tools = _functions(settings.tools) if params.tools is None else functions(params.tools, "response.tools")
    choice = settings.tool_choice if params.tool_choice is None else params.tool_choice
    if own and not (params.tool_choice is None and _is_of(choice, settings.tools)):
        check_choice(choice, tools, "response.tool_choice")
        if params.tool_choice == "required" and not tools:
            why = "Invalid value for 'response.tool_choice': 'required' needs at least one function in 'tools'."
            raise ProtocolError("invalid_value", why, param="response.tool_choice")
    several = settings.parallel_tool_calls if params.parallel_tool_calls is None else params.parallel_tool_calls
    if choice == "none" or not tools:
        return NO_TOOLS
    only = choice.name if isinstance(choice, NamedFunction) and choice.name in {tool.name for tool in tools} else ""
    required = choice == "required" or bool(only)
    return ToolUse(tuple(map(definition, tools)), required, only, several is not False)


def _functions(tools: Iterable[Tool]) -> list[FunctionTool]:
    return [tool for tool in tools if isinstance(tool, FunctionTool)]


def _is_of(choice: ToolChoice, tools: Iterable[Tool]) -> bool:
    """Whether it is the session's choice of one of the session's functions; a response with others leaves it behind."""
    return isinstance(choice, NamedFunction) and choice.name in {tool.name for tool in _functions(tools)}


def name_of_call(conversation: Conversation, item: FunctionCallOutputItem, before: Sequence[Item], param: str) -> str:
    """The function whose call, in the conversation or `before` the result, it answers. Raises `ProtocolError`."""
    there = [earlier for earlier in before if isinstance(earlier, FunctionCall) and earlier.call_id == item.call_id]
    call = there[-1] if there else conversation.call(item.call_id)
    if call is None:
        raise ProtocolError(
            "invalid_tool_call_id",
            f"Tool call ID '{item.call_id[:100]}' not found in conversation.",
            param=f"{param}.call_id",
        )
    return call.name


def call_events(
    response_id: str, index: int, call: FunctionCall, previous_item_id: str | None, *, in_conversation: bool
) -> list[ServerEvent]:
    """A call from its item's appearance to its end; `index` is its place in the response's output."""
    arguments = call.arguments
    call.status, call.arguments = "in_progress", ""
    begun = call.as_dict()
    call.status, call.arguments = "completed", arguments
    done = call.as_dict()
    happened: list[ServerEvent] = [
        events.OutputItemAdded(response_id=response_id, output_index=index, item=begun),
    ]
    if in_conversation:
        happened.append(events.ItemAdded(item=begun, previous_item_id=previous_item_id))
    where = {"response_id": response_id, "item_id": call.id, "call_id": call.call_id}
    for first in range(0, len(arguments), _DELTA_CHARACTERS):
        delta = arguments[first : first + _DELTA_CHARACTERS]
        happened.append(events.ArgumentsDelta(**where, output_index=index, delta=delta))
    happened.append(events.ArgumentsDone(**where, output_index=index, name=call.name, arguments=arguments))
    if in_conversation:
        happened.append(events.ItemDone(item=done, previous_item_id=previous_item_id))
    happened.append(events.OutputItemDone(response_id=response_id, output_index=index, item=done))
    return happened
