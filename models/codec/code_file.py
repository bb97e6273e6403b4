"""The `.agc` file: speech as duration-tagged codes.

4 bytes   magic "AGC2"
4 bytes   length of the header, little-endian
header    JSON, see `CodeHeader`
payload   bits, most significant first, padded with zeros to a whole byte:
          for every group its duration - 1 (`duration_bits`), then for every group its semantic code
          (`semantic_bits`), then for every acoustic book the code of every group (`acoustic_bits`)
4 bytes   CRC-32 of everything before, little-endian: a flipped bit is refused instead of heard
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from streaming.flexicodec.codec import FRAME_RATE_HZ
from streaming.flexicodec.flexicodec import SpeechCodes

MAGIC = b"AGC2"
DURATION_BITS = 3  # 1 to 8 frames
_LONGEST_HEADER = 1 << 16


class CodeFileError(ValueError):
    """The file is no .agc file, is cut off, or belongs to another model."""


class CodeHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the payload means.

    `model` is how the model was called, `fingerprint` which weights made the codes; `groups` and `acoustic_books` give
    the payload's shape; `samples` (16 kHz) is the length of what was encoded.
    """

    model: str
    fingerprint: str
    samples: Annotated[int, Meta(ge=0)]
    frames: Annotated[int, Meta(ge=1)]
    groups: Annotated[int, Meta(ge=1)]
    semantic_bits: Annotated[int, Meta(ge=1, le=32)]
    acoustic_bits: Annotated[int, Meta(ge=0, le=32)]
    acoustic_books: Annotated[int, Meta(ge=0, le=64)]
    duration_bits: Annotated[int, Meta(ge=1, le=16)] = DURATION_BITS

    @property
    def seconds(self) -> float:
        return self.frames / FRAME_RATE_HZ

    @property
    def rate_hz(self) -> float:
        """Groups per second."""
        return self.groups / self.seconds

    @property
    def payload_bits(self) -> int:
        return self.groups * (self.duration_bits + self.semantic_bits + self.acoustic_books * self.acoustic_bits)

    @property
    def bits_per_second(self) -> float:
        return self.payload_bits / self.seconds


def write_codes(path: Path, header: CodeHeader, codes: SpeechCodes) -> None:
    """Raises `CodeFileError` where the file cannot be written."""
    parts = [
        _to_bits(codes.durations.numpy() - 1, header.duration_bits),
        _to_bits(codes.semantic.numpy(), header.semantic_bits),
    ]
    if codes.acoustic is not None:
        parts += [_to_bits(book.numpy(), header.acoustic_bits) for book in codes.acoustic]
    text = msgspec.json.encode(header)
    payload = np.packbits(np.concatenate(parts)).tobytes()
    try:
        whole = MAGIC + struct.pack("<I", len(text)) + text + payload
        path.write_bytes(whole + struct.pack("<I", zlib.crc32(whole)))
    except OSError as error:
        raise CodeFileError(f"cannot write {path} ({error.strerror}); choose another place") from None


def read_codes(path: Path) -> tuple[CodeHeader, SpeechCodes]:
    """Raises `CodeFileError` where the file is missing, cut off or something else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CodeFileError(f"cannot read {path} ({error.strerror}); give a file that `codec encode` wrote") from None
    if data[:4] != MAGIC or len(data) < 12:
        raise CodeFileError(f"{path} is no .agc file; give a file that `codec encode` wrote")
    data, check = data[:-4], struct.unpack("<I", data[-4:])[0]
    if zlib.crc32(data) != check:
        raise CodeFileError(f"{path} is cut off or damaged: its checksum does not fit; encode it again")
    size = struct.unpack("<I", data[4:8])[0]
    try:
        header = msgspec.json.decode(data[8 : 8 + min(size, _LONGEST_HEADER)], type=CodeHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CodeFileError(f"{path} has a damaged header; encode it again") from None
    if header.acoustic_books and not header.acoustic_bits:
        raise CodeFileError(f"{path} has a damaged header; encode it again")
    payload = np.frombuffer(data[8 + size :], np.uint8)
    if len(payload) != (header.payload_bits + 7) // 8:
        raise CodeFileError(f"{path} is cut off or padded ({len(payload)} bytes of codes); encode it again")
    bits = np.unpackbits(payload)[: header.payload_bits]
    widths = [header.duration_bits, header.semantic_bits, *[header.acoustic_bits] * header.acoustic_books]
    ends = np.cumsum([width * header.groups for width in widths])
    rows = [_from_bits(part, width) for part, width in zip(np.split(bits, ends[:-1]), widths, strict=True)]
    durations, semantic, *acoustic = (torch.from_numpy(row) for row in rows)
    durations = durations + 1
    if int(durations.sum()) != header.frames:
        raise CodeFileError(f"{path} is damaged: its durations do not fill {header.frames} frames; encode it again")
    return header, SpeechCodes(semantic, torch.stack(acoustic) if acoustic else None, durations)


def _to_bits(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    places = np.arange(width - 1, -1, -1)
    return ((values[:, None] >> places) & 1).astype(np.uint8).reshape(-1)


def _from_bits(bits: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
    values: NDArray[np.int64] = bits.reshape(-1, width).astype(np.int64) @ weights
    return values
