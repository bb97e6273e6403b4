"""The SDK as others get it: packed, installed into an empty project, type-checked there; its examples in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from playwright.async_api import Page, Route, WebSocketRoute, expect

from tests.clients.conftest import ROOT, Server
from tests.newcomer.page import pack, page_of_the_readme, served
from tests.support.chromium import chromium
from tests.support.speech import endless_order_file

WEB = ROOT / "clients" / "web"
EXAMPLES = WEB / "examples"
REPLY = "One large latte. That is four fifty."
APP = """
import { AgogicClient, AgogicError, type ServerEvent, type Tool } from "@agogic/client";
import { useAgogic } from "@agogic/client/react";

const price: Tool = { description: "", parameters: {}, run: ({ size }) => (size === "large" ? 4.5 : 4) };
const client = new AgogicClient({ apiKey: async () => "ek", rates: { output: 6.25 }, tools: { price } });
client.on("event", (event: ServerEvent) => {
  if (event.type === "response.done") console.log(event.response.x_agogic?.timing?.first_audio_ms?.toFixed());
});
client.on("error", (error: AgogicError) => console.log(error.code satisfies string));
export const hook: typeof useAgogic = useAgogic;
// @ts-expect-error a rate is a number or "auto"
client.setRates({ output: "fast" });
"""


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tarball(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.fail("npm is needed for this test: apt-get install nodejs npm, or run `make test`")
    folder = tmp_path_factory.mktemp("pack")
    packed = pack(folder)
    with tarfile.open(packed) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
    assert {"LICENSE", "README.md", "package.json", "dist/index.js", "dist/react.d.ts"} <= names
    assert all(name.startswith("dist/") for name in names - {"LICENSE", "README.md", "package.json"})
    return packed


@pytest.fixture(scope="module")
def project(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project with the package installed."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "package.json").write_text('{"name": "app", "private": true, "type": "module"}')
    run("npm", "install", "--offline", "--no-audit", "--no-fund", str(tarball), cwd=folder)
    return folder


def type_check(project: Path, node_modules: Path, resolution: str, *more: str) -> None:
    """Strictly, of the files in `more`, which may bring options; beside what the SDK does not bring along."""
    for name in ("@types", "csstype", "react-native-webrtc"):
        if not (project / "node_modules" / name).exists():
            (project / "node_modules" / name).symlink_to(node_modules / name)
    module = "nodenext" if resolution == "nodenext" else "esnext"
    options = ["--strict", "--noEmit", "--target", "es2022", "--lib", "es2023,dom,dom.iterable", "--module", module]
    options += ["--moduleResolution", resolution, "--typeRoots", str(node_modules / "@types"), "--types", "react"]
    run(str(node_modules / ".bin" / "tsc"), *options, *more, cwd=project)


def test_the_package_is_small_and_its_types_resolve_everywhere(tarball: Path, node_modules: Path) -> None:
    assert 5_000 < tarball.stat().st_size < 60_000
    report = run(str(node_modules / ".bin" / "attw"), str(tarball), "--profile", "esm-only", cwd=tarball.parent)
    assert report.count("node16 (from ESM): 🟢") == report.count("bundler: 🟢") == 3, report


@pytest.mark.parametrize("resolution", ["bundler", "nodenext"])
def test_an_empty_project_type_checks_against_it(project: Path, node_modules: Path, resolution: str) -> None:
    (project / "app.ts").write_text(APP)
    type_check(project, node_modules, resolution, "app.ts")


def test_the_react_native_app_type_checks_against_it(project: Path, node_modules: Path) -> None:
    shutil.copytree(EXAMPLES / "native", project / "native", dirs_exist_ok=True)
    names = sorted(path.name for path in (project / "native").iterdir())
    assert {"App.tsx", "client.ts"} <= set(names)
    files = [f"native/{name}" for name in names]
    type_check(project, node_modules, "bundler", "--jsx", "react-jsx", "--skipLibCheck", *files)


async def open_example(page: Page, server: Server, body: str, scripts: Path | None = None) -> None:
    """On a page of the server's own origin; `scripts` is served as ./agogic/."""

    async def whole(route: Route) -> None:
        await route.fulfill(body=body, content_type="text/html")

    async def script(route: Route) -> None:
        assert scripts is not None
        name = route.request.url.split("/agogic/")[1]
        await route.fulfill(path=scripts / name, content_type="text/javascript")

    await page.route("**/example", whole)
    await page.route("**/agogic/*", script)
    await page.goto(f"{server.url}/example")


def bundle(node_modules: Path, name: str, folder: Path) -> str:
    """A page that holds nothing but the example."""
    out = folder / "example.js"
    program = str(node_modules / ".bin" / "esbuild")
    run(program, str(EXAMPLES / name), "--bundle", "--format=esm", f"--outfile={out}", "--jsx=automatic", cwd=WEB)
    code = out.read_text().replace("</script", "<\\/script")
    return f'<!doctype html><body></body><script type="module">{code}</script>'


def test_examples_are_twenty_lines() -> None:
    for path in EXAMPLES.iterdir():
        if path.is_file():
            assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 20, path.name


@pytest.mark.browser
async def test_the_plain_page_talks(fake_server: Server, microphone: Path, project: Path) -> None:
    dist = project / "node_modules" / "@agogic" / "client" / "dist"
    async with chromium(microphone=microphone) as page:
        await open_example(page, fake_server, (EXAMPLES / "plain.html").read_text(), dist)
        await page.click("#talk")
        await expect(page.locator("#said")).to_contain_text("user: a large latte please", timeout=30_000)
        await expect(page.locator("#said")).to_contain_text(f"assistant: {REPLY}")


@pytest.mark.browser
async def test_the_readmes_app_talks_from_a_server_of_its_own(
    fake_server: Server, microphone: Path, project: Path
) -> None:
    """Twenty lines with their page around them, in a project that has the package and nothing else."""
    page_of_the_readme(project, fake_server.url)
    with served(project) as address:
        async with chromium(microphone=microphone) as page:
            await page.goto(address)
            await page.click("body")
            await expect(page.locator("body")).to_contain_text("user: a large latte please", timeout=30_000)
            await expect(page.locator("body")).to_contain_text(f"assistant: {REPLY}")


@pytest.mark.browser
async def test_the_react_example_talks(
    fake_server: Server, microphone: Path, node_modules: Path, tmp_path: Path
) -> None:
    async with chromium(microphone=microphone) as page:
        await open_example(page, fake_server, bundle(node_modules, "react.tsx", tmp_path))
        await page.click("text=Talk")
        await expect(page.locator("#said")).to_contain_text(f"assistant: {REPLY}", timeout=30_000)
        await page.click("text=End")
        await expect(page.locator("main")).to_contain_text("idle")


@pytest.mark.browser
async def test_the_push_to_talk_example_talks(fake_server: Server, node_modules: Path, tmp_path: Path) -> None:
    microphone = endless_order_file(tmp_path / "orders.wav", times=40)
    async with chromium(microphone=microphone) as page:
        await open_example(page, fake_server, bundle(node_modules, "push-to-talk.ts", tmp_path))
        await page.click("button")
        await expect(page.locator("button")).to_have_text("Hold to talk")
        await page.hover("button")
        await page.mouse.down()
        await page.wait_for_timeout(1500)
        await page.mouse.up()
        await expect(page.locator("p")).to_contain_text(REPLY)


@pytest.mark.browser
async def test_the_tools_example_runs_its_function(fake_server: Server, node_modules: Path, tmp_path: Path) -> None:
    """No model in the repository calls functions: a scripted server does."""
    call = {"id": "c", "type": "function_call", "call_id": "1", "name": "price", "arguments": '{"size": "large"}'}
    sent: list[dict[str, object]] = []

    def script(socket: WebSocketRoute) -> None:
        def answer(text: str | bytes) -> None:
            event = json.loads(text)
            sent.append(event)
            asked = sum(one["type"] == "response.create" for one in sent)
            if event["type"] == "response.create" and asked == 1:
                response = {"id": "r", "status": "completed", "output": [call]}
                socket.send(json.dumps({"type": "response.done", "response": response}))
            elif event["type"] == "response.create":
                item = {"id": "a", "type": "message", "role": "assistant"}
                socket.send(json.dumps({"type": "response.output_item.added", "item": item}))
                socket.send(json.dumps({"type": "response.output_text.delta", "item_id": "a", "delta": "Four fifty."}))

        socket.on_message(answer)

    async with chromium() as page:
        await page.route_web_socket("**/v1/realtime*", script)
        await open_example(page, fake_server, bundle(node_modules, "tools.ts", tmp_path))
        await expect(page.locator("body")).to_contain_text('Four fifty.\n{"dollars":4.5}')
    outputs = [one["item"] for one in sent if one["type"] == "conversation.item.create"]
    assert outputs[-1] == {"type": "function_call_output", "call_id": "1", "output": '{"dollars":4.5}'}
