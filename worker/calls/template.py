"""Calls as Qwen 2.5's chat template has them: functions stand in the system message, a call is written between marks.

The weights were trained on this wording (`chat_template` in Qwen2.5's tokenizer_config.json).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from agent.wire import ContextItem, ToolUse
from models.networks.prompts import CALL, CALL_END
from worker.calls.caller import Calling
from worker.parts import Called, RequestError

_BEFORE = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_AFTER = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


class _Written(msgspec.Struct):
    name: str
    arguments: dict[str, object] = {}


@dataclass(frozen=True, slots=True)
class TemplateCaller:
    """`marked`: its tokenizer has the mark, without which nobody could tell what is not to be spoken."""

    marked: bool = True

    @property
    def names(self) -> tuple[str, ...] | None:
        return None if self.marked else ()

    def introduction(self, tools: ToolUse) -> str:
        if not tools.definitions or not self.marked:
            return ""
        lines = (f'{{"type": "function", "function": {definition}}}' for definition in tools.definitions)
        return _BEFORE + "\n".join(lines) + _AFTER

    def remembered(self, items: tuple[ContextItem, ...]) -> tuple[ContextItem, ...]:
        return items

    def beginnings(self, items: tuple[ContextItem, ...]) -> tuple[str, ...]:
        return ()

    def calling(self, items: tuple[ContextItem, ...], tools: ToolUse) -> Calling | None:
        if not tools.definitions:
            return None
        if not self.marked:
            if tools.required:
                raise RequestError(
                    "no_tool_call", "this model's tokenizer has no marks for calls; it calls no function"
                )
            return None
        known = {defined_name(definition) for definition in tools.definitions}
        begun = ""
        if tools.required:
            begun = f"{CALL}\n"
            if tools.only:
                begun += f'{{"name": {msgspec.json.encode(tools.only).decode()}, "arguments": '

        def read(text: str) -> list[Called]:
            made = written_calls(begun + text, known)
            if tools.required and not made:
                raise RequestError("no_tool_call", "the model wrote no call although it had to; ask again")
            return made if tools.several else made[:1]

        return Calling(read, silent=tools.required, begun=begun, mark=CALL)


def defined_name(definition: str) -> str:
    return msgspec.json.decode(definition, type=_Written).name


def written_calls(text: str, known: set[str]) -> list[Called]:
    """The calls in what a model wrote. Raises RequestError for one that is no JSON or of no function there is."""
    calls = []
    for part in text.split(CALL)[1:]:
        body = part.partition(CALL_END)[0].strip()
        try:
            written = msgspec.json.decode(body, type=_Written)
        except msgspec.DecodeError as error:
            raise RequestError("bad_tool_call", f"the model wrote a call that is none ({error}); ask again") from None
        if written.name not in known:
            raise RequestError(
                "bad_tool_call", f"the model called {written.name[:64]!r}, which is not defined; ask again"
            )
        calls.append(Called(written.name, msgspec.json.encode(written.arguments).decode()))
    return calls
