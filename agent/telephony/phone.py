"""A telephone of our own, without agent or model: it calls, plays a recording, and records what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass

import numpy as np
from sipmessage import URI

from agent.audio import Resampler, Samples
from agent.clock import SystemClock
from agent.telephony.line import paced
from agent.telephony.sip.call import CallEnded, Credentials, Established, MediaChanged, SipHappening
from agent.telephony.sip.dialog import Local
from agent.telephony.sip.sdp import PREFERRED, CodecName, LocalMedia
from agent.telephony.sip.user_agent import UserAgent
from agent.telephony.sip_line import SipLine
from agent.telephony.sip_socket import SipSocket, resolve
from agent.telephony.sound.incoming import SESSION_HZ
from agent.telephony.sound.outgoing import Frame
from agent.telephony.sound.pacing import FRAME_S

RING_S = 60.0
_SOUND = 200  # what is louder counts as sound
_BETWEEN_S = 0.8  # so long the other side must have been quiet before the recording is played
_GOODBYE_S = 0.3


@dataclass(frozen=True)
class PhoneReport:
    """What came of a call. `heard` is at 16 kHz, from the moment the call was answered."""

    status: int
    reason: str
    codec: str = ""
    heard: Samples | None = None
    talked_s: float = 0.0
    reply_after_ms: float | None = None  # from the recording's end to the first sound after it
    packets_received: int = 0
    packets_lost: int = 0


class RecordingLine(SipLine):
    """Where an agent's line has its session, this has a recording to play and one to make."""

    def __init__(self, signalling_host: str, speech: Samples) -> None:
        super().__init__(signalling_host)
        self.heard_pieces: list[Samples] = []
        self.said_until_s: float | None = None
        self.reply_at_s: float | None = None
        self.last_sound_s: float | None = None
        self._speech = speech
        self._to_play: Samples | None = None
        self._opened_s = self._loop.time()

    def hear(self, samples: Samples, line_hz: int) -> None:
        piece = self._incoming.push(samples, line_hz)
        self.heard_pieces.append(piece)
        if np.abs(piece.astype(np.int32)).max(initial=0) > _SOUND:
            self.last_sound_s = self._loop.time()
            if self.said_until_s is not None and self.reply_at_s is None:
                self.reply_at_s = self._loop.time()

    def next_frame(self, line_hz: int) -> Frame:
        count = round(line_hz * FRAME_S)
        quiet = Frame(np.zeros(count, np.int16), None, silent=True)
        now_s = self._loop.time()
        if self._to_play is None:
            if now_s - (self.last_sound_s or self._opened_s) < _BETWEEN_S:
                return quiet
            resampler = Resampler(SESSION_HZ, line_hz, low_delay=True)
            self._to_play = np.concatenate([resampler.push(self._speech), resampler.flush()])
        if not self._to_play.size:
            if self.said_until_s is None:
                self.said_until_s = now_s
            return quiet
        piece, self._to_play = self._to_play[:count], self._to_play[count:]
        return Frame(np.pad(piece, (0, count - piece.size)), None, silent=False)


class Phone:
    """One call. `host` is our own address; `codecs` in order of preference."""

    def __init__(
        self,
        speech: Samples,
        *,
        host: str = "127.0.0.1",
        codecs: tuple[CodecName, ...] = PREFERRED,
        user: str = "phone",
    ) -> None:
        self._speech = speech
        self._host = host
        self._codecs = codecs
        self._user = user
        self._over = asyncio.Event()
        self._settled = asyncio.Event()
        self._answered = False
        self._ended: CallEnded | None = None

    async def call(self, target: URI, *, seconds: float, credentials: Credentials | None = None) -> PhoneReport:
        """Calls, plays the recording, hears the reply out and hangs up, after `seconds` at the latest.

        Raises OSError where `target` has no address or a socket cannot be opened, and `ConfigError` and `NoPort`.
        """
        peer = await resolve(target)
        socket = SipSocket(self._happened)
        port = await socket.open(self._host, 0)
        agent = socket.agent = UserAgent(Local(self._host, port, self._user), SystemClock())
        self._line = line = RecordingLine(peer.host, self._speech)
        try:
            media = LocalMedia(
                self._host, await line.open(self._host, (0, 0)), secrets.randbits(31), preferred=self._codecs
            )
            caller = URI("sip", self._host, user=self._user, port=port)
            self._call = agent.dial(target, peer, media, caller, credentials)
            socket.flush()
            await self._until_answered()
            if not self._answered:
                ended = self._ended
                return PhoneReport(ended.status, ended.reason) if ended else PhoneReport(408, "nobody answered")
            return await self._talk(seconds)
        finally:
            line.shut()
            agent.hang_up(self._call)
            socket.flush()
            await asyncio.sleep(_GOODBYE_S)
            await socket.close()

    async def _until_answered(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RING_S):
                await self._settled.wait()

    async def _talk(self, seconds: float) -> PhoneReport:
        loop, line = asyncio.get_running_loop(), self._line
        started_s = loop.time()
        playing = asyncio.create_task(paced(line.tick))
        try:
            async with asyncio.timeout(seconds):
                while not self._over.is_set():
                    await asyncio.sleep(0.05)
                    replied = line.reply_at_s is not None and line.last_sound_s is not None
                    if replied and loop.time() - (line.last_sound_s or 0.0) > 2 * _BETWEEN_S:
                        break
        except TimeoutError:
            pass
        finally:
            playing.cancel()
        assert line.rtp is not None
        reply_ms = None
        if line.reply_at_s is not None and line.said_until_s is not None:
            reply_ms = round(1000 * (line.reply_at_s - line.said_until_s), 1)
        return PhoneReport(
            200,
            "" if self._ended is None else self._ended.reason,
            self._call.agreed.codec.name if self._call.agreed is not None else "",
            np.concatenate([np.zeros(0, np.int16), *line.heard_pieces]),
            round(loop.time() - started_s, 2),
            reply_ms,
            line.rtp.stats.received,
            line.rtp.stats.lost,
        )

    def _happened(self, happening: SipHappening) -> None:
        match happening:
            case Established() | MediaChanged():
                if happening.call.agreed is not None:
                    self._line.agree(happening.call.agreed)
                self._answered = True
                self._settled.set()
            case CallEnded():
                self._ended = happening
                self._over.set()
                self._settled.set()
            case _:
                pass
