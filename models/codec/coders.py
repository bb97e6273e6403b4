"""Speech codecs behind one face: the embedded one (codes -> flow decoder -> vocoder) and the official FlexiCodec."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.packed_linear import pack_linears
from models.checkpoints.flexicodec_checkpoint import CodecFiles, load_flexicodec
from models.checkpoints.hub import EMBEDDED, EMBEDDED_CODEC, EMBEDDED_DIRECTORY, resolve_codec
from models.checkpoints.voice_files import load_codec, load_flow, load_vocoder
from models.codec.code_file import CodeFileError, CodeHeader
from streaming.flexicodec.codec import FRAME_RATE_HZ, INPUT_FRAME_SAMPLES, MAX_GROUP_FRAMES, SpeechCodec
from streaming.flexicodec.flexicodec import AudioTooShortError, FlexiCodec, SpeechCodes, merge_frames
from streaming.hearing.speech_mel import SpeechMel
from streaming.speaking.flow_decoder import FlowDecoder, FlowDials
from streaming.speaking.mel24k import SAMPLE_RATE_HZ as EMBEDDED_OUTPUT_HZ
from streaming.speaking.vocos import Vocos

INPUT_HZ = 16_000
_SAMPLES_PER_FRAME_OUT = int(EMBEDDED_OUTPUT_HZ / FRAME_RATE_HZ)


class Coder(Protocol):
    """`max_quantizers` counts the semantic code too."""

    name: str
    fingerprint: str
    output_hz: int
    semantic_size: int
    acoustic_size: int
    max_quantizers: int

    @property
    def semantic_bits(self) -> int:
        """Of one code in a file."""
        return _bits(self.semantic_size)

    @property
    def acoustic_bits(self) -> int:
        return _bits(self.acoustic_size)

    def encode(self, audio: Tensor, target: float | None, quantizers: int) -> SpeechCodes:
        """Samples [N] at 16 kHz -> codes; `target` as in `FlexiCodec.encode`."""

    def decode(self, codes: SpeechCodes) -> Tensor:
        """Samples [M] at `output_hz`."""


class OfficialCoder(Coder):
    """FlexiCodec with released weights, which it packs."""

    output_hz = INPUT_HZ

    def __init__(self, name: str, codec: FlexiCodec) -> None:
        self.name = name
        self._codec = codec
        self.fingerprint = fingerprint(codec.semantic_vq.fsq.project_in.weight)
        self.semantic_size = codec.semantic_vq.fsq.codebook_size
        self.acoustic_size = codec.config.codebook_size
        self.max_quantizers = 1 + codec.config.n_codebooks
        pack_linears(codec)

    def encode(self, audio: Tensor, target: float | None, quantizers: int) -> SpeechCodes:
        with torch.inference_mode():
            return self._codec.encode(audio, target, quantizers)

    def decode(self, codes: SpeechCodes) -> Tensor:
        with torch.inference_mode():
            return self._codec.decode(codes)


class EmbeddedCoder(Coder):
    """The codes that the embedded Talker speaks; there is one codebook, and the voice is the model's own."""

    output_hz = EMBEDDED_OUTPUT_HZ
    acoustic_size = 0
    max_quantizers = 1

    def __init__(self, name: str, codec: SpeechCodec, flow: FlowDecoder, vocoder: Vocos) -> None:
        self.name = name
        self._codec, self._flow, self._vocoder = codec, flow, vocoder
        self._mel = SpeechMel(codec.config.mel_bins)
        self.fingerprint = fingerprint(codec.semantic_vq.fsq.project_in.weight)
        self.semantic_size = codec.semantic_vq.fsq.codebook_size

    def encode(self, audio: Tensor, target: float | None, quantizers: int) -> SpeechCodes:
        if quantizers != 1:
            raise ValueError(f"the embedded codec has one quantizer, not {quantizers}")
        if audio.shape[0] < INPUT_FRAME_SAMPLES:
            raise AudioTooShortError(f"{audio.shape[0]} samples are too short to code; send at least 80 ms of audio")
        with torch.inference_mode():
            whole = F.pad(audio[None], (0, -audio.shape[0] % INPUT_FRAME_SAMPLES))
            features = self._codec.semantic_model(self._mel(whole))
            target = FRAME_RATE_HZ if target is None else target
            durations = merge_frames(features[0], target, MAX_GROUP_FRAMES)[None]
            return SpeechCodes(self._codec.quantise(features, durations)[1][0], None, durations[0])

    def decode(self, codes: SpeechCodes) -> Tensor:
        with torch.inference_mode():
            mel = self._flow(codes.semantic[None], codes.durations[None])
            return self._vocoder(mel)[0, : _SAMPLES_PER_FRAME_OUT * int(codes.durations.sum())]


def load_coder(spec: str, *, offline: bool = False) -> Coder:
    """The codec of 'embedded', of a directory (ours or official files), or of a hub id.

    Raises `CheckpointError` or `VoiceFileError`.
    """
    directory = EMBEDDED_DIRECTORY if spec == EMBEDDED else Path(spec)
    if (directory / EMBEDDED_CODEC).exists() or spec == EMBEDDED:
        return load_embedded_coder(directory, spec)
    return load_official_coder(resolve_codec(spec, offline=offline), spec)


def load_embedded_coder(directory: Path, name: str) -> EmbeddedCoder:
    """Raises `VoiceFileError`."""
    flow = FlowDecoder(load_flow(directory / "flow.safetensors"), FlowDials()).eval()
    codec = load_codec(directory / "codec.safetensors")
    return EmbeddedCoder(name, codec, flow, load_vocoder(directory / "vocoder.safetensors"))


def load_official_coder(files: CodecFiles, name: str) -> OfficialCoder:
    """Raises `CheckpointError`."""
    return OfficialCoder(name, load_flexicodec(files))


def header_of(coder: Coder, codes: SpeechCodes, samples: int) -> CodeHeader:
    books = 0 if codes.acoustic is None else codes.acoustic.shape[0]
    return CodeHeader(
        model=coder.name,
        fingerprint=coder.fingerprint,
        samples=samples,
        frames=int(codes.durations.sum()),
        groups=codes.semantic.shape[0],
        semantic_bits=coder.semantic_bits,
        acoustic_bits=coder.acoustic_bits,
        acoustic_books=books,
    )


def check_same_model(coder: Coder, header: CodeHeader, path: Path) -> None:
    """Codes of one model mean nothing to another."""
    if header.fingerprint != coder.fingerprint:
        raise CodeFileError(f"{path} was encoded by other weights ({header.model}); decode with the model that made it")


def check_codes(coder: Coder, codes: SpeechCodes, path: Path) -> None:
    """Every code must be one of the codebook's, which may hold fewer than its bits could name."""
    pairs = [(codes.semantic, coder.semantic_size)]
    if codes.acoustic is not None:
        pairs.append((codes.acoustic, coder.acoustic_size))
    if any(values.numel() and int(values.max()) >= size for values, size in pairs):
        raise CodeFileError(f"{path} is damaged: it holds codes that {coder.name} does not have; encode it again")


def fingerprint(weight: Tensor) -> str:
    """Short name of a codebook: codes made with equal weights are interchangeable."""
    return hashlib.sha256(weight.detach().to(torch.float16).contiguous().numpy().tobytes()).hexdigest()[:16]


def _bits(size: int) -> int:
    return math.ceil(math.log2(size)) if size else 0
