"""Training of the end-of-turn head on a finished audio encoder.

Examples are moments of silence behind speech, as the turn detector asks about them: the end of a turn, and places
inside turns at which people pause (the quiet gaps between words), both followed by 0.1 to 0.45 s of the clip's own
background. The encoder is not trained, so its frames are computed once.

A part of the recordings is kept aside: what the head makes of their pauses is stored with it, so that it can say how
many pauses look less finished than the one at hand. That means the same for every head, whatever its encoder.
"""

from __future__ import annotations

import math
import random
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
from training.features import Augmenter, Clip, held_out, load_recordings, load_store, noise_bank, scale
from training.precision import autocast
from training.toml_config import load_config

GAP_FRAMES = 4
EDGE_FRAMES = 40
"""A gap is this many quiet mel frames (10 ms) at least, and this far from either end of the speech."""
SILENCE_FRAMES = (10, 45)
"""Of mel: the detector asks after 160 ms without voice, and a voice fades before or after the detector says so."""
LEAD_FRAMES = 30
"""What is heard before a turn begins."""
STEPS_OF_PAUSES = 200


class TurnEndTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """speech: store of synthesised turns; clips, labels: recorded orders; model: directory whose `config.json` and
    `encoder.safetensors` are listened with; encoder: other weights for it, where not empty; weights: file to write."""

    speech: str
    clips: str
    labels: str
    model: str
    weights: str
    encoder: str = ""
    recorded_rounds: int = 6
    synthetic_clips: int = 1800
    steps: int = 1500
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.4
    batch: int = 128
    seed: int = 21


@dataclass(frozen=True)
class Example:
    """mel [frames, 80], the encoder's input up to the moment; done: whether the turn ends there."""

    mel: Tensor
    done: bool


@dataclass(frozen=True)
class Moments:
    """means float32 [n, spans, width], what the head keeps of the frames up to a moment; done float32 [n]."""

    means: Tensor
    done: Tensor


def load_encoder(directory: Path, weights: Path) -> BlockCausalEncoder:
    """The audio encoder of a directory laid out like `models/embedded`, with these weights."""
    raw = msgspec.json.decode((directory / "config.json").read_bytes(), type=dict[str, msgspec.Raw])
    agogic = msgspec.json.decode(raw["agogic"], type=dict[str, msgspec.Raw])
    encoder = BlockCausalEncoder(msgspec.json.decode(agogic["encoder"], type=EncoderConfig))
    encoder.load_state_dict(load_packed(weights))
    return encoder.requires_grad_(False).eval()


def kept_aside(name: str) -> bool:
    """The fifth of the recordings that tells how pauses look to a head that was not trained on them."""
    return int(name[:4], 16) % 5 == 1


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
        return np.full((frames, mel.shape[1]), -8.0, np.float32) + np.random.default_rng(rng.randrange(1 << 30)).normal(
            0, 0.2, (frames, mel.shape[1])
        ).astype(np.float32)
    quietest = places[np.argsort(mel[places].astype(np.float32).mean(1))[: max(10, len(places) // 2)]]
    return mel[[quietest[rng.randrange(len(quietest))] for _ in range(frames)]].astype(np.float32)


class Disguise(Augmenter):
    """The same turn by another voice, at another speed, in another room."""

    def warp(self, x: Tensor) -> Tensor:
        """[frames, 80] log10 power, of other length."""
        return self._warp(x)


class Plain(Disguise):
    """Changes nothing."""

    def __init__(self) -> None:
        super().__init__([], random.Random(0))

    def warp(self, x: Tensor) -> Tensor:
        return x

    def colour(self, x: Tensor, mild: bool) -> Tensor:
        return scale(x)


def moments_of(clip: Clip, rng: random.Random, augment: Disguise, most_gaps: int = 4) -> list[Example]:
    """A clip's end and some of its gaps."""
    mel = augment.warp(torch.from_numpy(clip.mel.astype(np.float32))).numpy()
    start, end, quiet = speech_bounds(mel)
    inner = gaps(quiet, start, end)
    places = [(end, True)] + [(place, False) for place in rng.sample(inner, min(most_gaps, len(inner)))]
    found = []
    for place, done in places:
        silence = background(mel, quiet, rng.randint(*SILENCE_FRAMES), rng)
        heard = np.concatenate((mel[max(0, start - rng.randint(10, LEAD_FRAMES)) : place], silence))
        found.append(Example(augment.colour(torch.from_numpy(heard), rng.random() < 0.5), done))
    return found


@torch.inference_mode()
def encode(encoder: BlockCausalEncoder, examples: list[Example], batch: int = 24) -> Moments:
    """What a head would keep of each example's frames, the open block as if the clip ended there."""
    head = TurnEnd(TurnEndConfig(encoder.config.hidden_size))
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].mel))
    means = torch.zeros(len(examples), *head.initial_state(1).means.shape[1:])
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        mels = [examples[index].mel for index in rows]
        lengths = torch.tensor([len(mel) for mel in mels])
        padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
        with autocast():
            encoded = encoder(padded, lengths)
        for index, row, length in zip(rows, encoded, (-(-lengths // 4)).tolist(), strict=True):
            means[index] = head.step(row[None, :length].float(), head.initial_state(1))[1].means[0]
        if begin // batch % 50 == 0:
            print(f"encoded {begin + len(rows)} of {len(order)} moments", flush=True)
    return Moments(means, torch.tensor([float(example.done) for example in examples]))


def train(moments: Moments, config: TurnEndTraining) -> TurnEnd:
    """Fits a head; wrongly ending a turn costs as much as waiting: both kinds weigh the same."""
    torch.manual_seed(config.seed)
    head = TurnEnd(TurnEndConfig(moments.means.shape[2]))
    flat = moments.means.flatten(1)
    middle, spread = flat.mean(0), flat.std(0) + 1e-3
    even = (flat - middle) / spread
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    weight = torch.where(moments.done > 0.5, 0.5 / moments.done.mean(), 0.5 / (1 - moments.done.mean()))
    loss_sum = 0.0
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        rows = torch.randint(len(even), (config.batch,))
        means = F.dropout(even[rows], config.dropout).unflatten(1, moments.means.shape[1:])
        loss = F.binary_cross_entropy_with_logits(head.judge(means), moments.done[rows], weight[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss_sum += float(loss.detach())
        if step % 200 == 199:
            print(f"step {step + 1}: loss {loss_sum / 200:.3f}", flush=True)
            loss_sum = 0.0
    with torch.no_grad():  # the head is to read means as they are
        head.mix.bias -= head.mix.weight @ (middle / spread)
        head.mix.weight /= spread
    return head.requires_grad_(False).eval()


@torch.inference_mode()
def calibrated(head: TurnEnd, moments: Moments) -> TurnEnd:
    """The same head, which knows how the pauses among `moments` look to it."""
    paused = moments.done < 0.5
    pauses = head.judge(moments.means[paused])
    steps = torch.linspace(0, 1, STEPS_OF_PAUSES + 1)
    quantiles = tuple(round(float(q), 4) for q in torch.quantile(pauses, steps))
    knowing = TurnEnd(msgspec.structs.replace(head.config, pauses=quantiles))
    knowing.load_state_dict(head.state_dict())
    return knowing.requires_grad_(False).eval()


def plain_moments(clips: list[Clip], seed: int = 1) -> list[Example]:
    """All that these recordings have to ask about, as they are."""
    rng = random.Random(seed)
    return [moment for clip in clips for moment in moments_of(clip, rng, Plain(), most_gaps=8)]


def main(config_path: Path) -> None:
    """Stage `turn_end`: examples, frames, head, and how it does on the held-out recordings."""
    config = load_config(config_path, TurnEndTraining)
    rng = random.Random(config.seed)
    torch.manual_seed(config.seed)
    model = Path(config.model)
    encoder = load_encoder(model, Path(config.encoder) if config.encoder else model / "encoder.safetensors")
    store = load_store(Path(config.speech))
    recordings = [clip for clip, _ in load_recordings(Path(config.clips), Path(config.labels))]
    augment = Disguise(noise_bank(store, rng), rng)
    known = [clip for clip in recordings if not held_out(clip.name) and not kept_aside(clip.name)]
    chosen = rng.sample(store, min(config.synthetic_clips, len(store))) + known * config.recorded_rounds
    examples = [moment for clip in chosen for moment in moments_of(clip, rng, augment)]
    head = train(encode(encoder, examples), config)
    aside = plain_moments([clip for clip in recordings if kept_aside(clip.name)])
    head = calibrated(head, encode(encoder, aside))
    save_network(head, head.config, Path(config.weights))
    report(head, encode(encoder, plain_moments([clip for clip in recordings if held_out(clip.name)])))


@torch.inference_mode()
def report(head: TurnEnd, moments: Moments) -> None:
    certainty = head.certainty(head.judge(moments.means))
    for threshold in (0.5, 0.8, 0.9, 0.95, 0.98):
        cut = (certainty > threshold)[moments.done < 0.5].float().mean()
        ended = (certainty > threshold)[moments.done > 0.5].float().mean()
        print(f"certainty over {threshold}: {ended:.1%} of the ends, {cut:.1%} of the pauses", flush=True)
