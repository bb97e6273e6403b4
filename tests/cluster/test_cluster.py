"""Two machines of a Ray cluster (on one), three workers, two services, eight conversations, and `kill -9`.

`make cluster-test` runs it. The workers are fake ones that recite all that the user has said so far, so that every
answer shows whether the history is whole. AGOGIC_CLUSTER_WORKERS=embedded takes the real ones, of which only what the
client knows is looked at.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import ray
from ray.cluster_utils import Cluster

from agent.cluster.control import RayControl
from agent.cluster.messages import ControlError, HostReport
from tests.support.cluster import Talker
from tests.support.service_process import ServiceProcess, fake_worker_command

CALLERS = 8
WORKERS = 3
NEXT_TURN_S = 5.0
REAL = os.environ.get("AGOGIC_CLUSTER_WORKERS") == "embedded"
KEY = "key-of-the-cluster-test"


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """A head that holds what Ray knows, and another machine; each could hold all workers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "include_dashboard": False, "object_store_memory": 100_000_000},
    )
    cluster.add_node(num_cpus=4, object_store_memory=100_000_000)
    ray.init(address=cluster.address, namespace="agogic", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def config(machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "cluster.toml"
    path.write_text(
        f'[http]\napi_keys = ["{KEY}"]\n[cluster]\nenabled = true\naddress = "{machines.address}"\n'
        f"min_workers = {WORKERS}\nmax_workers = {WORKERS}\n"
    )
    return path


def started(config: Path) -> ServiceProcess:
    command = None if REAL else fake_worker_command("--recite", "--pace", "0.5", "--slots", "16")
    return ServiceProcess(command, config=config, ready_timeout_s=120.0, log_level="info")


@pytest.fixture(scope="module")
def services(config: Path) -> Iterator[list[ServiceProcess]]:
    running = [started(config) for _ in range(2)]
    yield running
    for service in running:
        service.stop()


@asynccontextmanager
async def talkers(services: list[ServiceProcess]) -> AsyncIterator[list[Talker]]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}))
        clients = [Talker(http, [each.base_url for each in services], index % 2) for index in range(CALLERS)]
        running = [asyncio.create_task(client.run()) for client in clients]
        async with asyncio.timeout(60.0):
            await asyncio.gather(*(client.ready() for client in clients))
        yield clients
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def workers(control: RayControl) -> dict[str, HostReport]:
    """Those that are ready, by name; waits until there are enough."""
    async with asyncio.timeout(240.0):
        while True:
            try:
                names = await control.worker_names()
                found = {name: await control.report(name) for name in names}
            except ControlError:
                found = {}
            ready = {name: report for name, report in found.items() if report.ready}
            if len(ready) >= WORKERS:
                return ready
            await asyncio.sleep(0.25)


async def linked(services: list[ServiceProcess], count: int) -> None:
    """Until each of these services knows so many workers."""
    slots = (32 if REAL else 16) * count
    async with asyncio.timeout(120.0):
        for service in services:
            while json.loads((await asyncio.to_thread(service.get, "/readyz"))[1])["slots"] < slots:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def question(caller: int, number: int) -> str:
    return f"c{caller}t{number}"


async def turn(clients: list[Talker], number: int) -> list[float]:
    """Each caller asks, and hears the whole answer; how long each waited for its first sound."""
    turns = await asyncio.gather(*(client.ask(question(at, number)) for at, client in enumerate(clients)))
    await asyncio.gather(*(client.done() for client in clients))
    for at, asked in enumerate(turns):
        assert asked.status == "completed", (at, asked)
        if not REAL:
            everything = " ".join(question(at, earlier) for earlier in range(number + 1))
            assert asked.said == everything, "the model is told the whole history"
    return [asked.heard_s - asked.asked_s for asked in turns if asked.heard_s is not None]


async def through(
    clients: list[Talker], number: int, kill: Callable[[], None], what: str, asked_before_s: float | None = None
) -> int:
    """`kill` while everybody is being answered, or where `asked_before_s` is given, while the questions arrive, the
    first of them so long before; the next turn, asked as soon as that answer is over in whichever way, is heard in
    time. Returns the number of the turn to come."""
    asking = []
    for at, client in enumerate(clients):
        asking.append(asyncio.create_task(client.ask(question(at, number))))
        await asyncio.sleep((asked_before_s or 0.0) / CALLERS)
    if asked_before_s is None:
        await asyncio.gather(*asking)
    killed_s = time.monotonic()
    kill()
    interrupted = await asyncio.gather(*asking)
    await asyncio.gather(*(client.done() for client in clients))
    ended = [each.status for each in interrupted]
    over_s = time.monotonic() - killed_s
    waited = await turn(clients, number + 1)
    assert len(waited) == CALLERS
    print(
        f"\nkill -9 of {what}: {ended.count('completed')} answers went on, {ended.count('failed')} were cut and over "
        f"after {over_s:.2f} s at most; next turn heard after p50 {statistics.median(waited):.2f} s, "
        f"max {max(waited):.2f} s; {sum(client.losses for client in clients)} connections were lost so far",
        flush=True,
    )
    assert max(waited) <= NEXT_TURN_S
    assert over_s + max(waited) <= NEXT_TURN_S or ended.count("completed")
    for at, client in enumerate(clients):
        assert client.complaints() == [], at
    return number + 2


async def test_what_one_service_mints_opens_its_session_at_the_other_and_costs_a_message_or_two(
    services: list[ServiceProcess],
) -> None:
    await linked(services, WORKERS)

    async def opened(at: ServiceProcess, key: str) -> float:
        """How long it took, in ms; raises where it is refused."""
        began_s = time.perf_counter()
        url = f"{at.base_url}/v1/realtime?model=agogic"
        async with http.ws_connect(url, headers={"Authorization": f"Bearer {key}"}) as socket:
            created = await socket.receive_json(timeout=30.0)
            took_s = time.perf_counter() - began_s
            assert created["type"] == "session.created"
            assert key == KEY or created["session"]["instructions"] == "Bound."
        return 1000 * took_s

    async with aiohttp.ClientSession() as http:
        plain, once = [], []
        for _ in range(40):
            wanted = {"session": {"type": "realtime", "instructions": "Bound."}, "x_agogic": {"single_use": True}}
            secrets = f"{services[0].base_url}/v1/realtime/client_secrets"
            async with http.post(secrets, json=wanted, headers={"Authorization": f"Bearer {KEY}"}) as answer:
                key = (await answer.json())["value"]
            plain.append(await opened(services[1], KEY))
            once.append(await opened(services[1], key))
            for at in services:
                with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                    await opened(at, key)
    print(
        f"\nfrom connecting to session.created: p50 {statistics.median(plain):.1f} ms with an API key, "
        f"{statistics.median(once):.1f} ms with another service's key for one session (asked for, then used up); "
        f"longest {max(plain):.1f} and {max(once):.1f} ms",
        flush=True,
    )


async def test_eight_conversations_go_on_through_the_loss_of_a_worker_a_service_and_a_machine(
    machines: Cluster, config: Path, services: list[ServiceProcess]
) -> None:
    control = RayControl("agogic")
    await workers(control)
    await linked(services, WORKERS)
    async with talkers(services) as clients:
        await turn(clients, 0)
        used = [report.worker_pid for report in (await workers(control)).values() if report.worker_pid is not None]
        number = await through(clients, 1, lambda: os.kill(used[0], signal.SIGKILL), "a worker")
        await workers(control)
        await linked(services, WORKERS)

        other = next(node for node in machines.list_all_nodes() if node is not machines.head_node)
        number = await through(
            clients, number, lambda: machines.remove_node(other, allow_graceful=False), "a machine with its workers"
        )
        assert len(await workers(control)) == WORKERS, "Ray placed those of the lost machine elsewhere"
        await linked(services, WORKERS)

        lost = services[0]
        number = await through(clients, number, lambda: lost.process.kill(), "a service")
        assert all(client.at == 1 for client in clients)

        # What was just asked may be known to the client, the service and the store in any combination.
        services.append(await asyncio.to_thread(started, config))
        await linked(services[1:], WORKERS)
        for client in clients:
            client.urls = [service.base_url for service in (services[2], services[1])]
        number = await through(
            clients, number, lambda: services[1].process.kill(), "a service, right after the questions", 0.1
        )
        assert all(client.at == 0 for client in clients)

        await turn(clients, number)
        for at, client in enumerate(clients):
            told = client.items()
            assert client.history() == list(told), "what it was told of is the whole conversation, in this order"
            for item, text in told.items():
                assert await client.retrieved(item) == text
            assert client.answers() == {question(at, asked): (1, 1) for asked in range(number + 1)}
            assert [each.text for each in client.turns] == [question(at, asked) for asked in range(number + 1)]
            assert client.complaints() == []


def test_without_ray_it_says_what_to_install(tmp_path: Path) -> None:
    """The package is hidden, as if it were not there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n\nclass Hidden:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ray':\n            raise ModuleNotFoundError(name)\n\nsys.meta_path.insert(0, Hidden())\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ended = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "serve", "--cluster", "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.strip() == (
        "agogic serve: a cluster needs Ray, which is not installed: pip install 'agogic[cluster]'"
    )
