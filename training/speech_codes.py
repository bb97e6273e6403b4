"""The speaking voice's recordings as speech codes: what the Talker learns to say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from training import voice_codes
from training.voice_data import SAMPLE_RATE_HZ, VoiceClip

CODEC_HZ = 12.5
TRAINED_PARTS = ("reply", "open")


@dataclass(frozen=True)
class SpokenText:
    """One recording. `codes` maps the requested rate in Hz to (codes [N], durations [N] in 12.5 Hz frames); `words` are
    (word, start, end) in samples at 16 kHz."""

    text: str
    codes: dict[float, tuple[np.ndarray, np.ndarray]]
    words: list[tuple[str, int, int]]

    def words_of_codes(self, rate_hz: float) -> list[set[int]]:
        """For each code the words (counted from 0) that fill at least a third of it; none in a pause."""
        _, durations = self.codes[rate_hz]
        lengths = durations.astype(np.int64) * round(SAMPLE_RATE_HZ / CODEC_HZ)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        return [
            {
                index
                for index, (_, begin, finish) in enumerate(self.words)
                if min(finish, end) - max(begin, start) > min((end - start) / 3, (finish - begin) / 2)
            }
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]


def load_codes(folder: Path) -> list[SpokenText]:
    """Every trained recording of a voice folder with its codes at all rates (`codes_RATE.npz`)."""
    clips = [msgspec.json.decode(line, type=VoiceClip) for line in (folder / "index.jsonl").read_bytes().splitlines()]
    rates = [float(path.stem.removeprefix("codes_")) for path in sorted(folder.glob("codes_*.npz"))]
    stores = {rate: voice_codes.load_codes(folder, rate) for rate in rates}
    return [
        SpokenText(clip.text, {rate: store.clip(index) for rate, store in stores.items()}, clip.words)
        for index, clip in enumerate(clips)
        if clip.part in TRAINED_PARTS
    ]
