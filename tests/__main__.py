"""Runs the checks: `python -m tests` all of them, as CI does.

With arguments it runs pytest alone on them, in this process:
`python -m tests tests/runs_test.py -k rate`. That is also how Bazel calls it.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[1]
CHECKS = (
    "ruff check",
    "ruff format --check",
    "mypy",
    # One process for each core, and a file's fixtures made in one of them.
    "pytest --numprocesses=auto --dist=loadfile",
)


def run_checks() -> list[str]:
    """Runs every check, also after a failed one; returns those that failed."""
    failed = []
    for check in CHECKS:
        print(f"--- {check}", flush=True)
        command = [sys.executable, "-m", *shlex.split(check)]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(check)
    return failed


def main() -> int | str:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if len(sys.argv) > 1:
        return pytest.main(sys.argv[1:])
    failed = run_checks()
    return f"Failed: {', '.join(failed)}." if failed else 0


if __name__ == "__main__":
    sys.exit(main())
