"""What a JSON object is once it has been read, before anybody has asked for its fields."""

from __future__ import annotations

JsonObject = dict[str, object]
