"""The voice's recordings as codes: what is read back for training, rate by rate."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from training.speech_codes import load_codes
from training.voice_codes import save_codes
from training.voice_data import VoiceClip


def test_trained_recordings_come_back_with_their_own_codes(tmp_path: Path) -> None:
    parts = ["reply", "held_out_reply", "open"]
    clips = [VoiceClip(f"text {i}", part, 0, 0, [(f"word{i}", 0, 1280)], []) for i, part in enumerate(parts)]
    (tmp_path / "index.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, clips)))
    rng = np.random.default_rng(0)
    codes = {rate: [(rng.integers(0, 1600, n), rng.integers(1, 9, n)) for n in (3, 7, 5)] for rate in (12.5, 4.0)}
    for rate, rows in codes.items():
        save_codes(tmp_path, rate, rows)
    spoken = load_codes(tmp_path)
    assert [(text.text, text.words) for text in spoken] == [
        ("text 0", [("word0", 0, 1280)]),
        ("text 2", [("word2", 0, 1280)]),
    ]
    for text, clip in zip(spoken, (0, 2), strict=True):
        assert text.codes.keys() == codes.keys()
        for rate, (read_codes, read_durations) in text.codes.items():
            assert np.array_equal(read_codes, codes[rate][clip][0])
            assert np.array_equal(read_durations, codes[rate][clip][1])
