"""The play that every stock client acts: one conversation in steps, spoken over an open microphone.

    greeting       an answer is asked for before anybody has spoken
    turn           an order, which is answered aloud
    second_turn    a picture is shown, and what it costs is asked
    interruption   another order, and "make it a large please" into the middle of its restating
    tool           "that's all thank you": the client's function is called, and its result answered
    given          a sentence is to be said that the program gives
    joined         an order with a pause in its middle that is long enough to be taken for its end
    reconnect      the connection is broken off; the client comes back and is answered again

Run with a client's own Python, so nothing but the standard library is used here. Prints one line of JSON per step:
what the client itself knows of it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

RATE_HZ = 24_000
PIECE_S = 0.04
PIECE_BYTES = int(RATE_HZ * PIECE_S) * 2
HEARD_BEFORE_INTERRUPTION_S = 1.0
PATIENCE_S = 30.0
LOOK_S = 0.02
INSTRUCTIONS = (
    "You take orders at a coffee counter. Restate every order. When the customer is done, call submit_order once and "
    "then read out the order number."
)
SUBMIT_ORDER: dict[str, Any] = {
    "name": "submit_order",
    "description": "Sends a confirmed order off",
    "parameters": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("coffeeDrink", "size", "roast", "milkAmount")},
        "required": ["coffeeDrink"],
        "additionalProperties": False,
    },
}
RESULT = {"order_number": 7}
GIVEN = 'Say "Please wait a moment."'
# One pixel.
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


class StockClient(ABC):
    """What the play needs of a client. The counters are kept by its subclass, from what the client itself reports.

    `sound_bytes`: of answers, s16 at 24 kHz; `interruptions`: how often
    it stopped playing because the user spoke; `calls`: of the function, `[name, arguments]`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sound_bytes = 0
        self.interruptions = 0
        self.calls: list[list[Any]] = []
        self.errors: list[str] = []

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    @abstractmethod
    async def open(self) -> None:
        """Returns when the session is configured."""

    @abstractmethod
    async def send(self, pcm: bytes) -> None:
        """One piece of the microphone's sound."""

    @abstractmethod
    def history(self) -> list[list[str]]:
        """`[role, text]` of every message that the client itself keeps."""

    @abstractmethod
    async def ask(self, instructions: str = "") -> None:
        """An answer without a word from the user."""

    @abstractmethod
    async def show(self, image_url: str) -> None:
        """A picture, as the user's; nothing is to be answered."""

    @abstractmethod
    async def come_back(self) -> None:
        """After its connection was broken off, as an application does it. Returns when it may speak again."""

    @abstractmethod
    async def close(self) -> None: ...


class Microphone:
    """Sends without a pause, in real time: what is to be said, and silence where nothing is."""

    def __init__(self, client: StockClient, sounds: Path) -> None:
        self._client = client
        self._sounds = sounds
        self._waiting: deque[bytes] = deque()
        self.on = True

    def say(self, name: str) -> None:
        pcm = (self._sounds / f"{name}.pcm").read_bytes()
        self._waiting.extend(pcm[at : at + PIECE_BYTES] for at in range(0, len(pcm), PIECE_BYTES))

    async def run(self) -> None:
        due_s = time.monotonic()
        while True:
            if self.on:
                piece = self._waiting.popleft() if self._waiting else b""
                await self._client.send(piece.ljust(PIECE_BYTES, b"\0"))
            due_s = max(due_s + PIECE_S, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))


class Play:
    def __init__(self, client: StockClient, sounds: Path, outside: list[str]) -> None:
        """`outside`: where the client tried to go beyond this machine."""
        self.client = client
        self.microphone = Microphone(client, sounds)
        self._outside = outside

    async def act(self, steps: list[str]) -> None:
        talking: asyncio.Task[None] | None = None
        try:
            await self._tap("step?name=open")
            await _patiently(self.client.open(), "the session was not configured")
            talking = asyncio.create_task(self.microphone.run())
            for name in steps:
                await self._tap(f"step?name={name}")
                step: Callable[[], Awaitable[None]] = getattr(self, f"_{name}")
                before, failure = self._counted(), ""
                try:
                    await step()
                except TimeoutError as error:
                    failure = str(error) or "it took too long"
                after = self._counted()
                report = {key: after[key] - value for key, value in before.items()}
                self._tell(name, failure, report)
                if talking.done():
                    talking.result()
        finally:
            if talking is not None:
                talking.cancel()
                with suppress(asyncio.CancelledError):
                    await talking
            await self._tap("step?name=close")
            if talking is not None:
                with suppress(TimeoutError):
                    await _patiently(self.client.close(), "it did not close")

    def _counted(self) -> dict[str, int]:
        client = self.client
        return {"sound_bytes": client.sound_bytes, "interruptions": client.interruptions}

    def _tell(self, name: str, failure: str, counted: dict[str, int]) -> None:
        client = self.client
        known = {"history": client.history(), "calls": client.calls, "errors": client.errors, "outside": self._outside}
        print(json.dumps({"step": name, "failure": failure, **counted, **known}), flush=True)

    async def _greeting(self) -> None:
        await self._heard(self.client.ask())

    async def _turn(self) -> None:
        await self._answered("order")

    async def _second_turn(self) -> None:
        await self.client.show(PICTURE)
        await self._answered("price")

    async def _joined(self) -> None:
        await self._answered("paused")

    async def _given(self) -> None:
        await self._heard(self.client.ask(GIVEN))

    async def _interruption(self) -> None:
        heard, stopped = self.client.sound_bytes, self.client.interruptions
        self.microphone.say("coffee")
        enough = int(HEARD_BEFORE_INTERRUPTION_S * RATE_HZ) * 2
        await _until(lambda: self.client.sound_bytes > heard + enough, "nothing was answered")
        completed = await self._completed()
        self.microphone.say("large")
        await _until(lambda: self.client.interruptions > stopped, "the client was not interrupted")
        await self._until_completed(completed + 1)

    async def _tool(self) -> None:
        calls, completed = len(self.client.calls), await self._completed()
        self.microphone.say("done")
        await _until(lambda: len(self.client.calls) > calls, "the function was not called")
        await self._until_completed(completed + 2)

    async def _reconnect(self) -> None:
        self.microphone.on = False
        await self._tap("cut")
        await _patiently(self.client.come_back(), "the client did not come back")
        self.microphone.on = True
        await self._answered("order")

    async def _answered(self, name: str) -> None:
        async def speak() -> None:
            self.microphone.say(name)

        await self._heard(speak())

    async def _heard(self, asking: Awaitable[None]) -> None:
        """Asks, and waits until an answer has been heard to its end."""
        completed, heard = await self._completed(), self.client.sound_bytes
        await asking
        await _until(lambda: self.client.sound_bytes > heard, "no answer was heard")
        await self._until_completed(completed + 1)

    async def _completed(self) -> int:
        return int(await self._tap("completed"))

    async def _until_completed(self, count: int) -> None:
        """Until so many answers have been made and played to their end. Raises TimeoutError."""
        for _ in range(int(PATIENCE_S / 0.1)):
            if await self._completed() >= count:
                return await self._rest()
            await asyncio.sleep(0.1)
        raise TimeoutError("the answer did not end")

    async def _rest(self) -> None:
        """Until no more sound comes, so that the next step does not speak into this one."""
        heard, quiet_s = self.client.sound_bytes, 0.0
        while quiet_s < 0.6:
            await asyncio.sleep(0.1)
            quiet_s = quiet_s + 0.1 if self.client.sound_bytes == heard else 0.0
            heard = self.client.sound_bytes

    async def _tap(self, path: str) -> str:
        request = urllib.request.Request(f"{self.client.url}/tap/{path}", data=b"", method="POST")

        def ask() -> str:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(ask)


async def _until(holds: Callable[[], bool], otherwise: str) -> None:
    """Raises TimeoutError. Counts looks and not seconds, so that a machine that stood still is no failure."""
    for _ in range(int(PATIENCE_S / LOOK_S)):
        if holds():
            return
        await asyncio.sleep(LOOK_S)
    raise TimeoutError(otherwise)


async def _patiently(what: Coroutine[Any, Any, None], otherwise: str) -> None:
    """Raises TimeoutError, and what the client raises."""
    task = asyncio.create_task(what)
    try:
        await _until(task.done, otherwise)
        await task
    finally:
        task.cancel()


def stay_inside() -> list[str]:
    """Refuses every way out of this machine from here on, and names whoever tried in what it returns."""
    tried: list[str] = []

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event not in ("socket.connect", "socket.getaddrinfo"):
            return
        address = given[1] if event == "socket.connect" else given[0]
        host = address[0] if isinstance(address, tuple) else address
        is_local = event == "socket.connect" and not isinstance(address, tuple)
        if not is_local and host not in (None, "", b"", "localhost", "127.0.0.1", "::1", b"127.0.0.1"):
            tried.append(f"{event}: {host}")
            raise PermissionError(f"{host} is not this machine")

    sys.addaudithook(watch)
    return tried


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("client", help="a module beside this one, whose CLIENT acts")
    parser.add_argument("url", help="http://HOST:PORT of the tap")
    parser.add_argument("sounds", type=Path, help="folder of NAME.pcm, s16le mono at 24 kHz")
    parser.add_argument("steps", nargs="+")
    args = parser.parse_args()
    tried = stay_inside()
    sys.modules["play"] = sys.modules[__name__]
    client = importlib.import_module(args.client).CLIENT(args.url)
    asyncio.run(Play(client, args.sounds, tried).act(args.steps))


if __name__ == "__main__":
    main()
