"""`make test`: the whole suite, in lanes side by side.

    python -m tests [--durations N]

Most tests wait: for sound that takes as long as it lasts, for browsers, for servers that start. In front runs what
measures how soon something comes. Pages that are talked to and packages that are tried wait for something to have
come, however late. What measures no time at all has a low priority and takes what is left of the processors.

Lanes share nothing: each starts servers of its own, on ports that the kernel chooses. The output of the front comes at
once, that of the others when they are through. Ends with 1 where any of them fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT_S = 900
"""Of a test in a lane that gives way."""
BESIDE = {
    "pages and packages": (
        0,
        (
            "agent/test_leaks.py",
            "agent/test_many_sessions.py",
            "clients/test_agents_sdk.py",
            "clients/test_chat.py",
            "clients/test_page.py",
            "clients/test_pipecat.py",
            "clients/test_python_client.py",
            "clients/test_sdk_package.py",
            "clients/test_stock_clients.py",
            "clients/test_web_build.py",
            "deploy",
            "docs",
            "test_rooms.py",
        ),
    ),
    "without a clock": (
        10,
        (
            "agent/test_fuzz.py",
            "agent/test_notes.py",
            "agent/test_recording.py",
            "agent/test_tools.py",
            "fuzz",
            "kernels",
            "models",
            "streaming",
            "telephony/test_configuration.py",
            "telephony/test_rtp.py",
            "telephony/test_signatures.py",
            "telephony/test_sip_calls.py",
            "telephony/test_sip_messages.py",
            "telephony/test_sound.py",
            "training",
            "worker/test_audio_files.py",
            "worker/test_calls.py",
            "worker/test_dictation.py",
            "worker/test_disturbances.py",
            "worker/test_embedded.py",
            "worker/test_narrow_band.py",
            "worker/test_official.py",
            "worker/test_official_turn.py",
            "worker/test_official_voice.py",
            "worker/test_pipeline.py",
            "worker/test_placement.py",
            "worker/test_simulated.py",
        ),
    ),
}
"""Lanes beside the front: how far each gives way (nice), and its folders and files. The front is all the rest.

What writes into `clients/web`, and what walks through the whole checkout, is one lane.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests", description="The whole suite.")
    parser.add_argument("--durations", type=int, default=10, help="so many of the slowest tests of each lane are named")
    pytest = [sys.executable, "-m", "pytest", f"--durations={parser.parse_args().durations}"]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lanes-") as folder:
        lanes, front = {}, [*pytest, str(HERE)]
        try:
            for name, (niceness, places) in BESIDE.items():
                paths = [str(HERE / place) for place in places]
                front += [f"--ignore={path}" for path in paths]
                # What failed is remembered by the front alone: lanes would write it over each other.
                # Nor is it a failure to be slow where others go first.
                limits = [f"--timeout={TIMEOUT_S}"] if niceness else []
                command = ["nice", "-n", str(niceness), *pytest, "-p", "no:cacheprovider", *limits, *paths]
                with (Path(folder) / name).open("w") as output:
                    lanes[name] = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            failed = [] if subprocess.run(front).returncode == 0 else ["front"]
            print(f"== front: {time.monotonic() - began_s:.0f} s ==", flush=True)
            for name, lane in lanes.items():
                failed += [] if lane.wait() == 0 else [name]
                print((Path(folder) / name).read_text(errors="replace"))
                print(f"== {name}: {time.monotonic() - began_s:.0f} s ==", flush=True)
        finally:
            for lane in lanes.values():
                lane.terminate()
    sys.exit(f"tests failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
