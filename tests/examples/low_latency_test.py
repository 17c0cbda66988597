import re

from tests.examples.programs import run_program


def test_builds_opens_and_answers_in_milliseconds(tmp_path, capsys):
    printed = run_program(
        "low_latency",
        tmp_path,
        capsys,
        f"--data_dir={tmp_path}",  # where there is no MNIST
        "--num_train=200",
        "--epochs=2",
        "--dim=64",
        "--num_queries=4",
        "--k=2",
    )
    assert "200 training digits, (8, 8, 1) each." in printed
    assert "200 rows of 2 × 64 float32" in printed
    assert re.search(r"^3 more, one by one: [\d.]+ ms each", printed, re.M)
    score = r"[0-9] \(number [0-9]+\) {}[\d.e+-]+"
    for side, sign in (("proponents", r"\+"), ("opponents", "-")):
        found = score.format(sign)
        lines = re.findall(rf"^  {side} +{found}, {found}$", printed, re.M)
        assert len(lines) == 3
    assert (tmp_path / "index" / "index.json").is_file()
