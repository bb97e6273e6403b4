"""Audio formats as the protocol names them."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class PcmFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="audio/pcm"):
    rate: Literal[24000] = 24000


class PcmuFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="audio/pcmu"):
    rate: Literal[8000] | UnsetType = UNSET


class PcmaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="audio/pcma"):
    rate: Literal[8000] | UnsetType = UNSET


AudioFormat = PcmFormat | PcmuFormat | PcmaFormat


def format_name(format: AudioFormat) -> Literal["pcm16", "pcmu", "pcma"]:
    if isinstance(format, PcmFormat):
        return "pcm16"
    return "pcmu" if isinstance(format, PcmuFormat) else "pcma"
