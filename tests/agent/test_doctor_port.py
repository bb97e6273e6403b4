"""`agogic doctor` on the port: taken by a listener, free again right after its connections closed."""

from __future__ import annotations

import socket

from agent.cli.doctor import _port


def test_a_listener_takes_the_port_and_its_closed_connections_do_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert [finding.verdict for finding in _port("127.0.0.1", port)] == ["note"]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first lingers in TIME_WAIT
        client.close()
    assert [finding.verdict for finding in _port("127.0.0.1", port)] == ["ok"]
