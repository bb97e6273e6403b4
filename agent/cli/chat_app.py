"""The terminal's page: captions of both sides, the tokens of the last turn, rates and times."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from agogic_client import Call, CallError, Turn, connect, read_sound
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Input, Static

RATES: tuple[float | Literal["auto"], ...] = ("auto", 12.5, 8.0, 6.25, 5.0, 4.0)
_SILENCE = bytes(2 * 24_000 * 2)
_FRAME_MS = 80


@dataclass(frozen=True)
class Sound:
    """Where the user's voice comes from. devices: microphone and loudspeaker; push: Ctrl+T begins and ends a turn."""

    recording: Path | None = None
    devices: bool = False
    push: bool = False


class ChatApp(App[str]):
    """Ends with a sentence where the call could not be made or was lost."""

    TITLE = "agogic"
    CSS = """
    #captions { height: 1fr; padding: 1 2; }
    .turn { margin-bottom: 1; }
    #inside { height: auto; padding: 0 2; border-top: solid $primary-darken-2; }
    Input { margin: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "rate", "Rate"),
        Binding("ctrl+t", "mute", "Mute/talk"),
        Binding("escape", "interrupt", "Interrupt"),
        Binding("ctrl+q", "quit", "Quit"),
    ]

    def __init__(self, url: str, api_key: str | None, sound: Sound, rate: float | Literal["auto"]) -> None:
        super().__init__()
        self.last_sound = b""
        self._url, self._api_key, self._sound, self._rate = url, api_key, sound, rate
        self._call: Call | None = None
        self._rows: dict[str, Static] = {}

    def compose(self) -> ComposeResult:
        yield VerticalScroll(id="captions")
        yield Static(id="inside")
        yield Input(placeholder="write, or just speak")
        yield Footer()

    def on_mount(self) -> None:
        self._draw_inside()
        self._hold_call()

    @work(exclusive=True)
    async def _hold_call(self) -> None:
        try:
            async with connect(
                self._url, api_key=self._api_key, output_rate=self._rate, push_to_talk=self._sound.push
            ) as call:
                self._call = call
                call.muted = self._sound.push
                call.on("*", lambda event: self._draw())
                self._draw()
                await self._use(call)
        except CallError as error:
            self.exit(str(error))

    async def _use(self, call: Call) -> None:
        if self._sound.recording is not None:
            await call.speak(read_sound(self._sound.recording) + _SILENCE, real_time=True)
        elif self._sound.devices:
            await call.talk()
        await call.ended()
        self.exit("the server ended the call")

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        if self._call is not None and event.value.strip():
            event.input.clear()
            await self._call.write(event.value.strip())

    async def action_rate(self) -> None:
        self._rate = RATES[(RATES.index(self._rate) + 1) % len(RATES)] if self._rate in RATES else RATES[0]
        self._draw_inside()
        if self._call is not None:
            await self._call.set_rates(output_rate=self._rate)

    async def action_mute(self) -> None:
        """Mutes; with push to talk the key begins a turn and ends it."""
        if self._call is None:
            return
        self._call.muted = not self._call.muted
        if self._sound.push and self._call.muted:
            await asyncio.sleep(0.1)  # what was just said is still on its way
            await self._call.commit()
        self._draw_inside()

    async def action_interrupt(self) -> None:
        if self._call is not None:
            await self._call.interrupt()

    def _draw(self) -> None:
        assert self._call is not None
        place = self.query_one("#captions", VerticalScroll)
        for turn in self._call.conversation.turns:
            row = self._rows.get(turn.id)
            if row is None:
                row = self._rows[turn.id] = Static(classes="turn")
                place.mount(row)
            row.update(_caption(turn))
            if turn.role == "assistant":
                self.last_sound = bytes(turn.pcm)
        known = {turn.id for turn in self._call.conversation.turns}
        for gone in self._rows.keys() - known:
            self._rows.pop(gone).remove()
        place.scroll_end(animate=False)
        self._draw_inside()

    def _draw_inside(self) -> None:
        call = self._call
        turns = call.conversation.turns if call is not None else []
        heard = next((turn.heard_ms for turn in reversed(turns) if turn.heard_ms), [])
        said = next((turn.tokens for turn in reversed(turns) if turn.tokens), [])
        state = "not connected" if call is None else "muted" if call.muted else "listening"
        if call is not None and call.conversation.responding:
            state = "answering"
        lines = [
            bars("heard", [ms / _FRAME_MS for ms in heard], "cyan"),
            bars("said", [float(frames) for _, frames in said], "dark_orange"),
            Text(f"{state}   speaks at {_rate(self._rate)}   {_times(call)}", style="dim"),
        ]
        self.query_one("#inside", Static).update(Text("\n").join(lines))


def bars(name: str, frames: list[float], colour: str) -> Text:
    """A token is as wide as it lasts, a cell for 80 ms, in two shades in turn; the newest that fit."""
    line = Text(f"{name:6}")
    shown, cells = [], 0
    for length in reversed(frames):
        cells += max(1, round(length))
        if cells > 64:
            break
        shown.append(max(1, round(length)))
    for number, width in enumerate(reversed(shown)):
        line.append("█" * width, style=colour if number % 2 else f"dim {colour}")
    seconds = sum(frames) * _FRAME_MS / 1000
    if seconds:
        line.append(f"  {len(frames) / seconds:.1f} Hz", style="dim")
    return line


def _caption(turn: Turn) -> Text:
    who, style = ("you", "cyan") if turn.role == "user" else ("agogic", "default")
    end = {"open": " ▍", "interrupted": " —", "failed": " (not understood)", "done": ""}[turn.status]
    return Text.assemble((f"{who:>7}  ", "dim"), (turn.text.strip() + end, style))


def _rate(rate: float | Literal["auto"]) -> str:
    return rate if rate == "auto" else f"{rate:g} Hz"


def _times(call: Call | None) -> str:
    timing = call.conversation.report.get("timing", {}) if call is not None else {}
    if "first_audio_ms" not in timing:
        return ""
    waited = timing.get("turn_detection_ms", 0)
    return f"first sound {timing['first_audio_ms']:.0f} ms after {waited:.0f} ms of silence"
