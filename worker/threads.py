"""How many cores torch may use; to be settled before anything imports torch."""

from __future__ import annotations

import os


def limit_threads(threads: int) -> None:
    """Busy-waiting OpenMP threads starve the process that paces the audio, so they wait passively unless the caller's
    environment says otherwise."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)
