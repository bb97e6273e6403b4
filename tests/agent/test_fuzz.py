"""Sound that is cut in any way is the same to the worker; `tests/fuzz/conversation.py` has whole conversations."""

from __future__ import annotations

import base64

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.session_driver import SessionDriver


@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=0, max_size=4000), cuts=st.lists(st.integers(1, 400), max_size=20))
def test_any_chunking_of_the_sound_is_the_same_to_the_worker(data: bytes, cuts: list[int]) -> None:
    data = data[: len(data) // 2 * 2]
    heard = []
    for pieces in ([len(data)], [2 * cut for cut in cuts]):
        driver = SessionDriver(settings={"audio": {"input": {"turn_detection": None}}})
        offset = 0
        for size in [*pieces, len(data)]:
            piece = data[offset : offset + size]
            offset += size
            driver.send(type="input_audio_buffer.append", audio=base64.b64encode(piece).decode())
        driver.send(type="input_audio_buffer.append", audio=base64.b64encode(bytes(9600)).decode())
        driver.send(type="input_audio_buffer.commit")
        heard.append(b"".join(m.pcm for m in driver.to_worker if hasattr(m, "pcm")))
    assert heard[0] == heard[1]
