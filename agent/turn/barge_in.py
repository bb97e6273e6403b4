"""Somebody speaks while the agent speaks: does he want the word?

"Mm-hm", "yeah", a laugh and a cough ask for nothing, and the agent is to go on; "no, wait" is to stop it. The agent is
silent from the onset on, so nobody hears it talk over a caller while this is decided, and a false alarm costs a gap:

    voice ─► UNDECIDED ─ it lasts ────────────────────────────────► STOP
                 │ it pauses: judged by sound and words, and where nobody judges, by its length
                 ├──────────────────────────────────────────────────► STOP
                 └─► GO_ON ─ voice again ─► UNDECIDED

Without I/O, clock or state: what is known goes in, a verdict comes out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

# Nobody says "mm-hm" for so long without a pause.
LONG_MS = 960
# Nor goes on saying so, pauses left out.
LONG_IN_ALL_MS = 2400
# So long is waited in a pause for whoever judges it; then a voice that was shorter than SHORT_MS lets the agent go on.
UNJUDGED_MS = 400
SHORT_MS = 400
# A pause is judged by its rank: the share of interruptions that sound less like a backchannel. Of two voices that are
# in no test (`LOOKED_AT` in benchmarks/dialogue/interjections.py) 2 of 40 backchannels are below it, 1 of 50
# interruptions is above.
BACKCHANNEL_FROM = 0.75
# So many words that are no backchannels are a sentence, however it sounds.
SENTENCE_WORDS = 3

BACKCHANNELS = frozenset((
    "ah", "aha", "alright", "cool", "good", "great", "ha", "haha", "he", "hehe", "hm", "hmm", "huh", "mhm", "mm",
    "mmhm", "mmm", "nice", "oh", "ok", "okay", "right", "sure", "uh", "uhuh", "um", "wow", "yeah", "yep", "yes", "yup",
))  # fmt: skip
_PHRASES = re.compile(r"\b(?:i see|got it|all right|of course)\b")
_WORD = re.compile(r"[a-z']+")


class Verdict(Enum):
    UNDECIDED = "undecided"
    GO_ON = "go on"
    STOP = "stop"


@dataclass(frozen=True)
class Evidence:
    """What is known of a voice over the agent's.

    `voiced_ms`: how long it has lasted since its onset or its last pause, `in_all_ms` since it was heard first, pauses
    left out; `paused_ms`: since when it pauses, None while it sounds; `words`: what was understood so far; `rank`: how
    much like a backchannel it sounds, None as long as nobody has told; `said`: what the agent said last; `replies`: it
    began so close to the end of the answer that any word is a reply.
    """

    voiced_ms: int
    in_all_ms: int
    paused_ms: int | None = None
    words: str = ""
    rank: float | None = None
    said: str = ""
    replies: bool = False


def weigh(evidence: Evidence) -> Verdict:
    if evidence.voiced_ms >= LONG_MS or evidence.in_all_ms >= LONG_IN_ALL_MS:
        return Verdict.STOP
    words = words_of(evidence.words)
    wanting = [word for word in words if word not in BACKCHANNELS]
    if len(wanting) >= SENTENCE_WORDS and not _repeats(words, evidence.said):
        return Verdict.STOP
    if evidence.paused_ms is None:
        return Verdict.UNDECIDED
    if words and evidence.replies:
        return Verdict.STOP
    if words and (not wanting or (len(words) > 1 and _repeats(words, evidence.said))):
        return Verdict.GO_ON
    if evidence.rank is not None:
        return Verdict.GO_ON if evidence.rank >= BACKCHANNEL_FROM else Verdict.STOP
    if evidence.paused_ms < UNJUDGED_MS:
        return Verdict.UNDECIDED
    return Verdict.GO_ON if evidence.voiced_ms < SHORT_MS and not wanting else Verdict.STOP


def words_of(text: str) -> list[str]:
    """In small letters, without signs: "Mm-hm." is "mmhm"; phrases that let others go on are one word."""
    return _WORD.findall(_PHRASES.sub("right", text.lower().replace("-", "")))


def _repeats(words: list[str], said: str) -> bool:
    """Whether they are the agent's own, in its order: an echo of it, or somebody who says them after it."""
    spoken = words_of(said)
    count = len(words)
    return any(spoken[at : at + count] == words for at in range(len(spoken) - count + 1))
