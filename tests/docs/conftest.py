"""The documents are tried against the same servers as the clients."""

from __future__ import annotations

from tests.clients.conftest import fake_server, node_modules

__all__ = ["fake_server", "node_modules"]
