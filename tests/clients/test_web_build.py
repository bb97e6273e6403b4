"""The SDK's own tests, and the committed page: it must be what its sources build."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.clients.conftest import ROOT

WEB = ROOT / "clients" / "web"
COMMITTED = ROOT / "agent" / "web"


def run(node_modules: Path, *command: str) -> None:
    program = str(node_modules / ".bin" / command[0])
    done = subprocess.run([program, *command[1:]], cwd=WEB, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sdk_passes_its_own_tests(node_modules: Path) -> None:
    run(node_modules, "tsc", "--noEmit")
    run(node_modules, "vitest", "run", "--coverage")  # its configuration asks for nine lines in ten


def test_the_committed_page_is_what_the_sources_build(node_modules: Path, tmp_path: Path) -> None:
    run(node_modules, "vite", "build", "--emptyOutDir", "--outDir", str(tmp_path), "--logLevel", "error")
    built = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(COMMITTED): path.read_bytes() for path in COMMITTED.rglob("*") if path.is_file()}
    assert built.keys() == committed.keys()
    stale = [str(name) for name in built if built[name] != committed[name]]
    assert not stale, f"run `make web` and commit agent/web: {stale} differ"


def test_the_page_asks_nothing_of_any_other_host_and_inlines_nothing() -> None:
    texts = [path.read_text() for path in COMMITTED.rglob("*") if path.suffix in (".html", ".js", ".css")]
    assert sum(map(len, texts)) < 150_000
    page = (COMMITTED / "index.html").read_text()
    assert "<style" not in page and "style=" not in page and "onclick" not in page
    for text in texts:
        assert not re.search(r"""["'(]data:[a-z]+/""", text)
        assert not [line for line in text.splitlines() if "https://" in line or "http://www.w3" in line]


def test_the_lock_holds_every_platform_and_names_no_registry() -> None:
    """Otherwise `npm ci` refuses it, or works on the machine alone where the lock was made."""
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    optional = {name for package in packages.values() for name in package.get("optionalDependencies", {})}
    platforms = {"linux-x64-gnu", "linux-arm64-gnu", "darwin-x64", "darwin-arm64", "win32-x64-msvc"}
    assert {f"@rollup/rollup-{platform}" for platform in platforms} <= optional
    assert [name for name in sorted(optional) if f"node_modules/{name}" not in packages] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []
    declared = json.loads((WEB / "package.json").read_text())
    assert packages[""]["devDependencies"] == declared["devDependencies"]
