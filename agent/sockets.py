"""Writing to a connection that may have ended a moment ago."""

from __future__ import annotations

import asyncio


def write(writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Never blocks. False if the connection has ended, which its reader learns of in its own time.

    asyncio's own loop drops what is written to a closed connection; uvloop raises RuntimeError.
    """
    if writer.transport.is_closing():
        return False
    try:
        writer.write(data)
    except (RuntimeError, ConnectionError):
        return False
    return True
