"""`agogic bench network --transport sip`: recorded orders through RTP with loss and jitter, and what is understood.

No socket and no waiting: packets pass our own RTP session at the times at which a network would have brought them.
"""

from __future__ import annotations

import random

import numpy as np

from agent.audio import Resampler
from agent.telephony.sip.rtp import Key, RtpSession, Sound
from agent.telephony.sip.sdp import Agreed, Codec, CodecName
from agent.telephony.sound.incoming import IncomingVoice
from agent.telephony.sound.pacing import FRAME_S
from benchmarks.dialogue.barista import Clip
from benchmarks.progress import Progress
from models.orders import parse_order
from worker.audio_files import read_question
from worker.parts import SpeechModel
from worker.turn import TurnSettings, ask_by_voice

CODECS: dict[CodecName, int] = {"G722": 9, "opus": 107, "PCMU": 0, "PCMA": 8}
_PHONE = ("127.0.0.1", 4000)


def run(
    model: SpeechModel,
    clips: list[Clip],
    codec: CodecName,
    loss: float,
    jitter_ms: float,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Acceptance without and with the bad network, and how much of the sound arrived or was made up."""
    settings = TurnSettings(speech=False)
    good, bad, sent, delivered, concealed, lost, packets = 0, 0, 0, 0, 0, 0, 0
    for number, clip in enumerate(clips, 1):
        pcm = np.clip(np.rint(np.asarray(read_question(clip.path)) * 32767), -32768, 32767).astype(np.int16)
        clean, _ = through(pcm, codec, 0.0, 0.0, number)
        rough, session = through(pcm, codec, loss, jitter_ms, number)
        heard = [np.concatenate([np.zeros(0, np.int16), *[sound.samples for sound in one]]) for one in (clean, rough)]
        good += parse_order(ask_by_voice(model, _question(heard[0], session.line_hz), settings).text) == clip.slots
        bad += parse_order(ask_by_voice(model, _question(heard[1], session.line_hz), settings).text) == clip.slots
        sent += heard[0].size
        delivered += heard[1].size
        concealed += sum(sound.samples.size for sound in rough if sound.concealed)
        lost += session.stats.lost
        packets += session.stats.received + session.stats.lost
        if progress is not None:
            progress(number, len(clips))
    return {
        "clips": len(clips),
        "codec": codec,
        "packet_loss_share": loss,
        "jitter_ms": jitter_ms,
        "acceptance_rate_clean": round(good / len(clips), 4),
        "acceptance_rate": round(bad / len(clips), 4),
        "lost_or_late_share": round(lost / packets, 4) if packets else None,
        "delivered_or_concealed_share": round(min(1.0, delivered / sent), 4) if sent else None,
        "concealed_share": round(concealed / sent, 4) if sent else None,
    }


def through(
    pcm: np.ndarray, name: CodecName, loss: float, jitter_ms: float, seed: int
) -> tuple[list[Sound], RtpSession]:
    """s16 at 16 kHz by way of codec, packets, network, jitter buffer and concealment."""
    agreed = Agreed(*_PHONE, Codec(name, CODECS[name]), None, "sendrecv")
    sender, receiver = RtpSession(agreed, _PHONE[0]), RtpSession(agreed, _PHONE[0])
    rng, rate_hz = random.Random(seed), sender.line_hz
    resampler = Resampler(16_000, rate_hz)
    line = np.concatenate([resampler.push(pcm), resampler.flush()])
    size = round(rate_hz * FRAME_S)
    arrivals = []
    for index in range(line.size // size):
        packet = sender.packet(line[index * size : (index + 1) * size], silent=False)
        if rng.random() >= loss:
            arrivals.append((FRAME_S * index + rng.uniform(0, jitter_ms / 1000), packet))
    heard: list[Sound | Key] = []
    for at_s, packet in sorted(arrivals, key=lambda arrival: arrival[0]):
        while receiver.deadline_s is not None and receiver.deadline_s < at_s:
            heard += receiver.poll(receiver.deadline_s + 1e-6)
        heard += receiver.receive(packet, _PHONE, at_s)
    heard += receiver.poll(FRAME_S * (line.size // size) + 0.1)
    return [one for one in heard if isinstance(one, Sound)], receiver


def _question(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Float at 16 kHz, as files are read."""
    incoming = IncomingVoice()
    sound = np.concatenate([incoming.push(samples, rate_hz), incoming.push(np.zeros(rate_hz // 5, np.int16), rate_hz)])
    return sound.astype(np.float32) / 32768
