"""`agogic eval barista`: recorded orders in, answers out; a clip counts if the answer restates every slot.

They may be heard through a telephone or among noises, see `benchmarks.dialogue.disturbances`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.dialogue.disturbances import among, through
from benchmarks.progress import Progress
from models.orders import Order, parse_order
from training.features import held_out
from worker.audio_files import read_question
from worker.parts import Pcm, SpeechModel
from worker.turn import TurnSettings, ask_by_voice


class LabelsError(Exception):
    """Labels or clips cannot be used; the message says what to do."""


class _Label(msgspec.Struct, frozen=True):
    intent: str
    slots: Order


@dataclass(frozen=True, slots=True)
class Clip:
    path: Path
    slots: Order


@dataclass(frozen=True, slots=True)
class Disturbance:
    """`noise` at `snr_db` where somebody speaks, and the `channel` to the model behind it; "" is none."""

    channel: str = ""
    noise: str = ""
    snr_db: float = 12.0

    def applied(self, samples: Pcm, seed: int, others: list[Pcm]) -> Pcm:
        """Raises DisturbanceError for names that do not exist."""
        if self.noise:
            samples = among(self.noise, samples, self.snr_db, seed, others)
        return through(self.channel, samples) if self.channel else samples

    def report(self) -> dict[str, object]:
        named: dict[str, object] = {"channel": self.channel} if self.channel else {}
        return {**named, "noise": self.noise, "snr_db": self.snr_db} if self.noise else named


def read_clips(folder: Path, labels: Path, only_held_out: bool) -> list[Clip]:
    """Every labelled clip that is there, as .opus, .flac or .wav. Raises LabelsError."""
    try:
        table = msgspec.json.decode(labels.read_bytes(), type=dict[str, _Label])
    except (OSError, msgspec.MsgspecError) as error:
        raise LabelsError(f"{labels} is no table of labels ({error}); give the labels.json of the clips") from error
    clips = []
    for name, label in sorted(table.items()):
        stem = folder / Path(name).stem
        path = next((p for p in (stem.with_suffix(s) for s in (".opus", ".flac", ".wav")) if p.is_file()), None)
        if path is not None and not (only_held_out and not held_out(name)):
            clips.append(Clip(path, label.slots))
    if not clips:
        raise LabelsError(f"none of the {len(table)} labelled clips is in {folder}; give the folder of the recordings")
    return clips


def run(
    model: SpeechModel,
    clips: list[Clip],
    input_hz: float,
    progress: Progress | None = None,
    disturbance: Disturbance | None = None,
) -> dict[str, object]:
    """Summary and, under `rejected`, what was understood instead. Raises DisturbanceError."""
    disturbance = disturbance or Disturbance()
    sounds = [read_question(clip.path) for clip in clips]
    accepted, frames, groups, rejected = 0, 0, 0, []
    settings = TurnSettings(input_hz=input_hz, speech=False)
    for number, clip in enumerate(clips, 1):
        heard = disturbance.applied(sounds[number - 1], number, sounds[: number - 1] + sounds[number:])
        turn = ask_by_voice(model, heard, settings)
        understood = parse_order(turn.text)
        if understood == clip.slots:
            accepted += 1
        else:
            wanted = dict(clip.slots)
            rejected.append({"clip": clip.path.stem, "wanted": wanted, "heard": turn.transcript, "answer": turn.text})
        if turn.encoded is not None:
            frames += turn.encoded.frames
            groups += turn.encoded.groups
        if progress is not None:
            progress(number, len(clips))
    return {
        "clips": len(clips),
        "accepted": accepted,
        "acceptance_rate": round(accepted / len(clips), 4),
        "requested_input_hz": input_hz,
        "realised_input_hz": round(25.0 * groups / frames, 3) if frames else None,
        **disturbance.report(),
        "rejected": rejected,
    }
