"""How speech sounds, as networks trained on listeners' opinions put it: predicted MOS and likeness of two voices.

Judges of evaluations, never of run time; extra `judges`.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence

import numpy as np
import soxr
import torch

from training.judge import JUDGE_RATE_HZ, JudgeError

Recording = tuple[np.ndarray, int]
"""float32 samples [N], mono, and their rate in Hz."""


def _at_16k(recording: Recording) -> np.ndarray:
    samples, rate_hz = recording
    if rate_hz != JUDGE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, JUDGE_RATE_HZ)
    return np.asarray(samples, np.float32)


def predicted_mos(recordings: Sequence[Recording]) -> float:
    """Mean opinion score, 1 to 5, that `distillmos` predicts, over all recordings. Raises JudgeError."""
    if importlib.util.find_spec("distillmos") is None:
        raise JudgeError(
            "predicted MOS needs distillmos: `pip install agogic[judges]`, then "
            "`pip install --no-deps distillmos xls-r-sqa`"
        )
    # It imports torchaudio to read files, which we do not ask it to.
    if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from distillmos import ConvTransformerSQAModel

    model = ConvTransformerSQAModel().eval()
    with torch.no_grad():
        scores = [float(model(torch.from_numpy(_at_16k(recording))[None])) for recording in recordings]
    return sum(scores) / len(scores)


def voice_embeddings(recordings: Sequence[Recording]) -> np.ndarray:
    """One unit vector [recordings, 256] of `resemblyzer` for each. Raises JudgeError."""
    if importlib.util.find_spec("resemblyzer") is None:
        raise JudgeError(
            "speaker similarity needs resemblyzer: `pip install agogic[judges]`, then "
            "`pip install --no-deps resemblyzer`"
        )
    from resemblyzer import VoiceEncoder

    encoder = VoiceEncoder("cpu", verbose=False)
    return np.stack([encoder.embed_utterance(_at_16k(recording)) for recording in recordings])


def similarity(spoken: np.ndarray, source: np.ndarray) -> float:
    """Mean cosine of the embeddings `spoken` [n, d] to the mean of `source` [m, d]."""
    centre = source.mean(0)
    return float((spoken @ centre / np.linalg.norm(spoken, axis=1) / np.linalg.norm(centre)).mean())


def own_similarity(source: np.ndarray) -> float:
    """The same of a voice to itself: each of `source` [m, d] to the mean of the others."""
    return float(np.mean([similarity(source[i : i + 1], np.delete(source, i, axis=0)) for i in range(len(source))]))
