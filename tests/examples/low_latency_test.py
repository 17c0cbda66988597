import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
PROGRAM = ROOT / "examples" / "low_latency.py"


def test_builds_opens_and_answers_in_milliseconds(tmp_path):
    # In a process of its own: flags of two programs do not go together.
    printed = subprocess.run(
        [
            sys.executable,
            PROGRAM,
            f"--output_dir={tmp_path}",
            f"--data_dir={tmp_path}",  # where there is no MNIST
            "--num_train=200",
            "--epochs=2",
            "--dim=64",
            "--num_queries=4",
            "--k=2",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "200 training digits, (8, 8, 1) each." in printed
    assert "200 rows of 2 × 64 float32" in printed
    assert re.search(r"^3 more, one by one: [\d.]+ ms each", printed, re.M)
    score = r"[0-9] \(number [0-9]+\) {}[\d.e+-]+"
    for side, sign in (("proponents", r"\+"), ("opponents", "-")):
        found = score.format(sign)
        lines = re.findall(rf"^  {side} +{found}, {found}$", printed, re.M)
        assert len(lines) == 3
    assert (tmp_path / "index" / "index.json").is_file()
