"""Memory that was freed goes back to the system.

glibc raises the size above which it takes memory straight from the system to that of the largest block ever freed, up
to 32 MB, and keeps everything smaller for itself: a process that once held large messages stays large. Neither function
does anything where the C library is another one.
"""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 256 * 1024


def give_back_large_blocks() -> None:
    """From now on whatever is larger than `_LARGE_BYTES` is returned as soon as it is freed, and threads share what is
    smaller, instead of keeping a store each."""
    if (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def set_apart_what_stays() -> None:
    """What has been loaded by now lives as long as the process. Left out of the garbage collector's rounds it keeps
    them short, and they come when what callers leave behind has grown a little, not by as much as all that was loaded.
    """
    gc.collect()
    gc.freeze()


def give_back_all() -> None:
    """Returns all that is free now. Takes some milliseconds."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def _of_glibc(name: str) -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
