"""Training of the backchannel head on a finished audio encoder: does somebody who speaks while the agent speaks want
the word?

It is a network like the end-of-turn head, asked at the same moments: where a voice pauses. What it tells apart are
short utterances: "mm-hm", "yeah", "okay", coughs, laughs and clicks on one side, and on the other what stops somebody
("no", "wait"), the beginnings of sentences, and recorded phrases and orders of people.

A part of the latter is kept aside. The head stores what it makes of them and answers with a rank: the share of
interruptions that sound less like a backchannel.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from models.checkpoints.voice_files import save_network
from streaming.hearing.turn_end import TurnEnd
from training.features import Clip, held_out, load_recordings, log_power, noise_bank, read_mono
from training.interjections import BACKCHANNELS, INTERRUPTIONS, noises
from training.speech_data import espeak, festival, flite, hibari
from training.toml_config import load_config
from training.turn_end import (
    SILENCE_FRAMES,
    Disguise,
    Example,
    Moments,
    TurnEndTraining,
    background,
    calibrated,
    encode,
    kept_aside,
    load_encoder,
    speech_bounds,
    train,
)
from training.world import sample_turn

LEAD_FRAMES = (22, 40)
"""Of mel: the padding before a turn, 300 ms, and what the detector takes to notice a voice."""
START_FRAMES = (30, 110)
"""So much of a recorded order is an interruption whose speaker pauses."""


class BackchannelTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """people: folders of recorded phrases; clips, labels: recorded orders; model, weights: as for the end-of-turn head.
    interjections: a folder with an index.json, made by `benchmarks.dialogue.interjections` with voices that it may be
    trained on, "": none. Counts are of each synthesiser and side, noises of sounds that are no words; rounds: how often
    each is disguised, interjection_rounds: each of that folder."""

    people: str
    clips: str
    labels: str
    model: str
    weights: str
    interjections: str = ""
    interjection_rounds: int = 6
    espeak_clips: int = 150
    flite_clips: int = 50
    festival_clips: int = 0
    hibari_clips: int = 300
    noises: int = 200
    people_clips: int = 450
    starts: int = 1
    rounds: int = 1
    steps: int = 2000
    dropout: float = 0.6
    seed: int = 31


@dataclass(frozen=True)
class Short:
    """Something short that is said or heard; lets_go_on: nobody who says it wants the word."""

    clip: Clip
    lets_go_on: bool


def spoken(texts: tuple[str, ...], config: BackchannelTraining, rng: random.Random) -> list[np.ndarray]:
    """int16 [N] at 16 kHz each, by all voices of the synthesisers that the ear was trained on."""
    drawn = [rng.choice(texts) for _ in range(config.espeak_clips)]
    sounds = [espeak(text, rng)[0] for text in drawn]
    plain = tuple(text for text in texts if "[" not in text)
    sounds += [flite(rng.choice(plain), rng)[0] for _ in range(config.flite_clips)]
    for first in range(0, config.festival_clips, 25):
        batch = [rng.choice(plain) for _ in range(min(25, config.festival_clips - first))]
        sounds += [sound for sound, _ in festival(batch, rng)]
    return sounds + [hibari(rng.choice(plain), rng)[0] for _ in range(config.hibari_clips)]


def interruptions(count: int, rng: random.Random) -> tuple[str, ...]:
    """What stops somebody, and beginnings of what customers say."""
    begun = [" ".join(sample_turn(rng).user.split()[: rng.randint(1, 4)]) for _ in range(count)]
    return (*INTERRUPTIONS * max(1, count // len(INTERRUPTIONS)), *begun)


def clip_of(sound: np.ndarray, name: str = "") -> Clip:
    samples = torch.from_numpy(sound.astype(np.float32) / 32768)
    return Clip(log_power(samples).to(torch.float16).numpy(), "", None, name)


def moment_of(short: Short, rng: random.Random, augment: Disguise, frames: int | None = None) -> Example:
    """Where the voice pauses behind it; frames: behind so much of it."""
    mel = augment.warp(torch.from_numpy(short.clip.mel.astype(np.float32))).numpy()
    start, end, quiet = speech_bounds(mel)
    if frames is not None:
        end = min(end, start + frames)
    before = background(mel, quiet, rng.randint(*LEAD_FRAMES), rng)
    after = background(mel, quiet, rng.randint(*SILENCE_FRAMES), rng)
    heard = np.concatenate((before, mel[start:end], after))
    return Example(augment.colour(torch.from_numpy(heard), rng.random() < 0.5), short.lets_go_on)


def recorded_people(folder: Path, count: int, rng: random.Random) -> list[Short]:
    files = rng.sample(sorted(folder.glob("*/*.opus")), count)
    return [Short(clip_of(read_mono(path) * 32767, path.stem), lets_go_on=False) for path in files]


def made_before(folder: Path) -> list[Short]:
    """What `benchmarks.dialogue.interjections` has made of words, by voices that are trained on."""
    entries = [entry for entry in json.loads((folder / "index.json").read_text()) if entry["voice"]]
    sounds = [read_mono(folder / entry["file"]) * 32767 for entry in entries]
    return [
        Short(clip_of(sound), lets_go_on=entry["kind"] == "backchannel")
        for sound, entry in zip(sounds, entries, strict=True)
    ]


def is_aside(short: Short) -> bool:
    """Recorded phrases by people, a fifth, that tell how interruptions look to a head that was not trained on them."""
    return kept_aside(short.clip.name)


def main(config_path: Path) -> None:
    """Stage `backchannel`: sounds, frames, head, and how it does on interruptions kept aside."""
    config = load_config(config_path, BackchannelTraining)
    rng = random.Random(config.seed)
    torch.manual_seed(config.seed)
    model = Path(config.model)
    encoder = load_encoder(model, model / "encoder.safetensors")
    shorts = [Short(clip_of(sound), lets_go_on=True) for sound in spoken(BACKCHANNELS, config, rng)]
    shorts += [Short(clip_of(sound), lets_go_on=True) for sound in noises(config.noises, config.seed)]
    shorts += [Short(clip_of(sound), lets_go_on=False) for sound in spoken(interruptions(150, rng), config, rng)]
    people = recorded_people(Path(config.people), config.people_clips, rng)
    orders = [Short(clip, lets_go_on=False) for clip, _ in load_recordings(Path(config.clips), Path(config.labels))]
    known = [order for order in orders if not held_out(order.clip.name) and not is_aside(order)]
    aside = [short for short in (*people, *orders) if is_aside(short)]
    shorts += [phrase for phrase in people if not is_aside(phrase)]
    voices = made_before(Path(config.interjections)) if config.interjections else []
    print(f"{len(shorts)} sounds, {len(known)} orders, {len(aside)} kept aside", flush=True)
    bank = noise_bank([short.clip for short in shorts if len(short.clip.mel) > 20], rng)
    augment = Disguise(bank, rng)
    examples = [moment_of(short, rng, augment) for short in shorts for _ in range(config.rounds)]
    examples += [moment_of(short, rng, augment) for short in voices for _ in range(config.interjection_rounds)]
    examples += [
        moment_of(order, rng, augment, rng.randint(*START_FRAMES)) for order in known for _ in range(config.starts)
    ]
    settings = TurnEndTraining(
        "", config.clips, config.labels, config.model, config.weights, steps=config.steps, dropout=config.dropout
    )
    known_moments = encode(encoder, examples)
    head = train(known_moments, settings)
    mild = Disguise(bank, random.Random(1))
    kept = encode(encoder, [moment_of(short, rng, mild, rng.randint(*START_FRAMES)) for short in aside])
    head = calibrated(head, kept)
    save_network(head, head.config, Path(config.weights))
    report(head, known_moments, kept)


@torch.inference_mode()
def report(head: TurnEnd, known: Moments, kept: Moments) -> None:
    """What a rank would let go on, of what it was trained on and of what was kept aside."""
    trained, aside = (head.certainty(head.judge(moments.means)) for moments in (known, kept))
    for least in (0.5, 0.8, 0.9, 0.95, 0.98):
        passed = (trained > least)[known.done > 0.5].float().mean()
        stopped = (trained > least)[known.done < 0.5].float().mean()
        wrong = (aside > least).float().mean()
        print(f"over {least}: {passed:.1%} of the backchannels, {stopped:.1%} and {wrong:.1%} of the rest", flush=True)
