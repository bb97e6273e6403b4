"""What the listener hears and when: a queue of the answer's sound with a playhead counted in samples.

Over WebSocket the client plays, so the playhead is an estimate: it runs in real time from the first piece sent, and
never past what was sent. Pieces leave at most `lead_ms` ahead of it. Over WebRTC the transport pulls 20 ms at a time,
and what was pulled is what is heard. A telephone's transport pulls too, but somebody else plays later, and it reports
how far: between two reports the playhead runs in real time, no further than the next one may be. Words and tokens leave
together with the sound that carries them.

Where the listener's connection was lost, the playhead goes back to what reached him (`go_back`), and what was released
since can be released again (`take_back`).

Bound: at most `MAX_QUEUED_S` of sound waits here; whoever pushes must check `is_full` and stop the generation. Of what
was released the last `KEPT_S` are kept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from agent.audio import Samples
from agent.wire import CODEC_FRAME_RATE_HZ, AudioOut, TokenSpan, WordSpan

MAX_QUEUED_S = 120.0
KEPT_S = 15.0
_REPORT_TIMEOUT_S = 2.0  # a last report that is later than this never comes


@dataclass(frozen=True)
class Slice:
    """A piece of sound with the words that begin in it and the tokens whose last frame it renders."""

    first_sample: int
    samples: Samples
    words: tuple[WordSpan, ...]
    tokens: tuple[TokenSpan, ...]


class Playout:
    """The sound of one response."""

    def __init__(
        self, sample_rate_hz: int, *, lead_ms: int, slice_ms: int, reports_every_s: float | None = None
    ) -> None:
        """`reports_every_s`: whoever pulls the sound tells by `report` what was played, so often of it; 0 = at once."""
        self.sample_rate_hz = sample_rate_hz
        self.released_samples = 0
        self.underruns = 0
        self._lead_samples = lead_ms * sample_rate_hz // 1000
        self._slice_samples = slice_ms * sample_rate_hz // 1000
        self._queue: deque[Samples] = deque()
        self._kept: deque[Samples] = deque()
        self._kept_samples = 0
        self._words: deque[WordSpan] = deque()
        self._tokens: deque[tuple[int, TokenSpan]] = deque()
        self._pushed_samples = 0
        self._token_end_samples = 0.0
        self._ended = False
        self._playhead = 0.0
        self._playhead_at_s: float | None = None
        self._released_at_s: float | None = None
        self._dry = False
        self._reported_samples: int | None = None if reports_every_s is None else 0
        self._unreported_samples = (reports_every_s or 0.0) * sample_rate_hz

    @property
    def queued_samples(self) -> int:
        return self._pushed_samples - self.released_samples

    @property
    def held_samples(self) -> int:
        """All that lies here."""
        return self.queued_samples + self._kept_samples

    @property
    def is_full(self) -> bool:
        return self.queued_samples > MAX_QUEUED_S * self.sample_rate_hz

    @property
    def drained(self) -> bool:
        """No more will come, and everything has been released."""
        return self._ended and self.queued_samples == 0

    def is_over(self, now_s: float) -> bool:
        """No more will come, and all of it has left; where plays are reported, all of it has been played."""
        over_s = self.over_at_s(now_s)
        return over_s is not None and now_s >= over_s

    def over_at_s(self, now_s: float) -> float | None:
        """When the sound is over if no report comes; None while there is more to release."""
        if not self.drained:
            return None
        if self._reported_samples is None or self._reported_samples >= self.released_samples:
            return now_s
        assert self._released_at_s is not None
        unplayed_s = (self.released_samples - self._reported_samples) / self.sample_rate_hz
        return self._released_at_s + unplayed_s + _REPORT_TIMEOUT_S

    def report(self, played_samples: int, now_s: float) -> None:
        """The listener has heard so much; a report that is older than another says nothing."""
        if self._reported_samples is None or played_samples < self._reported_samples:
            return
        self._reported_samples = min(played_samples, self.released_samples)
        self._playhead, self._playhead_at_s = float(self._reported_samples), now_s

    def push(self, chunk: AudioOut) -> None:
        """Appends a chunk. `chunk.pcm` is s16le; its tokens are spread over it by their durations."""
        samples = np.frombuffer(chunk.pcm, dtype="<i2").astype(np.int16, copy=False)
        if samples.size:
            self._queue.append(samples)
            self._pushed_samples += samples.size
        self._words.extend(chunk.words)
        for token in chunk.tokens:
            self._token_end_samples += token.duration_frames * self.sample_rate_hz / CODEC_FRAME_RATE_HZ
            self._tokens.append((min(int(self._token_end_samples), self._pushed_samples), token))

    def end(self) -> None:
        """Nothing will be pushed any more."""
        self._ended = True

    def clear(self) -> None:
        """Drops whatever was not released."""
        self._queue.clear()
        self._kept.clear()
        self._kept_samples = 0
        self._words.clear()
        self._tokens.clear()
        self._pushed_samples = self.released_samples
        self._ended = True

    def due(self, now_s: float, until: int | None = None) -> list[Slice]:
        """Paced delivery: the slices that may leave by now, up to the sample `until` where it is not None."""
        slices: list[Slice] = []
        while self.queued_samples and self._ahead(now_s) < self._lead_samples:
            size = min(self._slice_samples, self.queued_samples)
            if until is not None:
                size = min(size, until - self.released_samples)
            if size <= 0:
                break
            slices.append(self._release(size, now_s))
        return slices

    def next_due_s(self, now_s: float) -> float | None:
        """When `due` will have something again, if nothing is pushed until then."""
        if not self.queued_samples:
            return None
        return now_s + max(0.0, (self._ahead(now_s) - self._lead_samples + 1) / self.sample_rate_hz)

    def pull(self, count: int, now_s: float) -> Slice | None:
        """Played delivery: the next `count` samples (fewer at the end), or None if nothing waits."""
        if not self.queued_samples:
            self._dry = self._dry or (self.released_samples > 0 and not self._ended)
            return None
        piece = self._release(min(count, self.queued_samples), now_s)
        if self._reported_samples is None:
            self._playhead = float(self.released_samples)
        return piece

    def leftovers(self) -> tuple[list[WordSpan], list[TokenSpan]]:
        """Words and tokens that claim to begin or end after the last sample; asked for once everything is released."""
        words, tokens = list(self._words), [token for _, token in self._tokens]
        self._words.clear()
        self._tokens.clear()
        return words, tokens

    def go_back(self, samples: int, now_s: float) -> None:
        """No more than so much has been heard until now, whatever was released; from now on it sounds again."""
        if self._playhead_at_s is not None:
            self._playhead, self._playhead_at_s = float(min(samples, self.released_samples)), now_s

    def take_back(self, samples: int, now_s: float) -> int:
        """What was released beyond so many samples is to be released again; how many stay released, more than wished
        where less was kept. Words and tokens are not given twice."""
        while self._kept and self.released_samples > samples:
            piece = self._kept.pop()
            self._kept_samples -= piece.size
            first = self.released_samples - piece.size
            if first < samples:
                self._keep(piece[: samples - first])
                piece = piece[samples - first :]
            self._queue.appendleft(piece)
            self.released_samples -= piece.size
        if self._reported_samples is not None:
            self._reported_samples = min(self._reported_samples, self.released_samples)
        self.go_back(self.released_samples, now_s)
        return self.released_samples

    def heard_samples(self, now_s: float) -> int:
        """Position of the playhead."""
        self._advance(now_s)
        return int(self._playhead)

    def left_ms(self, now_s: float) -> float | None:
        """How much of it has not been heard, None while more may come."""
        if not self._ended:
            return None
        return (self._pushed_samples - self.heard_samples(now_s)) * 1000 / self.sample_rate_hz

    def unheard_s(self, now_s: float) -> float:
        """How long what was released goes on sounding."""
        return self._ahead(now_s) / self.sample_rate_hz

    def _ahead(self, now_s: float) -> float:
        self._advance(now_s)
        return self.released_samples - self._playhead

    def _advance(self, now_s: float) -> None:
        if self._playhead_at_s is None:
            return
        moved = self._playhead + (now_s - self._playhead_at_s) * self.sample_rate_hz
        self._playhead_at_s = now_s
        limit = float(self.released_samples)
        if self._reported_samples is not None:
            limit = min(limit, self._reported_samples + self._unreported_samples)
        self._playhead = max(self._playhead, min(moved, limit))
        if moved >= self.released_samples > 0 and not self._ended and not self.queued_samples:
            self._dry = True

    def _release(self, count: int, now_s: float) -> Slice:
        self._advance(now_s)
        self._released_at_s = now_s
        if self._playhead_at_s is None:
            self._playhead_at_s = now_s
        if self._dry:
            self.underruns += 1
            self._dry = False
        first, end = self.released_samples, self.released_samples + count
        samples = self._take(count)
        if not self._unreported_samples:
            self._keep(samples)
        self.released_samples = end
        words: list[WordSpan] = []
        while self._words and self._words[0].start_sample < end:
            words.append(self._words.popleft())
        tokens: list[TokenSpan] = []
        while self._tokens and self._tokens[0][0] <= end:
            tokens.append(self._tokens.popleft()[1])
        return Slice(first, samples, tuple(words), tuple(tokens))

    def _keep(self, samples: Samples) -> None:
        self._kept.append(samples)
        self._kept_samples += samples.size
        while self._kept_samples - self._kept[0].size >= KEPT_S * self.sample_rate_hz:
            self._kept_samples -= self._kept.popleft().size

    def _take(self, count: int) -> Samples:
        parts: list[Samples] = []
        while count:
            head = self._queue.popleft()
            if head.size > count:
                self._queue.appendleft(head[count:])
                head = head[:count]
            parts.append(head)
            count -= head.size
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
