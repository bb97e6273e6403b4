"""How well the voice can be understood: an outside recogniser on replies that were never trained on.

Rows of `parts`: the source voice itself, the vocoder on true mels, and true codes of the source at several rates
through flow decoder and vocoder. `run` adds what counts: the replies spoken from their text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from models.checkpoints.voice_files import load_codec, load_flow, load_vocoder
from streaming.flexicodec.codec import INPUT_FRAME_SAMPLES
from streaming.speaking.flow_decoder import FlowDecoder, FlowDials
from streaming.speaking.mel24k import Mel24k
from training.features import log_power, scale
from training.judge import Hearer, Judge, Verdict, total
from training.opinions import own_similarity, predicted_mos, similarity, voice_embeddings
from training.voice_data import lexicon_of, synthesise
from training.voice_features import audio_24k, frames_of
from training.whisper_judge import WhisperJudge
from training.world import HELD_OUT_SEED, reply_pool


@dataclass(frozen=True)
class Spoken:
    """A sentence and its source recording, int16 [samples] at 16 kHz."""

    text: str
    source: np.ndarray


Speak = Callable[[str], tuple[np.ndarray, int]]
"""Speaks a text: float32 samples and their rate."""


def held_out_replies(count: int) -> list[Spoken]:
    """Order replies outside the training data, read by the source voice."""
    texts = reply_pool(count, HELD_OUT_SEED)
    lexicon = lexicon_of(texts)
    return [Spoken(text, synthesise(text, lexicon)[0]) for text in texts]


@dataclass(frozen=True)
class JudgeChoice:
    """pocketsphinx, or with a directory the whisper model in it."""

    whisper: Path | None = None

    @property
    def name(self) -> str:
        return "whisper" if self.whisper else "pocketsphinx"

    def make(self) -> Hearer:
        """Raises JudgeError where it is not installed."""
        return WhisperJudge(self.whisper) if self.whisper else Judge()


POCKETSPHINX = JudgeChoice()
_judges: dict[JudgeChoice, Hearer] = {}


def _judge_one(choice: JudgeChoice, job: tuple[str, np.ndarray, int]) -> Verdict:
    if choice not in _judges:
        _judges[choice] = choice.make()
    return _judges[choice].errors(*job)


def judge_all(
    jobs: Iterable[tuple[str, np.ndarray, int]], processes: int, choice: JudgeChoice = POCKETSPHINX
) -> Verdict:
    """Verdict over (text, samples, rate) of many sentences."""
    with ProcessPoolExecutor(processes) as pool:
        return total(list(pool.map(_judge_one, repeat(choice), jobs)))


class Resynthesis:
    """The voice's networks on recordings."""

    def __init__(self, model: Path, dials: FlowDials) -> None:
        self.codec = load_codec(model / "codec.safetensors")
        self.flow = FlowDecoder(load_flow(model / "flow.safetensors"), dials).eval()
        self.vocoder = load_vocoder(model / "vocoder.safetensors")
        self.mel24k = Mel24k()

    @torch.no_grad()
    def copy(self, source: np.ndarray) -> np.ndarray:
        """Vocoder on the true mel, 24 kHz."""
        mel = self.mel24k(torch.from_numpy(audio_24k(source)).unsqueeze(0))
        return self.vocoder(mel)[0].numpy()  # type: ignore[no-any-return]

    @torch.no_grad()
    def through_codes(self, source: np.ndarray, rate_hz: float) -> tuple[np.ndarray, float]:
        """Sound at 24 kHz from the codes at this rate, and the rate in fact."""
        padded = torch.zeros(frames_of(len(source)) * INPUT_FRAME_SAMPLES)
        padded[: len(source)] = torch.from_numpy(source.astype(np.float32) / 32768)
        codes, durations = self.codec.encode(scale(log_power(padded)), rate_hz)
        sound = self.vocoder(self.flow(codes.unsqueeze(0), durations.unsqueeze(0)))[0].numpy()
        return sound, len(codes) * 12.5 / int(durations.sum())


def parts(
    model: Path, replies: list[Spoken], rates_hz: tuple[float, ...], dials: FlowDials, processes: int = 1
) -> dict[str, float]:
    """Word error rates by row name."""
    voice = Resynthesis(model, dials)
    rows = {
        "source": judge_all([(r.text, r.source.astype(np.float32) / 32768, 16_000) for r in replies], processes),
        "copy": judge_all([(r.text, voice.copy(r.source), 24_000) for r in replies], processes),
    }
    for rate_hz in rates_hz:
        jobs = [(r.text, voice.through_codes(r.source, rate_hz)[0], 24_000) for r in replies]
        rows[f"codes_{rate_hz:g}_hz"] = judge_all(jobs, processes)
    return {name: verdict.word_error_rate for name, verdict in rows.items()}


def run(
    speak: Speak,
    sentences: int,
    processes: int = 1,
    choice: JudgeChoice = POCKETSPHINX,
    *,
    opinions: bool = False,
) -> dict[str, object]:
    """`wer` of the replies as `speak` speaks them and `source_wer` of the source voice on the same; with `opinions`
    also predicted MOS and likeness of both to the source voice. Raises JudgeError."""
    replies = held_out_replies(sentences)
    spoken = [speak(reply.text) for reply in replies]
    sources = [(reply.source.astype(np.float32) / 32768, 16_000) for reply in replies]
    texts = [reply.text for reply in replies]
    verdicts = [
        judge_all([(text, *sound) for text, sound in zip(texts, sounds, strict=True)], processes, choice)
        for sounds in (spoken, sources)
    ]
    report: dict[str, object] = {
        "judge": choice.name,
        "sentences": len(replies),
        "wer": verdicts[0].word_error_rate,
        "source_wer": verdicts[1].word_error_rate,
    }
    if not opinions:
        return report
    ours, source = voice_embeddings(spoken), voice_embeddings(sources)
    return {
        **report,
        "mos": round(predicted_mos(spoken), 3),
        "source_mos": round(predicted_mos(sources), 3),
        "similarity": round(similarity(ours, source), 3),
        "source_similarity": round(own_similarity(source), 3),
    }
