"""What it costs and saves to use a prefix's keys and values for several steps (`InfillDials.prefix_every`).

Errors are those of the golden toy weights, against making the prefix anew at every step; times are of untrained weights
of a size at which products count. Both are of the official schedule: 15 steps with guidance.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.golden_files import Golden
from benchmarks.golden_speech import TINY_FLOW
from benchmarks.stream_costs import INFILL_FRAMES, infill, infill_subject
from streaming.flow import Voicebox
from streaming.infill import InfillDecoder, InfillDials, PromptVoice

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "flexicodec"
EVERY = (1, 2, 3, 5)
WHOLE_FRAMES = 100_000


@torch.inference_mode()
def run(rounds: int) -> dict[str, object]:
    """Of each `prefix_every`: mel_error, the relative error of the mel, and time_ratio, both against 1; and how far
    working in chunks is from the one-shot decode, as a measure of what an error of that size means."""
    golden = Golden(GOLDEN)
    voicebox = Voicebox(TINY_FLOW)
    voicebox.load_state_dict(golden.weights("voicebox_tiny"))
    tensors = golden["voicebox_tiny"]
    prompt = PromptVoice(tensors["codes"][0, : tensors["prompt"].shape[1] // 4], tensors["prompt"][0])
    codes = torch.randint(256, (INFILL_FRAMES,), generator=torch.Generator().manual_seed(0)).tolist()

    def mel(dials: InfillDials) -> Tensor:
        return infill(InfillDecoder(voicebox, dials), prompt, codes)

    anew = mel(InfillDials(prefix_every=1))
    whole = mel(InfillDials(prefix_every=1, chunk_frames=(WHOLE_FRAMES,)))
    times = _times(rounds)
    rows = [
        {
            "prefix_every": every,
            "mel_error": round(_error(mel(InfillDials(prefix_every=every)), anew), 5),
            "time_ratio": round(times[every] / times[1], 3),
        }
        for every in EVERY
    ]
    return {"rows": rows, "chunks_mel_error": round(_error(anew, whole), 5)}


def _error(mel: Tensor, expected: Tensor) -> float:
    return float((mel - expected).norm() / expected.norm())


def _times(rounds: int) -> dict[int, float]:
    voicebox, prompt, codes = infill_subject()
    least = dict.fromkeys(EVERY, float("inf"))
    for _ in range(rounds):
        for every in EVERY:
            decoder = InfillDecoder(voicebox, InfillDials(prefix_every=every))
            started = time.process_time()
            infill(decoder, prompt, codes)
            least[every] = min(least[every], time.process_time() - started)
    return least
