"""What of what a client asked for has no effect with this model, in sentences for the client's author."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from agent.dialogue.response import ResponsePlan
from agent.echo.canceller import MISSING, is_installed
from agent.protocol.session_object import SessionSettings
from agent.protocol.tools import FunctionTool, NamedFunction
from agent.wire import Abilities

_NO_INSTRUCTIONS = "instructions have no effect: this model answers as it was trained"
IMAGES = "images have no effect: this model listens and reads, it does not see"
# The last line, because some frameworks put the session's instructions before those of one answer.
_SAYING = re.compile(
    r"\W*(?:please\s+)?(?:say|speak|read|repeat|announce|respond with|answer with|reply with)\b[^:\"“”']{0,80}?"
    r"(?::\s*[\"“']?|\s[\"“'])(?P<text>[^\"“”]{1,500}?)[\"”']?\s*\.?\s*",
    re.IGNORECASE,
)


def on_settings(settings: SessionSettings, abilities: Abilities) -> list[str]:
    """For `session.created` and `session.updated`."""
    notes = [_NO_INSTRUCTIONS] if settings.instructions and not abilities.instructable else []
    names = [tool.name for tool in settings.tools if isinstance(tool, FunctionTool)]
    notes += _on_tools(names, abilities)
    choice = settings.tool_choice
    if choice == "required" or isinstance(choice, NamedFunction):
        if not names:
            notes.append("tool_choice has no effect yet: no function is defined")
        elif abilities.calls is not None:
            notes.append(_ON_CHOICE)
    if settings.x_agogic.echo_cancellation == "on" and not is_installed():
        notes.append(MISSING)
    return notes


def on_response(plan: ResponsePlan, abilities: Abilities, names: Sequence[str]) -> list[str]:
    """For `response.created` and `response.done`; `names` are the functions that only this response defines."""
    notes = [_NO_INSTRUCTIONS] if plan.instructed and not plan.say and not abilities.instructable else []
    return notes + _on_tools(names, abilities)


_ON_CHOICE = "a response that must call a function and has nothing to call it with ends as 'failed': no_tool_call"


def _on_tools(names: Sequence[str], abilities: Abilities) -> list[str]:
    if abilities.calls is None:
        return []
    never = [name for name in names if name not in abilities.calls]
    if not never:
        return []
    known = ", ".join(abilities.calls) or "no function"
    return [f"{', '.join(never)}: never called; this model calls {known}"]


def with_text_to_say(plan: ResponsePlan, abilities: Abilities) -> ResponsePlan:
    """A response whose own instructions ask for a given text, of a model that does not read instructions, says it."""
    if abilities.instructable or not plan.instructed or plan.say:
        return plan
    lines = [line for line in plan.instructions.splitlines() if line.strip()]
    found = _SAYING.fullmatch(lines[-1]) if lines else None
    return replace(plan, say=found["text"].strip()) if found is not None else plan
