"""Who may import whom: the house stays readable only while its rooms keep their doors."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("agent", "benchmarks", "clients", "kernels", "models", "streaming", "tests", "training", "worker")
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "streaming": {"kernels"},
    "models": {"streaming", "kernels"},
    "worker": {"models", "streaming", "kernels", "agent.wire", "agent.memory", "agent.log", "agent.handshake"},
    "agent": set(),
    "training": {"models", "streaming", "kernels"},
}
# The rooms inside the rooms: what a folder may import of its own room besides itself.
DOORS: dict[str, set[str]] = {
    "streaming.layers": set(),
    "streaming.hearing": {"streaming.layers"},
    "streaming.merging": {"streaming.layers"},
    "streaming.speaking": {"streaming.layers", "streaming.hearing.mel_filters"},
    "streaming.flexicodec": {"streaming.layers", "streaming.merging.grouping", "streaming.hearing.windows"},
    "models.networks": {"models.errors"},
    "models.checkpoints": {"models.networks", "models.errors"},
    "models.codec": {"models.checkpoints", "models.errors"},
    "worker.ears": {"worker.parts"},
    "worker.voices": {"worker.parts", "worker.audio_files"},
    "worker.calls": {"worker.parts"},
    "agent.protocol": {"agent.config", "agent.json_object"},
    "agent.turn": {"agent.audio"},
    "agent.echo": {"agent.audio", "agent.clock", "agent.wire"},
    "agent.rtc": set(),
    "agent.telephony.sound": {"agent.audio", "agent.rtc.opus"},
    "agent.telephony.streams": {"agent.audio", "agent.telephony.sound"},
    "agent.telephony.sip": {
        "agent.audio",
        "agent.clock",
        "agent.ids",
        "agent.rtc.jitter",
        "agent.telephony.sound",
    },
    "agent.recording": {
        *(f"agent.{top}" for top in ("audio", "clock", "config", "ids", "json_object", "log", "wire")),
        "agent.dialogue",
        "agent.protocol",
        "agent.turn",
    },
    "agent.telemetry": {"agent.config", "agent.wire", "agent.dialogue.response"},
    "agent.dialogue": {
        *(f"agent.{top}" for top in ("audio", "clock", "config", "ids", "json_object", "wire")),
        "agent.echo",
        "agent.protocol",
        "agent.turn",
    },
}
# The conversation does nothing by itself: what waits, listens or sends belongs to the server around it.
SHELLS = {"asyncio", "socket", "threading", "subprocess", "aiohttp", "websockets", "aiortc", "time"}
# Packages that the service process must never hold: they are large, and model work belongs to the worker.
HEAVY = {"torch", "transformers", "tokenizers", "onnxruntime", "pydantic", "silero_vad", "scipy"}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported name, and whether the import runs as soon as the module is loaded."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    type_checks = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    lazy = {id(inner) for outer in (*functions, *type_checks) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        at_once = id(node) not in lazy
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)


def is_within(name: str, allowed: set[str]) -> bool:
    return any(name == door or name.startswith(door + ".") for door in allowed)


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room: str) -> None:
    assert files(room)
    wrong = []
    for path in files(room):
        is_verb = path.is_relative_to(ROOT / "agent" / "cli")
        for name, at_once in imports(path):
            is_ours = name.split(".")[0] in ROOMS
            if is_ours and not is_within(name, {room} | MAY_IMPORT[room]) and (at_once or not is_verb):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", DOORS)
def test_folders_import_only_what_they_may(folder: str) -> None:
    room = folder.split(".")[0]
    assert files(folder.replace(".", "/"))
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder.replace(".", "/"))
        for name, _ in imports(path)
        if is_within(name, {room}) and not is_within(name, {folder} | DOORS[folder])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "folder", ["agent/dialogue", "agent/telephony/sip", "agent/telephony/sound", "agent/telephony/streams"]
)
def test_what_decides_knows_no_shell(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        for name, _ in imports(path)
        if name.split(".")[0] in SHELLS
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for room in ROOMS
        if room not in ("clients", "tests")
        for path in files(room)
    }

    def module_of(name: str) -> str:
        return name if name in modules else name.rpartition(".")[0]

    graph = {
        module: {module_of(name) for name, at_once in imports(path) if at_once} & modules.keys() - {module}
        for module, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_plan_of_the_house_names_files_that_exist() -> None:
    named = set(re.findall(r"`([\w./-]+/[\w./-]*)`", (ROOT / "docs" / "house.md").read_text("utf-8")))
    assert len(named) > 60
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, missing


def test_the_plan_of_the_house_names_every_folder() -> None:
    text = (ROOT / "docs" / "house.md").read_text("utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() for room in ROOMS if room != "tests" for path in files(room)}
    assert not [folder for folder in sorted(folders) if f"{folder}/" not in text]


def test_agent_names_no_heavy_package_outside_its_verbs() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files("agent")
        for name, at_once in imports(path)
        if name.split(".")[0] in HEAVY and (at_once or not path.is_relative_to(ROOT / "agent" / "cli"))
    ]
    assert not wrong, "\n".join(wrong)


def test_one_module_knows_ray_and_only_when_it_is_asked() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), at_once)
        for room in ("agent", "worker", "benchmarks")
        for path in files(room)
        if "import ray" in path.read_text("utf-8")
        for name, at_once in imports(path)
        if name.split(".")[0] == "ray"
    }
    assert found == {("agent/cluster/control.py", False), ("agent/cluster/host.py", False)}


def test_loading_the_service_loads_no_torch() -> None:
    heavy = f"[m for m in sys.modules if m.split('.')[0] in {HEAVY!r}]"
    code = f"import sys, agent.server.app, agent.cli.serve; print({heavy})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr


def test_loading_the_conversation_loads_no_shell() -> None:
    paths = [path for room in ("agent/dialogue", "agent/protocol", "agent/turn") for path in files(room)]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    loaded = sorted(SHELLS - {"threading", "time"})  # those two come with Python's own logging
    code = f"import sys, {', '.join(modules)}; print([name for name in {loaded} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr


def test_the_command_line_loads_only_the_verb_that_runs() -> None:
    code = "import sys, agent.cli.main as main; main.build(None); print(*({'aiohttp', 'torch'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "", ended.stdout + ended.stderr


def test_no_file_holds_an_unfinished_merge() -> None:
    texts = [*ROOT.glob("*.md"), *(path for room in (*ROOMS, "docs") for path in (ROOT / room).rglob("*.*"))]
    own = [path for path in texts if path.suffix in (".md", ".py", ".toml") and "node_modules" not in path.parts]
    begun = [path for path in own if re.search(r"^(<{7}|>{7}) ", path.read_text("utf-8", "replace"), re.MULTILINE)]
    assert len(own) > 500 and begun == []
