"""Are the joints between chunks audible? Chunked decoding against the one-shot decode, of weights that see everything.

    python -m benchmarks.streams.seams [--golden DIR]      toy weights from DIR/flexicodec, random codes

`seam_ratio`: log-mel distance to the one-shot decode in the two frames at a joint, over the distance elsewhere (1 means
that a joint differs from the whole no more than any other place). `clicks`: sample steps at joints larger than any that
the one-shot sound makes nearby.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from benchmarks.golden.files import COMMITTED, Golden
from benchmarks.golden.speech import TINY_FLOW
from streaming.speaking.flow import Voicebox
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice
from streaming.speaking.mel24k import HOP_SAMPLES, Mel24k
from streaming.speaking.vocoder_window import VocoderStream, WindowDials
from streaming.speaking.vocos import Vocos, VocosConfig

CLICK_REACH_SAMPLES = 8
NEARBY_SAMPLES = 2_400
CLICK_FACTOR = 1.5
WHOLE = 100_000


@dataclass(frozen=True)
class Joined:
    """An utterance decoded in chunks: samples [N] and where each chunk but the last ends."""

    sound: Tensor
    joints: list[int]


def seam_ratio(joined: Joined, whole: Tensor) -> float:
    """Mean log-mel distance at the joints over the mean distance elsewhere; whole [N] samples."""
    mel = Mel24k()
    distance = (mel(joined.sound[None]) - mel(whole[None]))[0].abs().mean(1)
    at_joint = torch.zeros(len(distance), dtype=torch.bool)
    for joint in joined.joints:
        frame = joint // HOP_SAMPLES
        at_joint[max(0, frame - 1) : frame + 1] = True
    elsewhere = distance[~at_joint].mean()
    return float(distance[at_joint].mean() / elsewhere) if float(elsewhere) > 0 else 1.0


def clicks(joined: Joined, whole: Tensor) -> int:
    """How many joints hold a step between samples that the one-shot sound does not make within 0.1 s."""
    steps, usual = joined.sound.diff().abs(), whole.diff().abs()
    count = 0
    for joint in joined.joints:
        here = steps[max(0, joint - CLICK_REACH_SAMPLES) : joint + CLICK_REACH_SAMPLES]
        nearby = usual[max(0, joint - NEARBY_SAMPLES) : joint + NEARBY_SAMPLES]
        count += bool(here.max() > CLICK_FACTOR * nearby.max())
    return count


def decode_in_chunks(
    decoder: InfillDecoder, vocoder: Vocos, window: WindowDials, prompt: PromptVoice, codes: Sequence[tuple[int, int]]
) -> Joined:
    """The sound of (code, duration) pairs, as a listener would get it."""
    stream, sound = decoder.begin(prompt), VocoderStream(vocoder, window)
    pieces: list[Tensor] = []

    def render() -> None:
        while stream.ready:
            chunk = decoder.render([stream])[0]
            pieces.append(sound.push(chunk.mel, chunk.ahead))

    for code, duration in codes:
        stream.push(code, duration)
        render()
    stream.end()
    render()
    pieces.append(sound.flush())
    joints = torch.tensor([len(piece) for piece in pieces[:-1]]).cumsum(0)
    return Joined(torch.cat(pieces), [int(joint) for joint in joints])


def run(golden_dir: Path = COMMITTED, utterances: int = 6, codes: int = 90, steps: int = 3) -> dict[str, object]:
    """Means over random utterances, with the schedule as shipped."""
    golden = Golden(golden_dir / "flexicodec")
    flow, vocoder = Voicebox(TINY_FLOW), Vocos(VocosConfig(dim=64, hidden=128, num_layers=3))
    flow.load_state_dict(golden.weights("voicebox_tiny"))
    vocoder.load_state_dict(golden.weights("vocos_tiny"))
    tensors = golden["voicebox_tiny"]
    prompt = PromptVoice(tensors["codes"][0, : tensors["prompt"].shape[1] // 4], tensors["prompt"][0])
    chunked = InfillDecoder(flow.requires_grad_(False), InfillDials(steps=steps))
    official = InfillDials(steps=steps, chunk_frames=(WHOLE,), prefix_every=1, keep_prompt=False)
    at_once = InfillDecoder(flow, official)
    ratios, found, joints = [], 0, 0
    for seed in range(utterances):
        generator = torch.Generator().manual_seed(seed)
        spoken = torch.randint(TINY_FLOW.codebook_size, (codes,), generator=generator).tolist()
        durations = torch.randint(1, 4, (codes,), generator=generator).tolist()
        pairs = list(zip(spoken, durations, strict=True))
        whole = decode_in_chunks(
            at_once, vocoder, WindowDials(left_frames=WHOLE, right_frames=WHOLE), prompt, pairs
        ).sound
        joined = decode_in_chunks(chunked, vocoder, WindowDials(), prompt, pairs)
        ratios.append(seam_ratio(joined, whole))
        found += clicks(joined, whole)
        joints += len(joined.joints)
    return {"seam_ratio": round(statistics.mean(ratios), 3), "clicks": found, "joints": joints}


def main() -> None:
    parser = argparse.ArgumentParser(description="Are the joints between chunks audible?")
    parser.add_argument("--golden", type=Path, default=COMMITTED)
    torch.set_num_threads(1)
    print(msgspec.json.encode(run(parser.parse_args().golden)).decode())


if __name__ == "__main__":
    main()
