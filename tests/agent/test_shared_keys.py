"""Keys in a cluster: what any service mints opens sessions at all of them, and limits count over all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.clock import ManualClock
from agent.cluster import shared_keys
from agent.cluster.ledger import SETTLE_S, SILENT_S, Admit, Ledger, Look, Mint, Reply, Report, Shared, Visiting
from agent.server.auth import MAX_ALL_SECRETS_BYTES, MAX_SECRETS
from tests.agent.test_keys import bearer, entry
from tests.agent.test_neighbours import KEY, Edge, cluster
from tests.support.cluster import LocalControl, becomes

MIDNIGHT = 20_000 * 86_400


class Both:
    """A ledger and its clocks, which go together."""

    def __init__(self, settle_s: float = 0.0, unix_s: int = MIDNIGHT + 3600) -> None:
        self.clock = ManualClock(unix_s=unix_s)
        self.ledger = Ledger("life", settle_s, clock=self.clock.now_s, calendar=self.clock.unix_s)
        self._number = 0

    def ask(self, asked: Mint | Look | Admit | Report) -> Reply:
        return msgspec.msgpack.decode(self.ledger.ask(msgspec.msgpack.encode(asked)), type=Reply)

    def mint(self, name: str, *, again: bool = False, **more: object) -> str:
        kept = msgspec.convert({"digest": name, "expires_at": MIDNIGHT + 7200, **more}, Shared)
        return self.ask(Mint([kept], again)).code

    def admit(self, service: str, session: str, **more: object) -> str:
        self._number += 1
        asked = {"service": service, "number": self._number, "session": session, "name": "shop", **more}
        return self.ask(msgspec.convert(asked | {"type": "Admit"}, Admit)).code

    def report(self, service: str, spent_s: float = 0.0, number: int | None = None, **visits: Visiting) -> list[str]:
        self._number += 1
        day = self.clock.unix_s() // 86_400
        return self.ask(Report(service, number or self._number, day, {"shop": spent_s}, visits)).end

    def visit(self, *, waits: bool = False, ago_s: int = 0) -> Visiting:
        return Visiting("shop", self.clock.unix_s() - ago_s, waits)


# --- what is agreed on ---


def test_an_ephemeral_key_is_found_by_its_digest_and_used_once() -> None:
    book = Both()
    assert book.mint("d", session=b'{"instructions":"Bound."}', single_use=True, minted_by="m") == ""
    found = book.ask(Look("d")).secret
    assert found is not None and not found.used
    assert (found.session, found.minted_by) == (b'{"instructions":"Bound."}', "m")
    assert book.admit("b", "s1", secret="d") == ""
    assert book.admit("a", "s2", secret="d") == "used"
    assert (secret := book.ask(Look("d")).secret) is not None and secret.used, "its owner may still ask the way"
    assert book.ask(Look("e")).code == book.admit("b", "s3", secret="e") == "unknown"


def test_there_are_no_more_than_one_service_may_have() -> None:
    book = Both()
    book.ask(Mint([Shared(f"d{number}", MIDNIGHT + 7200) for number in range(MAX_SECRETS)]))
    assert book.mint("more") == "full"
    book.clock.advance(7200)
    assert book.mint("more") == "", "those have expired"
    assert book.mint("large", session=b"x" * (MAX_ALL_SECRETS_BYTES + 1)) == "full"


def test_sessions_of_all_services_count_and_each_only_once() -> None:
    book = Both()
    assert book.admit("a", "s1", max_sessions=2) == book.admit("b", "s2", max_sessions=2) == ""
    assert book.admit("a", "s3", max_sessions=2) == "sessions"
    assert book.admit("a", "s3", name="desk", max_sessions=2) == "", "another key"
    assert book.admit("b", "s2", max_sessions=2) == "", "it is in already"
    book.report("a", s1=book.visit())
    book.report("b", s1=book.visit(), s2=book.visit())
    assert book.admit("a", "s3", max_sessions=3) == "", "s1 has moved from one to the other"
    book.report("b")
    assert book.admit("a", "s4", max_sessions=3) == "", "s2 is over"


def test_a_report_that_was_overtaken_changes_nothing() -> None:
    book = Both()
    book.admit("a", "s1", max_sessions=1)
    book.report("a", number=1)
    book.admit("a", "s2", max_sessions=1)
    book.report("a", number=1)
    assert book.admit("b", "s3", max_sessions=1) == "sessions"


def test_who_waits_for_its_client_makes_room_wherever_it_is() -> None:
    book = Both()
    book.report("a", s1=book.visit(waits=True), s2=book.visit())
    assert book.admit("b", "s3", max_sessions=2) == ""
    assert book.admit("b", "s4", max_sessions=2) == "sessions", "there is one such place only"
    assert book.report("a", s1=book.visit(waits=True), s2=book.visit()) == ["s1"]
    assert book.report("a", s1=book.visit(), s2=book.visit()) == [], "its client came back in time"
    assert book.admit("b", "s4", max_sessions=3) == "sessions"
    assert book.report("a", s2=book.visit()) == []
    assert book.admit("b", "s4", max_sessions=3) == ""


def test_minutes_of_all_services_count_by_day_and_up_to_now() -> None:
    book = Both()
    book.report("a", 120.0, s1=book.visit(ago_s=60))
    book.report("b", 60.0)
    assert book.ledger.minutes("shop") == 4
    assert book.admit("b", "s2", minutes_per_day=4.5) == ""
    book.clock.advance(30)
    book.report("a", 120.0, s1=book.visit(ago_s=90))
    book.report("b", 60.0, s2=book.visit(ago_s=30))
    assert book.ledger.minutes("shop") == 5
    assert book.admit("b", "s3", minutes_per_day=5.0) == "minutes"
    assert book.admit("b", "s3", name="desk", minutes_per_day=5.0) == ""
    book.clock.advance(86_400 - 3630 + 120)
    book.report("a", 0.0, s1=Visiting("shop", MIDNIGHT))
    assert book.ledger.minutes("shop") == 2, "of what began yesterday, what passed since midnight"


def test_what_a_service_that_is_gone_had_spent_stays_until_it_says_otherwise() -> None:
    book = Both()
    book.report("a", 60.0, s1=book.visit(ago_s=60))
    book.clock.advance(SILENT_S)
    book.report("b")
    assert book.ledger.minutes("shop") == 2, "until its last word"
    assert book.admit("b", "s2", max_sessions=1) == ""
    book.report("a", 90.0)
    assert book.ledger.minutes("shop") == 1.5


def test_after_a_restart_nothing_is_believed_before_everybody_has_spoken() -> None:
    book = Both(settle_s=SETTLE_S)
    assert book.ask(Look("d")).code == "settling"
    book.mint("d", again=True, single_use=True)
    book.mint("new", single_use=True)
    assert book.ask(Look("d")).secret is not None
    assert book.admit("b", "s1", secret="d") == "settling" and book.admit("b", "s1", secret="new") == ""
    book.mint("d", again=True, single_use=True, used=True)
    book.clock.advance(SETTLE_S)
    assert book.admit("b", "s1", secret="d") == "used", "where it was used they know"
    assert book.ask(Look("e")).code == "unknown"


# --- two services ---


@asynccontextmanager
async def both(folder: Path, keys: str = "") -> AsyncIterator[tuple[LocalControl, Edge, Edge, aiohttp.ClientSession]]:
    file = ""
    if keys:
        (folder / "keys.toml").write_text(keys)
        file = str(folder / "keys.toml")
    async with cluster(1, file) as (control, first, second), aiohttp.ClientSession() as http:
        yield control, first, second, http


async def minted(http: aiohttp.ClientSession, at: Edge, key: str = KEY, **wanted: object) -> str:
    async with http.post(f"{at.url}/v1/realtime/client_secrets", headers=bearer(key), json=wanted) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["value"])


async def opened(http: aiohttp.ClientSession, at: Edge, key: str) -> aiohttp.ClientWebSocketResponse:
    socket = await http.ws_connect(f"{at.url}/v1/realtime?model=agogic", headers=bearer(key))
    created = await socket.receive_json(timeout=30)
    assert created["type"] == "session.created"
    socket.instructions = created["session"]["instructions"]  # type: ignore[attr-defined]
    return socket


async def refusal(http: aiohttp.ClientSession, at: Edge, key: str) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await opened(http, at, key)
    return error.value.status


ONCE = {"single_use": True}


async def test_a_key_that_one_service_minted_opens_its_session_at_another_with_its_settings(tmp_path: Path) -> None:
    async with both(tmp_path) as (control, first, second, http):
        bound = {"type": "realtime", "instructions": "Bound."}
        many = await minted(http, first, session=bound)
        for _ in range(2):
            socket = await opened(http, second, many)
            assert socket.instructions == "Bound."  # type: ignore[attr-defined]
            await socket.close()
        once = await minted(http, first, session=bound, x_agogic=ONCE)
        async with http.get(f"{second.url}/v1/realtime/ice_servers", headers=bearer(once)) as before:
            assert before.status == 200, "asking the way is no session"
        socket = await opened(http, second, once)
        assert socket.instructions == "Bound."  # type: ignore[attr-defined]
        assert [await refusal(http, at, once) for at in (second, first, second)] == [401] * 3
        async with http.get(f"{first.url}/v1/realtime/ice_servers", headers=bearer(once)) as after:
            assert after.status == 200, "where its session is, that is still its key"
        assert await refusal(http, second, "ek_" + "x" * 32) == 401
        assert once not in str(vars(control.book)) and many not in str(control.book._secrets)
        await socket.close()


async def test_of_two_who_come_at_once_with_a_key_for_one_session_one_is_let_in(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, first, second, http):
        for _ in range(3):
            once = await minted(http, first, x_agogic=ONCE)
            came = await asyncio.gather(
                *(opened(http, at, once) for at in (first, second, first, second)), return_exceptions=True
            )
            let_in = [each for each in came if isinstance(each, aiohttp.ClientWebSocketResponse)]
            assert len(let_in) == 1
            assert {each.status for each in came if isinstance(each, aiohttp.WSServerHandshakeError)} <= {400, 401}
            await let_in[0].close()
        await becomes(lambda: first.service.session_count == second.service.session_count == 0)


async def test_it_expires_everywhere_and_goes_with_the_key_that_minted_it(tmp_path: Path) -> None:
    async with both(tmp_path, entry("minter", "shop")) as (_, first, second, http):
        short = await minted(http, first, key="minter", expires_after={"anchor": "created_at", "seconds": 600})
        other = await minted(http, first, key="minter")
        await (await opened(http, second, other)).close()
        second.service.auth._clock = ManualClock(unix_s=int(time.time()) + 601)
        assert await refusal(http, second, short) == 401
        second.service.auth._clock = second.service.clock
        (tmp_path / "keys.toml").write_text(entry("another", "shop"))
        second.service.keys.read()
        assert await refusal(http, second, other) == 401


async def test_a_key_has_as_many_sessions_as_it_may_over_all_services(tmp_path: Path) -> None:
    async with both(tmp_path, entry("s3cret", "shop", "max_sessions = 2")) as (control, first, second, http):
        one, two = await opened(http, first, "s3cret"), await opened(http, second, "s3cret")
        assert [await refusal(http, at, "s3cret") for at in (first, second)] == [503, 503]
        assert await refusal(http, second, await minted(http, first, key="s3cret")) == 503, (
            "what it mints counts as its"
        )
        once = await minted(http, first, key="s3cret", x_agogic=ONCE)
        assert await refusal(http, second, once) == 503
        await one.close()
        await becomes(lambda: first.service.session_count == 0)
        await becomes(lambda: len(control.book._services) == 2 and sum(
            len(each.visits) for each in control.book._services.values()
        ) == 1)  # fmt: skip
        again = await opened(http, second, once)
        await again.close()
        await two.close()


async def test_minutes_are_those_of_all_services(tmp_path: Path) -> None:
    async with both(tmp_path, entry("s3cret", "shop", "minutes_per_day = 10")) as (control, first, second, http):
        await (await opened(http, second, "s3cret")).close()
        first.service._usage._spent_s["shop"] = 600.0
        first.service._usage._turn_the_page(first.service.clock.unix_s())
        first.service._usage._spent_s["shop"] = 600.0
        await becomes(lambda: control.book.minutes("shop") >= 10)
        assert await refusal(http, second, "s3cret") == 503


async def test_a_session_that_waits_for_its_client_ends_for_a_newcomer_at_another_service(tmp_path: Path) -> None:
    async with both(tmp_path, entry("s3cret", "shop", "max_sessions = 1")) as (control, first, second, http):
        socket = await opened(http, first, "s3cret")
        content = [{"type": "input_text", "text": "alpha"}]
        item = {"type": "message", "role": "user", "content": content}
        await socket.send_json({"type": "conversation.item.create", "item": item})
        while (await socket.receive_json(timeout=30))["type"] != "conversation.item.done":
            pass
        connection = socket._response.connection
        assert connection is not None and connection.transport is not None
        connection.transport.abort()
        await becomes(lambda: any(
            visit.waits for each in control.book._services.values() for visit in each.visits.values()
        ))  # fmt: skip
        newcomer = await opened(http, second, "s3cret")
        await becomes(lambda: first.service.session_count == 0)
        await newcomer.close()


async def test_where_the_store_does_not_answer_nobody_waits_long_and_everybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_keys, "ASK_S", 0.2)
    async with both(tmp_path, entry("s3cret", "shop", "max_sessions = 1")) as (control, first, second, http):
        once = await minted(http, first, x_agogic=ONCE)
        many, unknown = await minted(http, first), await minted(http, first)
        await (await opened(http, second, many)).close()
        control.stores.clear()
        began_s = time.monotonic()
        assert [await refusal(http, at, key) for at, key in ((second, unknown), (first, once), (second, once))] == [
            503
        ] * 3
        async with http.post(f"{first.url}/v1/realtime/client_secrets", headers=bearer(KEY), json={}) as answer:
            assert answer.status == 503 and answer.headers["Retry-After"]
        assert time.monotonic() - began_s < 10.0
        for at, key in ((second, many), (first, many), (second, KEY), (second, "s3cret")):
            await (await opened(http, at, key)).close()
        control.stores.set()
        assert second.service.shared_keys is not None
        await becomes(lambda: second.service.shared_keys._answers and first.service.shared_keys._answers)
        await (await opened(http, second, unknown)).close()
        await (await opened(http, second, once)).close()


async def test_a_store_that_lost_everything_hears_of_all_keys_again(tmp_path: Path) -> None:
    async with both(tmp_path) as (control, first, second, http):
        fresh, used = await minted(http, first, x_agogic=ONCE), await minted(http, first, x_agogic=ONCE)
        await (await opened(http, second, used)).close()
        control.book = Ledger("second life", SETTLE_S)
        assert await refusal(http, second, fresh) == 503, "it is not known yet"
        await becomes(lambda: sorted(kept.secret.used for kept in control.book._secrets.values()) == [False, True])
        control.book._settled_s = 0.0
        assert await refusal(http, first, used) == 401
        await (await opened(http, second, fresh)).close()


async def test_junk_reaches_the_store_at_a_bounded_rate_and_keys_without_limits_never_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both(tmp_path) as (control, first, _, http):
        keys = first.service.shared_keys
        assert keys is not None
        first.service.clock = ManualClock()
        keys._looked_s = 0.0
        keys._looks = 3.0
        asked: list[str] = []
        told = control.ledger

        async def ledger(data: bytes) -> bytes:
            kind = type(msgspec.msgpack.decode(data, type=Mint | Look | Admit | Report)).__name__
            asked.extend([kind] if kind != "Report" else [])
            return await told(data)

        monkeypatch.setattr(control, "ledger", ledger)
        seen = []
        for number in range(6):
            async with http.get(f"{first.url}/v1/models", headers=bearer(f"ek_{number:032}")) as answer:
                seen.append(answer.status)
        assert seen == [401] * 3 + [503] * 3 and asked == ["Look"] * 3
        await (await opened(http, first, KEY)).close()
        assert asked == ["Look"] * 3


class replace_ledger:
    def __init__(self, ledger: object) -> None:
        self.ledger = ledger
