"""`make test`: the whole suite, as two runs side by side.

    python -m tests [--durations N]

What measures no time runs beside the rest with the lowest priority: it takes what sockets, browsers and callers in real
time leave of the processors, and gives way to them at once. Its output comes when it is through. Ends with 1 where
either run fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ASIDE = ("docs", "fuzz", "kernels", "models", "streaming", "test_rooms.py", "training")
"""Folders and files whose tests give the same answer however slowly they run; whatever is not named runs in front."""


def commands(durations: int) -> tuple[list[str], list[str]]:
    """The run in front, of everything but what is named above, and the one aside."""
    pytest = [sys.executable, "-m", "pytest", f"--durations={durations}"]
    aside = [str(HERE / name) for name in ASIDE]
    # Its results are not what `pytest --lf` is about, and two runs would write them over each other.
    return [*pytest, str(HERE), *(f"--ignore={path}" for path in aside)], [*pytest, "-p", "no:cacheprovider", *aside]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests", description="The whole suite.")
    parser.add_argument("--durations", type=int, default=10, help="so many of the slowest tests are named")
    front, aside = commands(parser.parse_args().durations)
    began_s = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        beside = subprocess.Popen(["nice", "-n", "19", *aside], stdout=output, stderr=subprocess.STDOUT)
        try:
            failed = subprocess.run(front).returncode
            print(f"== agogic: in front {time.monotonic() - began_s:.0f} s; waiting for what ran aside ==", flush=True)
            failed_aside = beside.wait()
        finally:
            beside.kill()
        output.seek(0)
        print(output.read())
    print(f"== agogic: all tests {time.monotonic() - began_s:.0f} s ==")
    sys.exit(1 if failed or failed_aside else 0)


if __name__ == "__main__":
    main()
