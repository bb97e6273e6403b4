"""Errors as the Realtime protocol spells them. Clients test some codes by name, so the names here are fixed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec


class ProtocolError(Exception):
    """A request that cannot be met; becomes one `error` event or JSON error body, never a closed connection."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str = "invalid_request_error",
        event_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind
        self.event_id = event_id

    def as_dict(self) -> dict[str, object]:
        """The `error` object; absent fields are left out because stock clients reject null in them."""
        error: dict[str, object] = {"type": self.kind, "code": self.code, "message": self.message}
        if self.param is not None:
            error["param"] = self.param
        if self.event_id is not None:
            error["event_id"] = self.event_id
        return error


def from_validation(
    error: msgspec.ValidationError,
    *,
    event_id: str | None = None,
    prefix: str = "",
    spelling: Mapping[str, str] | None = None,
) -> ProtocolError:
    """Turns msgspec's sentence into a code and a parameter path; `prefix` is where the struct sits in the event.

    `spelling`: paths below `prefix` that the client wrote in another way.
    """
    what, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").strip(".")
    missing = re.match(r"Object (missing required|contains unknown) field `(.*)`", what)
    if missing:
        path = f"{path}.{missing[2]}".strip(".")
    for ours, theirs in (spelling or {}).items():
        if path == ours or path.startswith(ours + "."):
            path = theirs + path[len(ours) :]
    param = f"{prefix}.{path}".strip(".")
    if missing is None:
        message = f"Invalid value for '{param}': {what}."
        return ProtocolError("invalid_value", message, param=param or None, event_id=event_id)
    if missing[1] == "contains unknown":
        return unknown_parameter(param, event_id)
    return ProtocolError(
        "missing_required_parameter", f"Missing required parameter: '{param}'.", param=param, event_id=event_id
    )


def unknown_parameter(param: str, event_id: str | None = None) -> ProtocolError:
    message = f"Unknown parameter: '{param}'. It would have no effect; leave it out."
    return ProtocolError("unknown_parameter", message, param=param, event_id=event_id)
