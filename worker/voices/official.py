"""The voice of the official models: any speaker, from a prompt recording, chunk by chunk.

Codes and durations -> Voicebox, filled in behind the prompt (`streaming.speaking.infill`) -> Vocos in overlapping
windows (`streaming.speaking.vocoder_window`) -> samples at 24 kHz.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.packed_linear import pack_linears
from kernels.recorder import make_recorder
from models.checkpoints.flexicodec_checkpoint import load_flexicodec, load_vocos, load_voicebox
from models.checkpoints.hub import Companions
from models.errors import CheckpointError
from streaming.flexicodec.flexicodec import FlexiCodec
from streaming.hearing.resample import sinc_resample
from streaming.speaking.infill import Chunk, InfillDecoder, InfillDials, PromptVoice
from streaming.speaking.mel24k import SAMPLE_RATE_HZ as OUTPUT_HZ
from streaming.speaking.mel24k import Mel24k
from streaming.speaking.unmerge import OUTPUT_FRAME_SAMPLES, UPSAMPLING
from streaming.speaking.vocoder_window import VocoderStream, WindowDials
from streaming.speaking.vocos import Vocos
from worker.audio_files import read_question
from worker.voices.voice import Latency, utter

PROMPT_HZ = 16_000
SHORTEST_PROMPT_S = 1.0
PROMPT_FILE = "prompt.wav"
"""A recording of this name in the checkpoint's directory is its voice where the caller names none."""

INFILL: dict[Latency, InfillDials] = {
    "usual": InfillDials(),
    "low": InfillDials(chunk_frames=(1, 2, 4, 8, 16), look_ahead_frames=1),
}


def make_prompt(codec: FlexiCodec, audio: Tensor) -> PromptVoice:
    """What the decoder needs to sound like the speaker of `audio` [N] at 16 kHz.

    The mel is usually a few 20 ms frames longer than its codes; the original leaves it so and shifts its condition by
    them, here it is cut to the codes.
    """
    if len(audio) < SHORTEST_PROMPT_S * PROMPT_HZ:
        raise CheckpointError(f"a voice prompt of {len(audio) / PROMPT_HZ:.1f} s is too short; record 3 to 10 s")
    with torch.inference_mode():
        codes = codec.encode(audio, 1.0, quantizers=1).semantic
        mel = Mel24k()(sinc_resample(audio[None], PROMPT_HZ, OUTPUT_HZ))[0]
    frames = min(len(codes), mel.shape[0] // UPSAMPLING)
    return PromptVoice(codes[:frames].clone(), mel[: frames * UPSAMPLING].clone())


class OfficialVoice:
    """The networks of speaking, and whom they sound like; every answer gets a stream of its own."""

    sample_rate = OUTPUT_HZ

    def __init__(
        self,
        flow: InfillDecoder,
        vocoder: Vocos,
        prompt: PromptVoice,
        window: WindowDials = WindowDials(),  # noqa: B008
    ) -> None:
        self.flow, self.vocoder, self.prompt, self.window = flow, vocoder, prompt, window
        flow.begin(prompt)  # remembers the prompt, which the first answer need not wait for then

    def warm_up(self, rows: int) -> None:
        self.flow.warm_up(rows)
        utter(self)

    def begin(self) -> OfficialVoiceStream:
        return OfficialVoiceStream(self)

    def render(self, streams: Sequence[OfficialVoiceStream]) -> list[NDArray[np.float32]]:
        """Samples [n] of the next chunk of each stream, and after its last one the rest; chunks are made together."""
        started = time.perf_counter()
        filling = [stream for stream in streams if stream.flow.ready]
        chunks = iter(self.flow.render([stream.flow for stream in filling]) if filling else [])
        share_ms = (time.perf_counter() - started) * 1e3 / max(1, len(filling))
        return [stream.render(next(chunks) if stream in filling else None, share_ms) for stream in streams]


class OfficialVoiceStream:
    """One answer's sound. flow_ms and vocoder_ms: time spent so far; samples: given out so far."""

    def __init__(self, voice: OfficialVoice) -> None:
        self._voice = voice
        self.flow = voice.flow.begin(voice.prompt)
        self._vocoder = VocoderStream(voice.vocoder, voice.window)
        self._ended = False
        self._flushed = False
        self.samples = 0
        self.flow_ms = 0.0
        self.vocoder_ms = 0.0

    @property
    def ready(self) -> bool:
        """Whether `render` has something to make."""
        return self.flow.ready or (self._ended and not self._flushed)

    @property
    def finished(self) -> bool:
        return self._flushed

    @property
    def next_samples(self) -> int:
        return self.flow.next_frames * OUTPUT_FRAME_SAMPLES

    @property
    def cuts(self) -> tuple[int, ...]:
        """None: a unit is a few steps of one chunk already."""
        return ()

    def cut(self, samples: int) -> None:
        raise ValueError(f"how a chunk sounds depends on its length: {samples} samples cannot be cut off it")

    def pace(self, *, hurried: bool, alone: bool, next_in_s: float) -> None:
        """Changes nothing: how a chunk sounds depends on its length."""

    def push(self, code: int, duration_frames: int) -> None:
        """The next code. Raises `SpeechCodeError`."""
        self.flow.push(code, duration_frames)

    def end(self) -> None:
        """No more codes will come."""
        self._ended = True
        self.flow.end()

    def render(self, chunk: Chunk | None, flow_ms: float) -> NDArray[np.float32]:
        """Samples [n] of a chunk that took so long to fill in; of None the rest."""
        started = time.perf_counter()
        if chunk is None:
            self._flushed = True
            sound = self._vocoder.flush()
        else:
            self.flow_ms += flow_ms
            sound = self._vocoder.push(chunk.mel, chunk.ahead)
        self.vocoder_ms += (time.perf_counter() - started) * 1e3
        return self._give(sound)

    def _give(self, sound: Tensor) -> NDArray[np.float32]:
        self.samples += len(sound)
        given: NDArray[np.float32] = sound.float().cpu().numpy()
        return given


def load_official_voice(
    companions: Companions,
    prompt_audio: Tensor,
    dials: InfillDials,
    *,
    prompt_cache: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    steps: str = "eager",
) -> OfficialVoice:
    """Voicebox and Vocos with a prompt [N] at 16 kHz.

    steps: how windows are solved, as `kernels.step_runner.steps_name` gives it. The codec, larger than both networks,
    is read only to turn the prompt into codes; with `prompt_cache` (a file) only once.
    """
    prompt = _cached(prompt_cache, prompt_audio)
    if prompt is None:
        prompt = make_prompt(load_flexicodec(companions.codec), prompt_audio)
        if prompt_cache is not None:
            prompt_cache.parent.mkdir(parents=True, exist_ok=True)
            key = torch.from_numpy(_key(prompt_audio))
            save_file({"audio": key, "codes": prompt.codes, "mel": prompt.mel}, prompt_cache)
    flow = load_voicebox(companions.flow, dtype=dtype).to(device)
    vocoder = load_vocos(companions.vocoder).to(device)
    flow.fuse()
    pack_linears(flow)
    pack_linears(vocoder)
    recorder = make_recorder(steps, torch.device(device))
    return OfficialVoice(InfillDecoder(flow, dials, recorder=recorder), vocoder, prompt)


def load_recorded_voice(
    directory: Path,
    companions: Companions,
    recording: Path | None,
    latency: Latency,
    *,
    device: torch.device,
    steps: str = "eager",
) -> OfficialVoice:
    """The voice of a checkpoint's `directory`: that of a recording, or else of the one that lies there.

    bfloat16 on a GPU. Raises `CheckpointError` or `AudioFileError`.
    """
    audio = torch.from_numpy(read_question(_prompt_recording(directory, recording)))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cache = _cache_file(companions, audio)
    dials = INFILL[latency]
    return load_official_voice(companions, audio, dials, prompt_cache=cache, device=device, dtype=dtype, steps=steps)


def _prompt_recording(directory: Path, prompt: Path | None) -> Path:
    if prompt is not None:
        return prompt
    own = directory / PROMPT_FILE
    if own.exists():
        return own
    raise CheckpointError(
        f"{directory} speaks like a recording and has none: give one of 3 to 10 s with --voice (model.voice in the "
        f"configuration), or put it there as {PROMPT_FILE}"
    )


def _cache_file(companions: Companions, audio: torch.Tensor) -> Path:
    """Where the features of a prompt are kept: named after the recording and the codec that reads it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    codec = companions.codec.codec.stat()
    key = hashlib.sha256(audio.numpy().tobytes() + f"{codec.st_size} {codec.st_mtime_ns}".encode())
    return root / "agogic" / "voices" / f"{key.hexdigest()[:24]}.safetensors"


def _cached(path: Path | None, audio: Tensor) -> PromptVoice | None:
    if path is None or not path.exists():
        return None
    try:
        state = load_file(path)
        if torch.equal(state["audio"], torch.from_numpy(_key(audio))):
            return PromptVoice(state["codes"], state["mel"])
    except (SafetensorError, KeyError, ValueError):
        return None  # damaged or of another make: made anew
    return None


def _key(audio: Tensor) -> NDArray[np.int16]:
    """What tells one recording from another."""
    samples: NDArray[np.int16] = (audio.numpy() * 32_767).astype(np.int16)
    return samples
