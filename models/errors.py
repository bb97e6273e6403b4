"""What can be wrong with a model on disk; every message is one sentence that names the file and the mend."""

from __future__ import annotations


class CheckpointError(Exception):
    """The model directory cannot be used."""
