"""Training of the end-of-turn head on a finished audio encoder.

Examples are moments of silence behind speech: the end of a turn, and places inside turns at which people pause (the
quiet gaps between words), both followed by the clip's own background for 0.1 to 1.5 s. The encoder is not trained, so
its frames are computed once.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoints.packing import load_packed
from models.checkpoints.voice_files import save_network
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig
from streaming.hearing.turn_end import TurnEnd, TurnEndConfig
from training.features import Augmenter, held_out, load_recordings, load_store, noise_bank, scale
from training.toml_config import load_config

FRAMES_KEPT = 100
"""25 Hz frames before the moment that an example keeps: 4 s."""
GAP_FRAMES = 5
EDGE_FRAMES = 40
"""A gap is this many quiet mel frames (10 ms) at least, and this far from either end of the speech."""
LONGEST_SILENCE_FRAMES, SHORTEST_SILENCE_FRAMES = 150, 10


class TurnEndTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """speech: store of synthesised turns; clips, labels: recorded orders; encoder: directory whose `config.json` and
    `encoder.safetensors` are listened with; weights: file to write."""

    speech: str
    clips: str
    labels: str
    encoder: str
    weights: str
    recorded_rounds: int = 12
    synthetic_clips: int = 2500
    minutes: float = 4.0
    learning_rate: float = 2e-3
    batch: int = 128
    seed: int = 21


@dataclass(frozen=True)
class Moments:
    """frames float16 [n, FRAMES_KEPT, width], older ones zero; done float32 [n]; silence_frames int64 [n] of mel."""

    frames: Tensor
    done: Tensor
    silence_frames: Tensor


def load_encoder(directory: Path) -> BlockCausalEncoder:
    """The audio encoder of a directory laid out like `models/embedded`."""
    raw = msgspec.json.decode((directory / "config.json").read_bytes(), type=dict[str, msgspec.Raw])
    agogic = msgspec.json.decode(raw["agogic"], type=dict[str, msgspec.Raw])
    encoder = BlockCausalEncoder(msgspec.json.decode(agogic["encoder"], type=EncoderConfig))
    encoder.load_state_dict(load_packed(directory / "encoder.safetensors"))
    return encoder.requires_grad_(False).eval()


def speech_bounds(mel: np.ndarray) -> tuple[int, int, np.ndarray]:
    """First and last frame of speech in log10 power [frames, 80], and which frames are quiet, bool [frames]."""
    loudness = np.log10(np.power(10.0, mel.astype(np.float32)).mean(axis=1))
    low, high = np.percentile(loudness, (5, 95))
    loud = np.flatnonzero(loudness > low + 0.35 * (high - low))
    smooth = np.convolve(loudness, np.ones(3) / 3, mode="same")
    return int(loud[0]), int(loud[-1]) + 1, smooth < low + 0.3 * (high - low)


def gaps(quiet: np.ndarray, start: int, end: int) -> list[int]:
    """Middles of the quiet gaps inside speech, where somebody could stop to think."""
    found, run = [], 0
    for place in range(start + EDGE_FRAMES, end - EDGE_FRAMES):
        run = run + 1 if quiet[place] else 0
        if run and (place + 1 >= end - EDGE_FRAMES or not quiet[place + 1]) and run >= GAP_FRAMES:
            found.append(place - run // 2)
    return found


def background(mel: np.ndarray, quiet: np.ndarray, frames: int, rng: random.Random) -> np.ndarray:
    """So many frames like the clip's quiet ones, or silence where it has none."""
    places = np.flatnonzero(quiet)
    if len(places) < 10:
        return np.full((frames, mel.shape[1]), -8.0, np.float32) + np.random.default_rng(
            rng.randrange(1 << 30)
        ).normal(0, 0.2, (frames, mel.shape[1])).astype(np.float32)
    quietest = places[np.argsort(mel[places].astype(np.float32).mean(1))[: max(10, len(places) // 2)]]
    return mel[[quietest[rng.randrange(len(quietest))] for _ in range(frames)]].astype(np.float32)


def silence_frames(rng: random.Random) -> int:
    """How long it has been quiet: short silences, which decide, are as frequent as all longer ones."""
    return round(math.exp(rng.uniform(math.log(SHORTEST_SILENCE_FRAMES), math.log(LONGEST_SILENCE_FRAMES))))


def moments_of(
    mel: np.ndarray, rng: random.Random, augment: Augmenter, most_gaps: int = 2
) -> list[tuple[Tensor, bool, int]]:
    """(encoder input [frames, 80], done, silent mel frames) of a clip's end and of some of its gaps."""
    start, end, quiet = speech_bounds(mel)
    inner = gaps(quiet, start, end)
    places = [(end, True)] + [(place, False) for place in rng.sample(inner, min(most_gaps, len(inner)))]
    found = []
    for place, done in places:
        silent = silence_frames(rng)
        heard = np.concatenate((mel[max(0, start - 20) : place].astype(np.float32), background(mel, quiet, silent, rng)))
        found.append((augment.colour(torch.from_numpy(heard), rng.random() < 0.5), done, silent))
    return found


@torch.inference_mode()
def encode(encoder: BlockCausalEncoder, examples: list[tuple[Tensor, bool, int]], batch: int = 24) -> Moments:
    """The encoder's last frames of each example, the open block as if the clip ended there."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index][0]))
    frames = torch.zeros(len(examples), FRAMES_KEPT, encoder.config.hidden_size, dtype=torch.float16)
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        mels = [examples[index][0] for index in rows]
        lengths = torch.tensor([len(mel) for mel in mels])
        padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = encoder(padded, lengths)
        for index, row, length in zip(rows, encoded, (-(-lengths // 4)).tolist(), strict=True):
            kept = row[max(0, length - FRAMES_KEPT) : length]
            frames[index, FRAMES_KEPT - len(kept) :] = kept.half()
        if begin // batch % 50 == 0:
            print(f"encoded {begin + len(rows)} of {len(order)} moments", flush=True)
    done = torch.tensor([float(done) for _, done, _ in examples])
    return Moments(frames, done, torch.tensor([silent for _, _, silent in examples]))


def train(moments: Moments, config: TurnEndTraining) -> TurnEnd:
    """Fits a head; wrongly ending a turn costs as much as waiting: both kinds weigh the same."""
    torch.manual_seed(config.seed)
    head = TurnEnd(TurnEndConfig(moments.frames.shape[2]))
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.02)
    weight = torch.where(moments.done > 0.5, 0.5 / moments.done.mean(), 0.5 / (1 - moments.done.mean()))
    started, step, seconds, loss_sum = time.monotonic(), 0, 60 * config.minutes, 0.0
    while (progress := (time.monotonic() - started) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        rows = torch.randint(len(moments.done), (config.batch,))
        frames = moments.frames[rows].float()
        frames = F.dropout(frames, 0.1) + 0.1 * torch.randn_like(frames)
        loss = F.binary_cross_entropy_with_logits(head(frames)[:, -1], moments.done[rows], weight[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        step, loss_sum = step + 1, loss_sum + float(loss.detach())
        if step % 200 == 0:
            print(f"step {step} ({progress:.0%}): loss {loss_sum / 200:.3f}", flush=True)
            loss_sum = 0.0
    return head.requires_grad_(False).eval()


def main(config_path: Path) -> None:
    """Stage `turn_end`: examples, frames, head, and how it does on the held-out recordings."""
    config = load_config(config_path, TurnEndTraining)
    rng = random.Random(config.seed)
    torch.manual_seed(config.seed)
    encoder = load_encoder(Path(config.encoder))
    store = [clip for clip in load_store(Path(config.speech)) if clip.seed is not None]
    recordings = [clip for clip, _ in load_recordings(Path(config.clips), Path(config.labels))]
    augment = Augmenter(noise_bank(store, rng), rng)
    known = [clip for clip in recordings if not held_out(clip.name)]
    chosen = rng.sample(store, min(config.synthetic_clips, len(store))) + known * config.recorded_rounds
    examples = [moment for clip in chosen for moment in moments_of(clip.mel, rng, augment)]
    head = train(encode(encoder, examples), config)
    save_network(head, head.config, Path(config.weights))
    plain = [
        moment
        for clip in recordings
        if held_out(clip.name)
        for moment in moments_of(clip.mel, random.Random(1), Plain(), most_gaps=4)
    ]
    report(head, encode(encoder, plain))


class Plain(Augmenter):
    """Changes nothing."""

    def __init__(self) -> None:
        super().__init__([], random.Random(0))

    def colour(self, x: Tensor, mild: bool) -> Tensor:
        return scale(x)


@torch.inference_mode()
def report(head: TurnEnd, moments: Moments) -> None:
    probability = head(moments.frames.float())[:, -1].sigmoid()
    for threshold in (0.3, 0.5, 0.7, 0.9):
        cut = (probability > threshold)[moments.done < 0.5].float().mean()
        ended = (probability > threshold)[moments.done > 0.5].float().mean()
        print(f"threshold {threshold}: {ended:.1%} of the ends, {cut:.1%} of the pauses")
