"""Errors as the Realtime protocol spells them. Clients test some codes by name, so the names here are fixed."""

from __future__ import annotations

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


def from_validation(error: msgspec.ValidationError, *, event_id: str | None = None, prefix: str = "") -> ProtocolError:
    """Turns msgspec's sentence into a code and a parameter path; `prefix` is where the struct sits in the event."""
    what, _, path = str(error).partition(" - at `$")
    param = f"{prefix}{path.rstrip('`')}".strip(".")
    if what.startswith("Object missing required field"):
        name = what.split("`")[1]
        param = f"{param}.{name}" if param else name
        return ProtocolError(
            "missing_required_parameter", f"Missing required parameter: '{param}'.", param=param, event_id=event_id
        )
    return ProtocolError(
        "invalid_value", f"Invalid value for '{param}': {what}.", param=param or None, event_id=event_id
    )
