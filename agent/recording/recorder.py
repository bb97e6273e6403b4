"""Writes recordings, in a thread: whoever is recorded never waits for a disk.

What is to be written waits in one queue for all sessions. Bounds: `MAX_WAITING_BYTES` of it wait, a file has
`max_bytes`, the folder `max_folder_bytes`. Where one of them is reached, or the disk refuses, the recording ends with a
line that says so, and the session goes on.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.config import ConfigError, RecordingConfig
from agent.dialogue.client_requests import Reading
from agent.protocol.errors import ProtocolError
from agent.recording.log import AnyCall, Client, End, Entry, Header, Microphone, Worker
from agent.recording.outcome import Outcome, as_json
from agent.recording.privacy import MAX_UNKNOWN_BYTES, MAX_UNREADABLE_BYTES, LineRedactor, without_sound
from agent.wire import AudioOut

log = logging.getLogger("agogic.recording")

MAX_WAITING_BYTES = 32 * 1024 * 1024
# Kept free in each file for the line that ends it.
_LAST_LINE_BYTES = 256
_CLOSING_S = 5.0
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


@dataclass(frozen=True)
class TakenClient:
    """A client's message as the session took it; written down as a `Client`."""

    reading: Reading
    of_others: bool


@dataclass(frozen=True)
class Happened:
    """One call into a session, not in words yet. `voice`: of each window, how likely somebody speaks in it."""

    at_s: float
    call: AnyCall | TakenClient
    outcome: Outcome
    due_s: float | None
    voice: tuple[float, ...]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        match self.call:
            case TakenClient(reading):
                size = len(reading.data)
            case Microphone(bytes(sound)):
                size = len(sound)
            case Worker(AudioOut(pcm=pcm)):
                size = len(pcm)
            case _:
                size = 0
        return size + self.outcome.size_bytes


class Tape:
    """The recording of one session; belongs to the thread that calls the session, but for what `_write…` does."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.name = name
        self.has_ended = False
        self._recorder = recorder
        self._due_s: float | None = None
        self._file: io.RawIOBase | None = None
        self._written_bytes = 0

    def begin(self, header: Header) -> None:
        self._recorder.put(self, header, _LAST_LINE_BYTES)

    def put(self, happened: Happened) -> None:
        """One more call; nothing where the recording has ended."""
        if self.has_ended:
            return
        if not self._recorder.put(self, happened, happened.size_bytes):
            self.end("the disk is slower than the session")

    def end(self, why: str) -> None:
        if not self.has_ended:
            self.has_ended = True
            self._recorder.put(self, End(why), 0)

    # --- in the recorder's thread ---

    def write(self, item: Header | Happened | End) -> None:
        """Raises OSError, after which only `give_up` may follow."""
        if isinstance(item, Header):
            self._file = self._recorder.create(self.name)
            self._append(msgspec.json.encode(item))
        elif self._file is None:
            return
        elif isinstance(item, End):
            self._close(item)
        else:
            self._append(msgspec.json.encode(self._entry(item)))

    def give_up(self, error: OSError) -> None:
        """The disk does not take it."""
        why = f"it cannot be written: {error.strerror or error}"
        if self._file is None:
            self.has_ended = True
            log.warning("%s is not recorded: %s", self.name, why)
            return
        with contextlib.suppress(OSError):
            # Part of a line would make the file unreadable; without it there may be room for the line that ends it.
            self._file.truncate(self._written_bytes)
            self._file.seek(self._written_bytes)
        self._stop(why)

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        line = self._recorder.redact(line) + b"\n"
        recorder = self._recorder
        if self._written_bytes + len(line) + _LAST_LINE_BYTES > recorder.config.max_bytes:
            self._stop(f"it has reached recording.max_bytes = {recorder.config.max_bytes}")
        elif recorder.folder_bytes + len(line) > recorder.config.max_folder_bytes:
            self._stop(recorder.folder_is_full)
        else:
            _write_whole(self._file, line)
            self._written_bytes += len(line)
            recorder.folder_bytes += len(line)

    def _stop(self, why: str) -> None:
        self.has_ended = True
        log.warning("the recording %s ends: %s", self.name, why)
        self._close(End(why))

    def _close(self, end: End) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        with contextlib.closing(file):
            try:
                _write_whole(file, self._recorder.redact(msgspec.json.encode(end)) + b"\n")
            except OSError:
                file.truncate(self._written_bytes)

    def _entry(self, happened: Happened) -> Entry:
        sound = self._recorder.config.sound
        due_s = happened.due_s if happened.due_s != self._due_s else None
        self._due_s = happened.due_s
        return Entry(
            at=happened.at_s,
            call=_written(happened.call, sound),
            out=as_json(happened.outcome, sound=sound),
            due=due_s,
            voice=[] if sound else list(happened.voice),
        )


class Recorder:
    """One for all sessions of a service. `keys` are not to be found in any recording."""

    def __init__(self, config: RecordingConfig, keys: list[str]) -> None:
        """Makes the folder, or looks at it. Raises `ConfigError` where nothing can be recorded into it."""
        self.config = config
        self.redact = LineRedactor(keys)
        self._folder = Path(config.folder)
        self._queue: queue.SimpleQueue[tuple[Tape, Header | Happened | End, int] | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None
        _private_folder(self._folder)
        self.folder_bytes = 0

    @property
    def kind(self) -> str:
        """What is recorded, in the words in which clients are told."""
        return "with sound" if self.config.sound else "without sound"

    def tape(self, session_id: str, unix_s: int) -> Tape:
        """For a session that begins now."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
            self._thread.start()
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(unix_s))
        return Tape(self, f"{began}-{session_id}.jsonl")

    def put(self, tape: Tape, item: Header | Happened | End, size_bytes: int) -> bool:
        """False if it does not fit; never waits."""
        with self._counting:
            if self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
                return False
            self._waiting_bytes += size_bytes
        self._queue.put((tape, item, size_bytes))
        return True

    def create(self, name: str) -> io.RawIOBase:
        """A new file that nobody else may read. Raises OSError."""
        self.folder_bytes = sum(path.stat().st_size for path in self._folder.glob("*.jsonl"))
        if self.folder_bytes + _LAST_LINE_BYTES > self.config.max_folder_bytes:
            raise OSError(errno.EDQUOT, self.folder_is_full)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        return os.fdopen(os.open(self._folder / name, flags, _FILE_MODE), "wb", buffering=0)

    @property
    def folder_is_full(self) -> str:
        return f"the folder has reached recording.max_folder_bytes = {self.config.max_folder_bytes}"

    def close(self) -> None:
        """Writes what waits, for some seconds at most."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(_CLOSING_S)

    def _run(self) -> None:
        while (found := self._queue.get()) is not None:
            tape, item, size_bytes = found
            try:
                tape.write(item)
            except OSError as error:
                tape.give_up(error)
            except Exception:  # a mistake of ours ends one recording and not all of them
                log.exception("the recording %s ends", tape.name)
                tape.give_up(OSError("what happened could not be put in words"))
            with self._counting:
                self._waiting_bytes -= size_bytes


def _written(call: AnyCall | TakenClient, sound: bool) -> AnyCall:
    if isinstance(call, TakenClient):
        return _client(call.reading, call.of_others, sound)
    if sound:
        return call
    if isinstance(call, Microphone) and isinstance(call.sound, bytes):
        return Microphone(len(call.sound))
    if isinstance(call, Worker) and isinstance(call.message, AudioOut):
        return Worker(msgspec.structs.replace(call.message, pcm=b""), left_out=len(call.message.pcm))
    return call


def _client(reading: Reading, of_others: bool, sound: bool) -> Client:
    data = reading.data.encode(errors="replace") if isinstance(reading.data, str) else reading.data
    if isinstance(reading.outcome, ProtocolError):
        return _unreadable(data, of_others, sound)
    text = data.decode(errors="replace")
    if not sound:
        return Client(message=msgspec.Raw(without_sound(text.encode())), of_others=of_others)
    if "\n" in text or "\r" in text:
        return Client(text=text, of_others=of_others)
    return Client(message=msgspec.Raw(text.encode()), of_others=of_others)


def _unreadable(data: bytes, of_others: bool, sound: bool) -> Client:
    """What was no event; without sound what is left of it if it was JSON."""
    kept = data[: MAX_UNREADABLE_BYTES if sound else MAX_UNKNOWN_BYTES].decode(errors="replace")
    is_altered = kept.encode() != data
    if not sound and len(data) <= MAX_UNREADABLE_BYTES:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Client(message=msgspec.Raw(without_sound(data)), of_others=of_others)
    return Client(text=kept, of_others=of_others, is_altered=is_altered)


def _private_folder(folder: Path) -> None:
    try:
        folder.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
        if mode & 0o077 and os.name == "posix":
            raise ConfigError(
                f"recording.folder = {str(folder)!r} is open to others (mode {mode:o}); run `chmod 700` on it, or name "
                "a folder that does not exist yet"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"recording.folder = {str(folder)!r} cannot be written to; name another")
    except OSError as error:
        raise ConfigError(
            f"recording.folder = {str(folder)!r} cannot be used: {error.strerror or error}; name another"
        ) from error


def _write_whole(file: io.RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
