"""Runs the checks: `python -m tests` all of them, as CI does.

`python -m tests --quick` runs the linters and the tests of `QUICK`, in some two
minutes; `--lowest` these tests alone, for the versions of `tests/lowest.txt`.
With other arguments it runs pytest alone on them, in this process:
`python -m tests tests/runs/run_test.py -k rate`. That is also how Bazel calls
it.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[1]
LINTERS = ("ruff check", "ruff format --check", "mypy")
# One process for each core. Each begins with its share of the files in their
# order, so that it seldom makes another's fixtures again, and takes from the
# others what is left when it is done.
PYTEST = "pytest --numprocesses=auto --dist=worksteal"
# For the one who edits: tests of every room that take seconds, not minutes.
QUICK = (
    "tests/build_test.py",
    "tests/repository_test.py",
    "tests/check/training_loss_test.py",
    "tests/curvature/solvers_test.py",
    "tests/data/example_ids_test.py",
    "tests/engine/progress_test.py",
    "tests/engine/sweep_test.py",
    "tests/evaluation/mislabels_test.py",
    "tests/gradients/factors_test.py",
    "tests/gradients/rules/registry_test.py",
    "tests/index/manifest_test.py",
    "tests/labels/dynamics_test.py",
    "tests/losses/loss_terms_test.py",
    "tests/methods/training_notes_test.py",
    "tests/models/kinds_test.py",
    "tests/plots/images_test.py",
    "tests/plots/maps_test.py",
    "tests/plots/results_test.py",
    "tests/projection/projection_test.py",
    "tests/report/writing_test.py",
    "tests/results",
    "tests/runs/run_test.py",
    "tests/runs/selection_test.py",
    "tests/scripts/check_test.py",
    "tests/selection/redundancy_test.py",
    "tests/storage",
    "tests/trace/batches_test.py",
)
# What draws many samples in these.
SAMPLED = ("test_inner_products_are_unbiased", "test_variance_of_the_gaussian")


def run_checks(quick: bool = False, lint: bool = True) -> list[str]:
    """Runs every check, also after a failed one; returns those that failed.

    Args:
        quick: whether to run the tests of `QUICK` alone.
        lint: whether to run the linters.
    """
    failed = []
    chosen = [*QUICK, "-k", " and ".join(f"not {test}" for test in SAMPLED)]
    tests = shlex.join([*shlex.split(PYTEST), *(chosen if quick else ())])
    for check in (*(LINTERS if lint else ()), tests):
        print(f"--- {check}", flush=True)
        command = [sys.executable, "-m", *shlex.split(check)]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(check)
    return failed


def main() -> int | str:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    arguments = sys.argv[1:]
    if arguments and arguments not in (["--quick"], ["--lowest"]):
        return pytest.main(arguments)
    failed = run_checks(bool(arguments), lint=arguments != ["--lowest"])
    return f"Failed: {', '.join(failed)}." if failed else 0


if __name__ == "__main__":
    sys.exit(main())
