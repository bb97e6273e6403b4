"""The documents: no dead link, and no block of code that does not do what it says."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from agent.cli.main import _VERBS, build
from agent.config import parse_config
from agent.server.keys import load as load_keys
from tests.clients.conftest import ROOT, Server

PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "clients" / "python" / "README.md",
    ROOT / "clients" / "web" / "README.md",
]
ALL_PAGES = [
    *PAGES,
    *sorted((ROOT / "clients" / "telephony").glob("*.md")),
    ROOT / "models" / "embedded" / "MODEL_CARD.md",
]
# A name of a folder or an object stands for what the reader has.
OUTLINES = {"codec.md"}
COMMAND = re.compile(r"(?:^|`)(?:    )?(agogic [a-z][^`\n]*)", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, kind, code) for page in PAGES for kind, code in FENCE.findall(page.read_text("utf-8"))]
KNOWN = {"sh", "python", "ts", "tsx", "json", "toml", "nginx", "ini", "dockerfile", "text"}


def blocks(*kinds: str) -> list[object]:
    found = [(page, code) for page, kind, code in BLOCKS if kind in kinds]
    return [pytest.param(page, code, id=f"{page.name}-{at}") for at, (page, code) in enumerate(found)]


def test_every_block_says_what_it_is() -> None:
    assert {kind for _, kind, _ in BLOCKS} <= KNOWN
    assert len(BLOCKS) > 40


def test_the_guide_is_built_without_a_dead_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("index.html"))
    assert len(pages) > 20
    fetched = re.compile(r'<(script|link)[^>]+(src|href)="https?://')
    assert not [page for page in pages if fetched.search(page.read_text("utf-8"))], (
        "nothing is fetched from elsewhere when somebody reads"
    )


@pytest.mark.parametrize("page", [page for page in PAGES if "docs" not in page.parts], ids=str)
def test_links_outside_the_guide_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    inside = [target for target in targets if not re.match(r"https?:", target)]
    assert not [target for target in inside if not (page.parent / target).exists()]


def test_pages_made_from_the_code_are_what_it_makes() -> None:
    code = "import json, make_reference as m; print(json.dumps({str(p): t for p, t in m.pages().items()}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, timeout=60, check=True
    )
    stale = [path for path, text in json.loads(done.stdout).items() if Path(path).read_text("utf-8") != text]
    assert not stale, f"run `python docs/make_reference.py`: {stale}"


@pytest.mark.parametrize(("page", "code"), blocks("json"))
def test_json_is_json(page: Path, code: str) -> None:
    json.loads(code)


@pytest.mark.parametrize(("page", "code"), blocks("toml", "ini"))
def test_configurations_are_taken(page: Path, code: str, tmp_path: Path) -> None:
    if "[Unit]" in code:
        unit = configparser.ConfigParser(interpolation=None)
        unit.read_string(code)
        started = shlex.split(unit["Service"]["ExecStart"])
        check_command(["agogic", *started[1:]])
        return
    if "keys" in tomllib.loads(code):
        keys = tmp_path / "keys.toml"
        keys.write_text(code, "utf-8")
        assert load_keys(keys)
        return
    parse_config(code)


@pytest.mark.parametrize(("page", "code"), blocks("sh"))
def test_commands_exist_with_all_their_options(page: Path, code: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for line in filter(None, (line.strip() for line in code.splitlines())):
        for part in line.split("&&"):
            words = [word for word in shlex.split(part.split("  #")[0]) if not re.match(r"[A-Z_]+=", word)]
            match words:
                case ["make", target, *_]:
                    assert target in targets
                case ["agogic", *_]:
                    check_command(words)
                case ["npm", "ci" | "pack" | "install", *_] | ["cd" | "git", *_]:
                    pass
                case _:
                    pytest.fail(f"{part!r} is no command that this test knows")


def check_command(words: list[str]) -> None:
    """The verb is there, and so is each option."""
    command = get_command(build(words[1]))
    context = typer.Context(command, info_name="agogic")
    rest = words[1:]
    while rest and not rest[0].startswith("-"):
        child = command.get_command(context, rest[0]) if hasattr(command, "get_command") else None
        if child is None:
            break
        command, rest = child, rest[1:]
    assert command.name != "agogic", words
    known = {"--help", *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))}
    assert {word for word in rest if word.startswith("-")} <= known, words


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_every_command_that_is_mentioned_exists_with_its_options(page: Path) -> None:
    """In running text and outlines too, where brackets stand for what may be left out."""
    for command in COMMAND.findall(page.read_text("utf-8")):
        words = re.sub(r"[\[\]|…]", " ", re.split(r"\s{2,}", command.strip())[0]).split()
        if len(words) > 1 and words[1] in _VERBS:
            check_command(words)


@pytest.mark.parametrize(("page", "code"), [pair for pair in blocks("python") if pair.values[0].name in OUTLINES])
def test_outlines_in_python_name_what_there_is(page: Path, code: str) -> None:
    """What is imported is there, and is called with arguments that it takes."""
    tree = ast.parse(code)
    names = {
        alias.name: getattr(importlib.import_module(str(node.module)), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names]
    assert len(calls) >= 2
    for call in calls:
        given = {str(keyword.arg): None for keyword in call.keywords}
        inspect.signature(names[call.func.id]).bind(*call.args, **given)


@pytest.mark.parametrize(("page", "code"), [pair for pair in blocks("python") if pair.values[0].name not in OUTLINES])
def test_python_runs(page: Path, code: str, fake_server: Server, tmp_path: Path) -> None:
    """Each block is a program; only the address is changed."""
    program = code.replace("http://127.0.0.1:8790", fake_server.url).replace(
        "agogic_client.connect(tools", f'agogic_client.connect("{fake_server.url}", tools'
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "clients" / "python")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_typescript_type_checks(node_modules: Path) -> None:
    """All blocks at once, in a project beside the SDK's sources: its name leads to them, and its packages are found."""
    web = ROOT / "clients" / "web"
    with tempfile.TemporaryDirectory(prefix="documents-", dir=web) as made:
        folder = Path(made)
        (folder / "tsconfig.json").write_text('{"extends": "../tsconfig.json", "include": ["."]}')
        for at, (_, kind, code) in enumerate(block for block in BLOCKS if block[1] in ("ts", "tsx")):
            (folder / f"block{at}.{kind}").write_text(f"{code}\nexport {{}};\n")
        command = [str(node_modules / ".bin" / "tsc"), "--noEmit", "--project", made]
        done = subprocess.run(command, cwd=web, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stdout
