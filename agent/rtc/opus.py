"""Opus (RFC 6716) through libopus itself, for what PyAV's wrapper leaves out: in-band FEC and loss concealment.

PyAV already carries the library; where PyAV was built against the system's, the system's is found. Encoder and
decoder work at 24 kHz, a rate Opus knows, so the call needs no resampler of its own. A 20 ms frame takes well under a
millisecond in either direction, which is why both run on the event loop and not in threads.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Iterator
from pathlib import Path

SAMPLE_RATE_HZ = 24_000
FRAME_MS = 20
PACKET_SAMPLES = SAMPLE_RATE_HZ * FRAME_MS // 1000
MAX_PACKET_SAMPLES = SAMPLE_RATE_HZ * 120 // 1000  # the longest packet Opus allows
_MAX_PACKET_BYTES = 1275

_APPLICATION_VOIP = 2048
_SET_BITRATE = 4002
_SET_COMPLEXITY = 4010
_SET_INBAND_FEC = 4012
_SET_PACKET_LOSS_PERC = 4014
_SET_SIGNAL = 4024
_SIGNAL_VOICE = 3001


class OpusError(Exception):
    """libopus is missing, or refused a packet or a setting."""


def _candidates() -> Iterator[str]:
    """Library files to try, the one PyAV brings first. Looking for the system's starts programs, which takes long."""
    import av

    package = Path(av.__file__).parent
    folders = [package.parent / "av.libs", package / ".dylibs", package]
    found = [str(path) for folder in folders for path in sorted(folder.glob("*opus*")) if path.is_file()]
    found = [path for path in found if path.split(".")[-1] != "py"]
    yield from found
    if (system := ctypes.util.find_library("opus")) is not None:
        yield system


@functools.cache
def library() -> ctypes.CDLL:
    """libopus with its signatures declared; OpusError where there is none."""
    for candidate in _candidates():
        try:
            lib = ctypes.CDLL(candidate)
        except OSError:
            continue
        pointer, c_int, data, pcm = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
        lib.opus_encoder_create.argtypes = [ctypes.c_int32, c_int, c_int, ctypes.POINTER(c_int)]
        lib.opus_encoder_create.restype = pointer
        lib.opus_encoder_destroy.argtypes = [pointer]
        lib.opus_encoder_destroy.restype = None
        lib.opus_encode.argtypes = [pointer, data, c_int, ctypes.c_void_p, ctypes.c_int32]
        lib.opus_encode.restype = ctypes.c_int32
        lib.opus_decoder_create.argtypes = [ctypes.c_int32, c_int, ctypes.POINTER(c_int)]
        lib.opus_decoder_create.restype = pointer
        lib.opus_decoder_destroy.argtypes = [pointer]
        lib.opus_decoder_destroy.restype = None
        lib.opus_decode.argtypes = [pointer, data, ctypes.c_int32, pcm, c_int, c_int]
        lib.opus_decode.restype = c_int
        lib.opus_packet_get_nb_samples.argtypes = [data, ctypes.c_int32, ctypes.c_int32]
        lib.opus_packet_get_nb_samples.restype = c_int
        lib.opus_strerror.argtypes = [c_int]
        lib.opus_strerror.restype = ctypes.c_char_p
        return lib
    raise OpusError("libopus was not found: install it (Debian: apt-get install libopus0), or PyAV from its wheel")


def _check(code: int, doing: str) -> int:
    if code < 0:
        raise OpusError(f"{doing}: {library().opus_strerror(code).decode()}")
    return code


def packet_samples(packet: bytes) -> int:
    """Length of a packet's sound in samples at 24 kHz; OpusError where it is no Opus packet."""
    return _check(library().opus_packet_get_nb_samples(packet, len(packet), SAMPLE_RATE_HZ), "reading an Opus packet")


class OpusEncoder:
    """Mono s16le at 24 kHz to packets of 20 ms that carry a coarse copy of the frame before (in-band FEC)."""

    def __init__(self, bitrate_bps: int = 32_000, expected_loss_percent: int = 10) -> None:
        lib = library()
        error = ctypes.c_int(0)
        self._lib = lib
        self._state = lib.opus_encoder_create(SAMPLE_RATE_HZ, 1, _APPLICATION_VOIP, ctypes.byref(error))
        _check(error.value, "creating an Opus encoder")
        self._buffer = ctypes.create_string_buffer(_MAX_PACKET_BYTES)
        for request, value in (
            (_SET_BITRATE, bitrate_bps),
            (_SET_COMPLEXITY, 5),
            (_SET_INBAND_FEC, 1),
            (_SET_PACKET_LOSS_PERC, expected_loss_percent),
            (_SET_SIGNAL, _SIGNAL_VOICE),
        ):
            self._control(request, value)

    def _control(self, request: int, value: int) -> None:
        # opus_encoder_ctl is variadic: the arguments must be cast one by one
        code = self._lib.opus_encoder_ctl(ctypes.c_void_p(self._state), ctypes.c_int(request), ctypes.c_int32(value))
        _check(code, "setting up an Opus encoder")

    def set_expected_loss(self, percent: int) -> None:
        """More expected loss spends more of the bit rate on FEC."""
        self._control(_SET_PACKET_LOSS_PERC, max(0, min(100, percent)))

    def encode(self, pcm: bytes) -> bytes:
        """One 20 ms frame, exactly 480 samples of s16le."""
        if len(pcm) != 2 * PACKET_SAMPLES:
            raise OpusError(f"an Opus frame takes {2 * PACKET_SAMPLES} bytes of PCM, not {len(pcm)}")
        size = self._lib.opus_encode(self._state, pcm, PACKET_SAMPLES, self._buffer, _MAX_PACKET_BYTES)
        return self._buffer.raw[: _check(size, "encoding Opus")]

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._lib.opus_encoder_destroy(self._state)
            self._state = None


class OpusDecoder:
    """Packets to mono s16le at 24 kHz; stereo packets are mixed down by the library."""

    def __init__(self) -> None:
        lib = library()
        error = ctypes.c_int(0)
        self._lib = lib
        self._state = lib.opus_decoder_create(SAMPLE_RATE_HZ, 1, ctypes.byref(error))
        _check(error.value, "creating an Opus decoder")
        self._buffer = ctypes.create_string_buffer(2 * MAX_PACKET_SAMPLES)

    def _run(self, packet: bytes | None, samples: int, fec: bool) -> bytes:
        size = 0 if packet is None else len(packet)
        count = self._lib.opus_decode(self._state, packet, size, self._buffer, samples, int(fec))
        return self._buffer.raw[: 2 * _check(count, "decoding Opus")]

    def decode(self, packet: bytes) -> bytes:
        return self._run(packet, MAX_PACKET_SAMPLES, fec=False)

    def recover(self, next_packet: bytes, samples: int) -> bytes:
        """`samples` that were lost just before `next_packet`, from its FEC copy where it has one, else concealed."""
        return self._run(next_packet, samples, fec=True)

    def conceal(self, samples: int) -> bytes:
        """`samples` (a multiple of 2.5 ms) guessed from what came before, fading out over a few calls."""
        return self._run(None, samples, fec=False)

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._lib.opus_decoder_destroy(self._state)
            self._state = None
