"""`.agc` files: what goes in comes out, the sizes are as announced, and damage is noticed."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.codec.code_file import CodeFileError, CodeHeader, read_codes, write_codes
from streaming.flexicodec.flexicodec import SpeechCodes


def header(groups: int, books: int, frames: int) -> CodeHeader:
    return CodeHeader("embedded", "0123", 1280 * frames, frames, groups, 15, 12, books)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.integers(1, 60), books=st.integers(0, 24), seed=st.integers(0, 99))
def test_codes_survive_the_file(tmp_path: Path, groups: int, books: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    durations = torch.randint(1, 9, (groups,), generator=generator)
    semantic = torch.randint(32_768, (groups,), generator=generator)
    acoustic = torch.randint(4096, (books, groups), generator=generator) if books else None
    path = tmp_path / "speech.agc"
    about = header(groups, books, int(durations.sum()))
    write_codes(path, about, SpeechCodes(semantic, acoustic, durations))
    read, codes = read_codes(path)
    assert read == about
    assert torch.equal(codes.semantic, semantic)
    assert torch.equal(codes.durations, durations)
    if acoustic is None:
        assert codes.acoustic is None
    else:
        assert codes.acoustic is not None
        assert torch.equal(codes.acoustic, acoustic)
    payload = (groups * (3 + 15 + 12 * books) + 7) // 8
    assert path.stat().st_size == 8 + len(msgspec.json.encode(about)) + payload + 4


def test_rates_and_bits() -> None:
    about = header(groups=50, books=7, frames=100)
    assert about.seconds == 8.0
    assert about.rate_hz == 6.25
    assert about.bits_per_second == pytest.approx(6.25 * (3 + 15 + 84))


def sealed(data: bytes) -> bytes:
    """With the checksum that fits: what is wrong then is what the file says."""
    return data + zlib.crc32(data).to_bytes(4, "little")


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "speech.agc"
    codes = SpeechCodes(torch.tensor([1, 2, 3]), None, torch.tensor([1, 2, 2]))
    write_codes(path, header(3, 0, 5), codes)
    whole = path.read_bytes()
    for damaged, message in (
        (b"RIFF" + whole[4:], "is no .agc file"),
        (whole[:6], "is no .agc file"),
        (whole[:30], "checksum does not fit"),
        (whole[:-1], "checksum does not fit"),
        (whole + b"x", "checksum does not fit"),
        (whole[:-9] + b"\xfe" + whole[-8:], "checksum does not fit"),
        (sealed(whole[:30]), "damaged header"),
        (sealed(whole[:-5]), "cut off"),
        (sealed(whole[:-4] + b"x"), "cut off"),
        (sealed(whole[:-11] + b"\xff" + whole[-10:-4]), "do not fill 5 frames"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CodeFileError, match=message):
            read_codes(path)
    with pytest.raises(CodeFileError, match="cannot read"):
        read_codes(tmp_path / "none.agc")
    with pytest.raises(CodeFileError, match="cannot write"):
        write_codes(tmp_path / "no" / "folder.agc", header(3, 0, 5), codes)
