"""WHIP's rules (RFC 9725) that no browser breaks by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from agent.config import parse_config
from agent.rtc.fragment import BadFragment, Fragment, parse
from tests.agent.test_open_internet import serving
from tests.agent.test_webrtc_offers import offered

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
[http]
api_keys = ["key"]
[webrtc]
addresses = ["127.0.0.1"]
connect_timeout_s = 60.0
[[webrtc.ice_servers]]
urls = ["turn:127.0.0.1:9"]
secret = "shared"
"""
BEARER = {"Authorization": "Bearer key"}
SDP = {"Content-Type": "application/sdp", **BEARER}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag", **BEARER}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whip() -> AsyncIterator[str]:
    async with serving(parse_config(CONFIG), workers=True) as (port, _):
        yield f"http://127.0.0.1:{port}"


async def offer() -> str:
    client, text = await offered("audio")
    await client.close()
    return text


async def test_a_session_is_made_patched_by_its_tag_and_deleted(whip: str) -> None:
    async with aiohttp.ClientSession(whip) as http:
        async with http.post("/whip", data=await offer(), headers=SDP) as made:
            assert (made.status, made.content_type) == (201, "application/sdp")
            where, tag, link = made.headers["Location"], made.headers["ETag"], made.headers["Link"]
        assert where.startswith("/whip/") and tag.startswith('"')
        assert (
            link.startswith('<turn:127.0.0.1:9>; rel="ice-server"; username="') and 'credential-type="password"' in link
        )

        async def patched(body: str, **headers: str) -> int:
            async with http.patch(where, data=body, headers={**FRAGMENT, **headers}) as answer:
                return answer.status

        candidate = "a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n"
        assert await patched(candidate) == 428
        assert await patched(candidate, **{"If-Match": '"old"'}) == 412
        assert await patched(candidate, **{"If-Match": f'"old", {tag}'}) == 204
        assert await patched(candidate, **{"If-Match": tag, "Content-Type": "application/sdp"}) == 415
        assert await patched("a=candidate:nonsense\r\n", **{"If-Match": tag}) == 422
        assert await patched("a=ice-ufrag:abcd\r\n" + candidate, **{"If-Match": tag}) == 422
        assert await patched("a=ice-ufrag:abcd\r\na=ice-pwd:" + 22 * "x", **{"If-Match": "*"}) == 409
        async with http.delete(where) as refused:
            assert refused.status == 401
        async with http.delete(where, headers=BEARER) as ended:
            assert ended.status == 200
        async with http.get(where, headers=BEARER) as answer:
            assert answer.status == 405


async def test_what_is_no_offer_or_no_session_is_refused(whip: str) -> None:
    async with aiohttp.ClientSession(whip) as http:
        for headers, body, status in (
            ({"Content-Type": "application/sdp"}, "v=0", 401), ({**SDP, "Content-Type": "text/plain"}, "v=0", 415),
            (SDP, "v=0", 400), (SDP, "x" * 70_000, 413),
        ):  # fmt: skip
            async with http.post("/whip", data=body, headers=headers) as answer:
                assert answer.status == status
        async with http.patch("/whip/rtc_none", data="", headers=FRAGMENT) as answer:
            assert answer.status == 404
        async with http.options("/whip") as answer:
            assert answer.headers["Accept-Post"] == "application/sdp" and "Link" not in answer.headers


async def test_fragments_are_read_as_far_as_they_matter_and_names_are_left_out() -> None:
    text = (
        "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n"
        "a=candidate:1 1 UDP 5 192.0.2.1 61765 typ host\r\n"
        "a=candidate:2 1 UDP 5 7f5b.local 61766 typ host\r\na=end-of-candidates\r\n"
    )
    address = "1 1 UDP 5 192.0.2.1 61765 typ host"
    assert parse(text) == Fragment("EsAw", "P2uYro0UCOQ4zxjKXaWCBui1", (address,), True)
    for broken in ("v=0\r\n", "a=ice-ufrag:x y\r\n", "a=candidate:1 1 UDP\r\n", f"a=candidate:{address}\r\n" * 65):
        with pytest.raises(BadFragment):
            parse(broken)
