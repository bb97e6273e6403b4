"""Audio formats as the protocol names them."""

from __future__ import annotations

from typing import Literal

import msgspec


class PcmFormat(msgspec.Struct, frozen=True, tag_field="type", tag="audio/pcm"):
    rate: Literal[24000] = 24000


class PcmuFormat(msgspec.Struct, frozen=True, tag_field="type", tag="audio/pcmu"):
    pass


class PcmaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="audio/pcma"):
    pass


AudioFormat = PcmFormat | PcmuFormat | PcmaFormat


def format_name(format: AudioFormat) -> Literal["pcm16", "pcmu", "pcma"]:
    if isinstance(format, PcmFormat):
        return "pcm16"
    return "pcmu" if isinstance(format, PcmuFormat) else "pcma"
