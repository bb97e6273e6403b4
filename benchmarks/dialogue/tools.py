"""`agogic eval tools`: customers who order, change their minds, ask, confirm or cancel, against a running service.

Each is a session of its own over WebSocket that defines `submit_order` and `cancel_order`; answers are written, because
what is called hangs on the words alone. A customer confirms only what was restated rightly, as people do: who is
misunderstood hangs up, and whatever was called until then was called without confirmation.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import soxr

from benchmarks.attacks.server import attacked
from benchmarks.dialogue.barista import Clip
from benchmarks.progress import Progress
from models.orders import DRINKS, MILKS, ROASTS, SHOTS, SIZES, SUGARS, Order, parse_order
from training.world import (
    CANCELLATIONS,
    CLOSINGS,
    HELD_OUT_SEED,
    OFF_TOPIC,
    PRICE_QUESTIONS,
    change,
    fill,
    sample_order,
    say_order,
)
from worker.audio_files import read_question
from worker.parts import Pcm

Calls = list[tuple[str, dict[str, object]]]
SUBMIT, CANCEL = "submit_order", "cancel_order"
WORDS_OF = {
    "size": SIZES,
    "numberOfShots": SHOTS,
    "roast": ROASTS,
    "coffeeDrink": DRINKS,
    "milkAmount": MILKS,
    "sugarAmount": SUGARS,
}
FUNCTIONS: list[dict[str, object]] = [
    {
        "type": "function",
        "name": SUBMIT,
        "description": "Sends an order off that the customer has confirmed.",
        "parameters": {
            "type": "object",
            "properties": {
                slot: {"type": "string", "description": f"such as {', '.join(words[:3])}"}
                for slot, words in WORDS_OF.items()
            },
            "required": ["coffeeDrink"],
        },
    },
    {"type": "function", "name": CANCEL, "description": "Cancels the order."},
]
TIMEOUT_S = 60.0
MOST_REFUSALS = 60
MOST_MISUNDERSTOOD = 3
"""For each order to be confirmed, so many may be misunderstood before that is given up."""
CHANGES, ASKS, CANCELS, TALKS = 0.3, 0.25, 0.2, 0.2
"""Shares of customers who change their order, ask what it costs, take it back, or first talk of something else."""


class TalkError(Exception):
    """The service refused something or fell silent; the message says what."""


@dataclass
class Customer:
    """What one customer did and what was called. wanted: the order as it stands; when the order was not confirmed,
    `unasked` are calls that nobody may have made."""

    wanted: Order = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    misunderstood: bool = False
    confirmed: bool = False
    cancelled: bool = False
    unasked: Calls = field(default_factory=list)
    called: Calls = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not self.unasked and self.called == [(SUBMIT, dict(self.wanted))]


class Line:
    """One session: says something, typed or spoken, and gives the answer and what it called."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def begin(self) -> None:
        session = {"type": "realtime", "output_modalities": ["text"], "tools": FUNCTIONS}
        await self._send(type="session.update", session=session | {"audio": {"input": {"turn_detection": None}}})

    async def say(self, what: str | Pcm) -> tuple[str, Calls]:
        """The answer's text, and what it called. Functions give an order number, and that is answered too."""
        part: dict[str, object] = {"type": "input_text", "text": what}
        if not isinstance(what, str):
            pcm = np.clip(soxr.resample(what, 16_000, 24_000), -1.0, 1.0) * 32767
            part = {"type": "input_audio", "audio": base64.b64encode(pcm.astype("<i2").tobytes()).decode()}
        await self._create(type="message", role="user", content=[part])
        text, calls, items = await self._answer()
        if items:
            for number, item in enumerate(items, 1):
                output = json.dumps({"order_number": number})
                await self._create(type="function_call_output", call_id=item["call_id"], output=output)
            _, more, _ = await self._answer()
            calls += more
        return text, calls

    async def _answer(self) -> tuple[str, Calls, list[dict[str, Any]]]:
        await self._send(type="response.create")
        response = (await self._until("response.done"))["response"]
        if response["status"] != "completed":
            raise TalkError(f"a response ended as {response['status']}: {response['status_details']}")
        made = [item for item in response["output"] if item["type"] == "function_call"]
        parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
        calls: Calls = [(item["name"], json.loads(item["arguments"])) for item in made]
        return "".join(part.get("text", "") for part in parts), calls, made

    async def _create(self, **item: object) -> None:
        await self._send(type="conversation.item.create", item=item)

    async def _send(self, **event: object) -> None:
        await self._socket.send_json(event)

    async def _until(self, kind: str) -> dict[str, Any]:
        while True:
            event: dict[str, Any] = await self._socket.receive_json(timeout=TIMEOUT_S)
            if event["type"] == "error":
                raise TalkError(str(event["error"]["message"]))
            if event["type"] == kind:
                return event


def orders(clips: Sequence[Clip]) -> Iterator[tuple[str | Pcm, str, Order]]:
    """Without end: an order as it is given to the service, its words or name, and what is meant by it."""
    number = 0
    while True:
        if clips:
            clip = clips[number % len(clips)]
            yield read_question(clip.path), clip.path.stem, clip.slots
        else:
            rng = random.Random(f"order {HELD_OUT_SEED + number}")
            order = sample_order(rng)
            text = say_order(order, rng)
            yield text, text, order
        number += 1


async def serve(line: Line, given: str | Pcm, shown: str, order: Order, rng: random.Random) -> Customer:
    """One customer from the first word to the last."""
    customer = Customer(wanted=order)

    async def say(what: str | Pcm, words: str, *, confirms: bool = False) -> str:
        answer, calls = await line.say(what)
        customer.said += [words, answer]
        (customer.called if confirms else customer.unasked).extend(calls)
        return answer

    if rng.random() < TALKS:
        small_talk = fill(rng.choice(OFF_TOPIC), rng)
        await say(small_talk, small_talk)
    answer = await say(given, shown)
    if parse_order(answer) == order and rng.random() < CHANGES:
        wish, customer.wanted = change(order, rng)
        answer = await say(wish, wish)
    customer.misunderstood = parse_order(answer) != customer.wanted
    if customer.misunderstood:
        return customer
    if rng.random() < ASKS:
        question = rng.choice(PRICE_QUESTIONS)
        await say(question, question)
    closing = rng.choice(CLOSINGS)
    if rng.random() < CANCELS:
        customer.cancelled = True
        words = rng.choice(CANCELLATIONS)
        await say(words, words, confirms=True)
        await say(closing, closing)
        return customer
    customer.confirmed = True
    await say(closing, closing, confirms=True)
    await say("thank you", "thank you", confirms=True)
    return customer


async def connected(http: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
    """Waits for a place where the service says that it has none. Raises TalkError."""
    for _ in range(MOST_REFUSALS):
        try:
            return await http.ws_connect(f"{url}/v1/realtime?model=agogic", max_msg_size=0)
        except aiohttp.WSServerHandshakeError as refusal:
            wait_s = (refusal.headers or {}).get("Retry-After")
            if wait_s is None:
                raise TalkError(f"the service refused a call: {refusal.status}") from refusal
            await asyncio.sleep(float(wait_s))
    raise TalkError(f"the service had no place {MOST_REFUSALS} times")


async def _talk(url: str, confirmed: int, clips: Sequence[Clip], progress: Progress | None) -> list[Customer]:
    customers: list[Customer] = []
    reached = 0
    async with aiohttp.ClientSession() as http:
        for number, (given, shown, order) in enumerate(orders(clips)):
            if reached == confirmed or len(customers) >= confirmed * (2 + MOST_MISUNDERSTOOD):
                break
            async with await connected(http, url) as socket:
                line = Line(socket)
                await line.begin()
                customers.append(await serve(line, given, shown, order, random.Random(f"customer {number}")))
            reached += customers[-1].confirmed
            if progress is not None:
                progress(reached, confirmed)
    return customers


def run(model: str, confirmed: int, clips: Sequence[Clip] = (), progress: Progress | None = None) -> dict[str, object]:
    """Customers until so many orders are confirmed, `clips` spoken or else written. Raises ServerError, TalkError."""
    server = attacked(model, None, 1)
    server.start()
    try:
        customers = asyncio.run(_talk(server.url, confirmed, clips, progress))
    finally:
        server.stop()
    return summary(customers, spoken=bool(clips))


def summary(customers: Sequence[Customer], *, spoken: bool) -> dict[str, object]:
    submitted = [customer for customer in customers if customer.confirmed]
    cancelled = [customer for customer in customers if customer.cancelled]
    wrong = [customer for customer in customers if customer.unasked or (customer.confirmed and not customer.right)]
    right = sum(customer.right for customer in submitted)
    return {
        "customers": len(customers),
        "spoken": spoken,
        "misunderstood": sum(customer.misunderstood for customer in customers),
        "confirmed": len(submitted),
        "submitted_rightly": right,
        "submitted_rightly_share": round(right / len(submitted), 4) if submitted else None,
        "submitted_unconfirmed": sum(name == SUBMIT for customer in customers for name, _ in customer.unasked),
        "cancelled": len(cancelled),
        "cancelled_rightly": sum(customer.called == [(CANCEL, {})] for customer in cancelled),
        "misses": [
            {"said": one.said, "meant": dict(one.wanted), "called": [*one.unasked, *one.called]} for one in wrong
        ],
    }
