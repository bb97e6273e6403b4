"""What it costs and saves to use a prefix's keys and values again: for several steps (`InfillDials.prefix_every`), and
the prompt's part of them for all chunks and answers (`InfillDials.keep_prompt`).

Errors are those of the golden toy weights, against making everything anew at every step; times are of untrained weights
of a size at which products count, of answers after the first one. Both are of the official 15 steps with guidance, in
the chunks that are shipped.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.golden.files import COMMITTED, Golden
from benchmarks.golden.speech import TINY_FLOW
from benchmarks.streams.costs import INFILL_FRAMES, WHOLE_FRAMES, infill, infill_subject
from streaming.speaking.flow import Voicebox
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice

EVERY = (1, 2, 3, 5)
REUSE = [(every, keep) for keep in (False, True) for every in EVERY]
"""`prefix_every` and `keep_prompt`; the first is the official computation."""


@torch.inference_mode()
def run(rounds: int) -> dict[str, object]:
    """Of each `prefix_every`, with and without `keep_prompt`: mel_error, the relative error of the mel, and time_ratio,
    both against 1 without; and how far working in chunks is from the one-shot decode, as a measure of what an error of
    that size means."""
    golden = Golden(COMMITTED / "flexicodec")
    voicebox = Voicebox(TINY_FLOW)
    voicebox.load_state_dict(golden.weights("voicebox_tiny"))
    tensors = golden["voicebox_tiny"]
    prompt = PromptVoice(tensors["codes"][0, : tensors["prompt"].shape[1] // 4], tensors["prompt"][0])
    codes = torch.randint(256, (INFILL_FRAMES,), generator=torch.Generator().manual_seed(0)).tolist()

    def mel(dials: InfillDials) -> Tensor:
        return infill(InfillDecoder(voicebox, dials), prompt, codes)

    anew = mel(InfillDials(prefix_every=1, keep_prompt=False))
    whole = mel(InfillDials(prefix_every=1, keep_prompt=False, chunk_frames=(WHOLE_FRAMES,)))
    times = _times(rounds)
    rows = [
        {
            "prefix_every": every,
            "keep_prompt": keep,
            "mel_error": round(_error(mel(InfillDials(prefix_every=every, keep_prompt=keep)), anew), 5),
            "time_ratio": round(times[every, keep] / times[1, False], 3),
        }
        for every, keep in REUSE
    ]
    return {"rows": rows, "chunks_mel_error": round(_error(anew, whole), 5)}


def _error(mel: Tensor, expected: Tensor) -> float:
    return float((mel - expected).norm() / expected.norm())


def _times(rounds: int) -> dict[tuple[int, bool], float]:
    voicebox, prompt, codes = infill_subject()
    decoders = {
        (every, keep): InfillDecoder(voicebox, InfillDials(prefix_every=every, keep_prompt=keep))
        for every, keep in REUSE
    }
    for decoder in decoders.values():
        decoder.begin(prompt)
    least = dict.fromkeys(decoders, float("inf"))
    for _ in range(rounds):
        for reuse, decoder in decoders.items():
            started = time.process_time()
            infill(decoder, prompt, codes)
            least[reuse] = min(least[reuse], time.process_time() - started)
    return least
