# ruff: noqa: E501 (examples and sentences of a page)
"""Writes the two pages of the guide that follow from the code: `python docs/make_reference.py`.

docs/guide/configuration.md from the configuration's structs, with what configs/embedded.toml (and of a cluster configs/cluster.toml)
says about each key;
docs/guide/events.md from the structs of the protocol's events, each with an example.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.config import ServerConfig, allowed  # noqa: E402
from agent.protocol import client_events, server_events  # noqa: E402

GUIDE = ROOT / "docs" / "guide"
EXAMPLES: dict[str, Any] = {
    "event_id": "event_7Qk2", "item_id": "item_4fGh", "response_id": "resp_9sT1", "previous_item_id": "item_3eFg",
    "audio_start_ms": 640, "audio_end_ms": 2140, "output_index": 0, "content_index": 0, "delta": "a large",
    "transcript": "a large latte please", "text": "One large latte.", "audio": "AAABAAIA", "usage": {"type": "duration", "seconds": 1.5},
    "item": {"id": "item_4fGh", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "A latte."}]},
    "part": {"type": "output_audio", "transcript": ""}, "rate_limits": [], "durations_ms": [160, 80, 640, 240],
    "error": {"type": "invalid_request_error", "code": "invalid_value", "message": "…", "param": "session.type", "event_id": None},
    "session": {"type": "realtime", "instructions": "Be brief.", "x_agogic": {"input_frame_rate": "auto", "output_frame_rate": 6.25}},
    "response": {"id": "resp_9sT1", "status": "in_progress", "x_agogic": {"output_frame_rate": {"requested_hz": 6.25, "reason": "as requested"}}},
    "arguments": '{"size": "large"}', "name": "price", "call_id": "call_2bCd", "start_time": 0.0, "end_time": 0.4,
}  # fmt: skip
OF_TYPE: dict[str, dict[str, Any]] = {
    "response.output_audio.delta": {"delta": "AAABAAIA", "x_agogic": {"start_time": 0.0, "tokens": [[1042, 3], [77, 2]]}},
    "response.output_audio_transcript.delta": {"delta": "One", "x_agogic": {"tokens": [[1042, 3]]}},
    "input_audio_buffer.speech_started": {"x_agogic": {"continues": "item_3eFg"}},
    "session.created": {"x_agogic": {"resume": {"token": "resume_8hJk…", "within_s": 60}, "recorded": "with sound"}},
    "x_agogic.session_resumed": {"last_client_event_id": "event_5", "x_agogic": {"resume": {"token": "resume_2dFg…", "within_s": 60}}},
    "response.create": {"response": {"x_agogic": {"output_frame_rate": 4.0}}},
    "response.done": {
        "response": {
            "id": "resp_9sT1", "status": "completed",
            "x_agogic": {
                "input_frame_rate": {"requested_hz": 12.5, "reason": "auto: nothing asks for a coarser rate", "realised_hz": 7.8},
                "output_frame_rate": {"requested_hz": 6.25, "reason": "as requested", "realised_hz": 6.1},
                "tokens": [[1042, 3], [77, 2]], "words": [["One", 0.0, 0.4]],
                "timing": {"turn_detection_ms": 512, "first_text_ms": 21, "first_token_ms": 33, "first_audio_ms": 57, "total_ms": 160},
            },
        }
    },
}  # fmt: skip


def configuration() -> str:
    comments = _comments()
    lines = [
        "# Configuration",
        "",
        "`agogic serve --config FILE` reads TOML. Every key may be left out. The command line comes before the environment",
        "(`AGOGIC_API_KEY`), and that before the file. A key that does not exist, or a value that does not fit, ends the start",
        "with one line that says what is allowed. This page is made from the code.",
        "",
    ]
    hints = get_type_hints(ServerConfig, include_extras=True)
    for section, kind in hints.items():
        is_list = get_origin(kind) is tuple
        kind = get_args(kind)[0] if is_list else kind
        lines += [f"## `[[{section}]]`" if is_list else f"## `[{section}]`", ""]
        lines += [comments["", section].capitalize(), ""] if is_list else []
        lines += ["| key | default | allowed | |", "|---|---|---|---|"]
        own = kind.__annotations__  # of a list of models those of [model] are shown there
        fields = {field.name: field for field in msgspec.structs.fields(kind) if not is_list or field.name in own}
        for name, field in fields.items():
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            shown = json.dumps(msgspec.to_builtins(default)) if default is not msgspec.NODEFAULT else ""
            note = comments.get((section, name), "").replace("|", "\\|")
            lines.append(f"| `{name}` | `{shown}` | {allowed(field.type)} | {note} |")
        lines.append("")
    return "\n".join(lines)


def events() -> str:
    lines = [
        "# Every event",
        "",
        "What goes over the WebSocket, or over the data channel `oai-events` of a call. [The protocol](../protocol.md) says when.",
        "Examples show every field; those that may be absent are marked in the list below each. This page is made from the code.",
        "",
        "## From the client",
        "",
    ]
    for name, decoder in client_events._DECODERS.items():
        lines += _event(name, decoder.type)
    lines += ["## From the server", ""]
    for kind in _leaves(server_events.ServerEvent):
        lines += _event(str(kind.__struct_config__.tag), kind)
    return "\n".join(lines)


def _event(name: str, kind: type[msgspec.Struct]) -> list[str]:
    whole: dict[str, Any] = {"type": name}
    absent = []
    for field in msgspec.structs.fields(kind):
        special = OF_TYPE.get(name, {})
        whole[field.name] = special.get(field.name, EXAMPLES.get(field.name, {}))
        if msgspec.UnsetType in get_args(field.type) or (
            kind.__module__.endswith("client_events") and not field.required
        ):
            absent.append(f"`{field.name}`")
    said = (kind.__doc__ or "").strip().split("\n\n")[0]
    lines = [f"### `{name}`", ""]
    if said and "Struct" not in said and not said.startswith("As it comes"):
        lines += [re.sub(r"\s+", " ", said), ""]
    lines += ["```json", json.dumps(whole, indent=2, ensure_ascii=False), "```", ""]
    if absent:
        lines += [f"May be absent: {', '.join(absent)}.", ""]
    return lines


def _leaves(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [kind]


def _comments() -> dict[tuple[str, str], str]:
    """What configs/embedded.toml says beside each key, and of a cluster's configs/cluster.toml."""
    found: dict[tuple[str, str], str] = {}
    for name, only in (("cluster", ("cluster",)), ("embedded", None)):
        found |= {key: text for key, text in _beside(name).items() if only is None or key[0] in only}
    return found


def _beside(name: str) -> dict[tuple[str, str], str]:
    found, section = {}, ""
    for line in (ROOT / "configs" / f"{name}.toml").read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        match = re.match(r"(\w+) = .*?\s# (.*)", line)
        if match:
            found[section, match[1]] = match[2]
    return found


def pages() -> dict[Path, str]:
    return {GUIDE / "configuration.md": configuration(), GUIDE / "events.md": events()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, "utf-8")
