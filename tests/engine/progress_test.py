"""When long work is announced."""

import pytest

from keras_tracin.engine import progress as progress_module
from keras_tracin.engine.planning import Plan
from keras_tracin.engine.progress import Progress


def plan_for(num_train, exact=True):
    """Self-influence at one checkpoint, in batches of 16."""
    return Plan(num_train, 0, 1, 16, 16, 2**20, exact=exact)


@pytest.mark.parametrize("seconds", [0.1, 30.0])
def test_only_long_work_is_announced_before_it_is_done(
    seconds, monkeypatch, capsys
):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    plan = plan_for(10_000)
    progress = Progress(plan, verbose=1, title="TracIn")
    for done in range(plan.steps):
        clock[0] += seconds / plan.steps
        progress.advance()
        if done == plan.steps // 2:
            halfway = capsys.readouterr().out
    assert ("training examples" in halfway) == (seconds > 2)


def test_examples_without_a_known_number_still_show_progress(
    monkeypatch, capsys
):
    monkeypatch.setattr(progress_module, "_PATIENCE", 0.0)
    Progress(plan_for(None), verbose=1, title="TracIn").advance()
    assert "? training examples" in capsys.readouterr().out


@pytest.mark.parametrize("batches", [2, 3, 4])
def test_a_bar_of_an_estimated_number_ends_once(batches, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "_PATIENCE", 0.0)
    progress = Progress(plan_for(3 * 16, exact=False), 1, "TracIn")
    for _ in range(batches):
        progress.advance()
    progress.finish()
    shown = capsys.readouterr().out
    assert "about 48 training examples" in shown
    assert shown.count("\n") == 2  # of the announcement, and of the bar
    assert f"{min(batches, 3)}/{min(batches, 3)}" in shown
