"""An app of twenty lines in a project that has nothing but the packed SDK."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "clients" / "web"
PAGE = """<!doctype html>
<title>Talk</title>
<script type="importmap">{{ "imports": {{ "@agogic/client": "./node_modules/@agogic/client/dist/index.js" }} }}</script>
<body>Press anywhere</body>
<script type="module">
{app}
</script>
"""
MOST_LINES = 20


def pack(folder: Path) -> Path:
    """The SDK as `npm pack` makes it. Its sources are compiled beside them: `npm pack` takes what lies there."""
    compiler = WEB / "node_modules" / ".bin" / "tsc"
    subprocess.run([str(compiler), "-p", "tsconfig.build.json", "--outDir", str(WEB / "dist")], cwd=WEB, check=True)
    command = [shutil.which("npm") or "npm", "pack", "--ignore-scripts", "--json", "--pack-destination", str(folder)]
    packed = json.loads(subprocess.run(command, cwd=WEB, check=True, capture_output=True, text=True).stdout)
    return folder / str(packed[0]["filename"])


def page_of_the_readme(project: Path, url: str) -> None:
    """Writes index.html with the first app of the README, whose server's address is changed to `url`."""
    app = re.search(r"^```ts\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert app is not None
    page = PAGE.format(app=app[1].strip().replace("http://127.0.0.1:8790", url))
    lines = [line for line in page.splitlines() if line.strip()]
    assert url in page and len(lines) <= MOST_LINES, lines
    (project / "index.html").write_text(page, "utf-8")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(project: Path) -> Iterator[str]:
    """From a port of its own, as every development server does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(project))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
