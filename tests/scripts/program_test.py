import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from absl import flags

from keras_tracin import scripts
from keras_tracin.scripts import (
    check,
    index,
    label_issues,
    query,
    report,
    score,
    self_influence,
)
from keras_tracin.scripts._program import Program
from tests.error_rows import row
from tests.scripts.helpers import TASK, Workplace

PROGRAMS = (
    check,
    index,
    label_issues,
    query,
    report,
    score,
    self_influence,
)
ROOT = Path(__file__).absolute().parents[2]


def process(directory, *arguments):
    """A program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
    )


def said(done):
    """The lines on stderr that are the program's own."""
    lines = done.stderr.splitlines()
    return [line for line in lines if line.startswith("keras_tracin-")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_begins_with_examples_and_tells_of_every_flag(program, capsys):
    assert program.main(["--help"]) == 0
    out, err = capsys.readouterr()
    name = program.__name__.rpartition(".")[2]
    assert not err
    assert f"    keras_tracin-{name} --task=digits_task" in out
    for flag in ("--task: ", "--[no]debug: ", "--run: "):
        assert flag in out
    assert "--verbosity" not in out
    assert program.main(["--helpfull"]) == 0
    full = capsys.readouterr().out
    assert "--verbosity" in full
    assert "A program works on a *task*" in full
    # Help goes before anything that is wrong.
    assert program.main(["--seed=1", "--help", "--nonsense"]) == 0


def test_a_flag_says_what_it_is_for_in_its_section(capsys):
    score.main(["--help"])
    out = capsys.readouterr().out
    sections = out.split("For --method=influence:")
    assert "--damping: " in sections[1].split("For --method=representer:")[0]
    assert "--damping: " not in sections[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task=t", "--dampnig=1"],
            row("unknown-flag", "'dampnig'. Did you mean: damping"),
        ),
        (["--task=t", "--method=magic"], "--method=magic: value should be one"),
        (["--task=t", "--k=0"], "--k=0"),
        (["--task=t", "--k=ten"], "--k=ten"),
        (["--task=t", "--memory_limit=much"], "expected bytes, or a number"),
        (["--k=1"], "Expected the model and its data: --task=MODULE"),
        (["--task=t", "--epochs=2,x"], "expected whole numbers of 1 or more"),
        (
            ["--task=t", "--dim=9"],
            row("unused-flag", "--dim is...--projection or --solver"),
        ),
        (["--task=t", "scores.npz"], "Expected flags .* 'scores.npz'"),
        (
            ["--task=t", "--damping=1"],
            row("unused-flag", "--damping is...--method=influence"),
        ),
        (
            ["--task=t", "--method=influence", "--l2=1"],
            row("unused-flag", "--l2 is...--method=rep"),
        ),
        (
            ["--task=t", "--output=a.txt"],
            "end in .npz or .csv. Received: 'a.txt'",
        ),
        (["--task=t", "--aggregate", "--directory=d"], "leave out --directory"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(
    arguments, message, tmp_path, capsys
):
    line = Workplace(tmp_path, capsys).refused(score, *arguments)
    assert re.search(message, line), line


def test_flags_of_a_call_are_forgotten_after_it(tmp_path, capsys):
    work = Workplace(tmp_path, capsys)
    assert "'a.txt'" in work.refused(score, "--task=t", "--output=a.txt")
    assert "Received neither" in work.refused(score, "--output=a.csv")


def test_memory_limit_takes_units():
    values = flags.FlagValues()
    scripts._flags.define_task(values)
    for text, size in (("2KB", 2048), ("1.5 g", 1.5 * 2**30), ("70", 70)):
        values(["p", "--task=t", f"--memory_limit={text}"])
        assert values.memory_limit == size


def programs_that(work):
    return Program("test", "About it.", lambda values: None, work)


def test_expected_error_is_one_line_without_its_trace(capsys):
    def fails(values):
        raise ValueError("first line\n  second line")

    program = programs_that(fails)
    assert program.main([]) == 2
    err = capsys.readouterr().err
    assert err == "keras_tracin-test: error: first line second line\n"
    with pytest.raises(ValueError, match="second"):
        program.main(["--debug"])


def test_defect_keeps_its_trace(capsys):
    def breaks(values):
        raise RuntimeError("not expected")

    with pytest.raises(RuntimeError):
        programs_that(breaks).main([])


def test_warning_is_one_line_and_interruption_has_its_exit_code(capsys):
    def work(values):
        warnings.warn("look\nhere", stacklevel=1)
        raise KeyboardInterrupt

    assert programs_that(work).main([]) == 130
    assert capsys.readouterr().err == (
        "keras_tracin-test: warning: look here\n"
        "keras_tracin-test: error: interrupted\n"
    )


def test_missing_run_ends_the_process_with_2_and_one_line(trained):
    done = process(
        trained, "keras_tracin.scripts.score", TASK, "--run=runs/lost"
    )
    assert done.returncode == 2
    assert not done.stdout
    # TensorFlow has written lines of its own before, when it was imported.
    (line,) = said(done)
    assert line == done.stderr.splitlines()[-1]
    assert "keras_tracin-score: error: " in line
    assert re.search(row("missing-run", "runs/lost does"), line)
    assert "Traceback" not in done.stderr


def test_success_in_a_process_of_its_own_prints_the_table(trained):
    done = process(
        trained, "keras_tracin.scripts.score", TASK, "--queries=3", "--k=2"
    )
    assert done.returncode == 0, done.stderr
    assert not said(done)
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "query_id,side,rank,train_id,score,query_label,query_name,"
        "train_label,train_name"
    )
    assert [line.rsplit(",", 6)[0] for line in lines[1:]] == [
        "3,proponent,1",
        "3,proponent,2",
        "3,opponent,1",
        "3,opponent,2",
    ]
