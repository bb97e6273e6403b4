"""`make fuzz`: inputs that reach new code, kept and bent further, for so long.

    python -m tests.fuzz [TARGET …] [--seconds S] [--seed N] [--keep FOLDER]

Every target runs in a process of its own, from the corpus beside this file. What breaks one is written into the folder
and named; put it into the corpus once it is mended. New inputs go there too, and nothing is written into the checkout.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import CORPUS, INSTRUMENTED, TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzing guided by coverage.")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--keep", type=Path, help="folder for what is found; default: a temporary one")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep = arguments.keep or Path(tempfile.mkdtemp(prefix="agogic-fuzz-"))
    if arguments.within:
        fuzz(arguments.targets[0], arguments.seconds, arguments.seed, keep)
    broken = []
    for name in arguments.targets or TARGETS:
        print(f"{name}: {arguments.seconds} s, findings in {keep / name}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", name, "--within", "--seconds", str(arguments.seconds)]
        if subprocess.run([*command, "--seed", str(arguments.seed), "--keep", str(keep)]).returncode:
            broken.append(name)
    if broken:
        sys.exit(f"fuzz: broken: {', '.join(broken)}; what broke them is in {keep}")


def fuzz(name: str, seconds: int, seed: int, keep: Path) -> None:
    """Does not return."""
    import atheris

    found = keep / name
    found.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=INSTRUMENTED[name]):
        TARGETS[name](b"")
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={found}/", "-max_len=20000", "-timeout=10"]
    options += ["-rss_limit_mb=2000", "-print_final_stats=1", "-close_fd_mask=0", f"-seed={seed}"]
    atheris.Setup([sys.argv[0], *options, str(found), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
