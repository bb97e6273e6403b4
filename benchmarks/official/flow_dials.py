"""What each dial of the flow decoders saves, by arithmetic, and what it costs, as the relative error of the mel.

The official decoder's errors are those of the golden toy weights, against its usual dials; the embedded one's those of
the embedded voice, saying a reply of its own, against many steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.golden.files import COMMITTED, Golden
from benchmarks.golden.speech import TINY_FLOW
from benchmarks.streams.costs import INFILL_FRAMES, infill
from streaming.speaking.flow import Voicebox
from streaming.speaking.flow_decoder import FlowDecoder
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice
from worker.loading import load_model
from worker.turn import TurnSettings, ask_by_text
from worker.voices.embedded import EmbeddedVoice

DIALS: dict[str, tuple[int, ...]] = {
    "steps": (10, 8, 6, 4),
    "guided_steps": (10, 8, 5, 0),
    "context_frames": (12, 6),
    "prefix_every": (1, 5),
}
EMBEDDED_STEPS, EMBEDDED_MANY = (1, 2, 4, 8), 32


@torch.inference_mode()
def run() -> dict[str, object]:
    """Of each value of each dial, the others as usual: mel_error, and work_ratio, frames through the network."""
    golden = Golden(COMMITTED / "flexicodec")
    voicebox = Voicebox(TINY_FLOW)
    voicebox.load_state_dict(golden.weights("voicebox_tiny"))
    tensors = golden["voicebox_tiny"]
    prompt = PromptVoice(tensors["codes"][0, : tensors["prompt"].shape[1] // 4], tensors["prompt"][0])
    codes = torch.randint(
        TINY_FLOW.codebook_size, (INFILL_FRAMES,), generator=torch.Generator().manual_seed(0)
    ).tolist()

    def mel(dials: InfillDials) -> Tensor:
        return infill(InfillDecoder(voicebox, dials), prompt, codes)

    usual = InfillDials()
    expected = mel(usual)
    rows = []
    for dial, values in DIALS.items():
        for value in values:
            changed = {"steps": value, "guided_steps": value} if dial == "steps" else {dial: value}
            dials = replace(usual, **changed)
            error = float((mel(dials) - expected).norm() / expected.norm())
            ratio = _frames(dials) / _frames(usual)
            rows.append({"dial": dial, "value": value, "mel_error": round(error, 4), "work_ratio": round(ratio, 3)})
    return {"official": rows, "embedded": _embedded()}


def _frames(dials: InfillDials) -> int:
    """12.5 Hz frames that go through the network for a chunk of the usual length."""
    target = dials.chunk_frames[-1] + dials.look_ahead_frames
    total = 0
    for step in range(dials.steps):
        total += target + (dials.context_frames if step % dials.prefix_every == 0 else 0)
        total += target if dials.guidance > 0 and step < dials.guided_steps else 0
    return total


def _embedded() -> list[dict[str, float]]:
    model = load_model("embedded")
    voice = model.networks.voice
    assert isinstance(voice, EmbeddedVoice)
    tokens = ask_by_text(model, "one large latte please", TurnSettings()).tokens
    codes = torch.tensor([[token.code for token in tokens]])
    durations = torch.tensor([[token.duration_frames for token in tokens]])

    def mel(steps: int) -> Tensor:
        return FlowDecoder(voice.flow.voicebox, replace(voice.flow.dials, steps=steps), voice.flow.plan)(
            codes, durations
        )

    many = mel(EMBEDDED_MANY)
    return [
        {"steps": steps, "mel_error": round(float((mel(steps) - many).norm() / many.norm()), 4)}
        for steps in EMBEDDED_STEPS
    ]
