"""Selecting checkpoints from loss curves that are known."""

import numpy as np
import pytest

from keras_tracin.runs import (
    WhenLossDrops,
    select_checkpoints,
)
from tests.runs.helpers import make_run_of_losses

CURVE = [5.0, 6.0, 10.0, 4.0, 3.5, 2.0, 1.5, 1.0, 1.0, 1.0, 0.99]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run_of_losses(tmp_path_factory.mktemp("run") / "a", CURVE)


def test_checkpoints_stand_at_equal_falls_of_the_loss(tmp_path):
    # The fall is from 10 to 1: its thirds are reached at 7, 4 and 1.
    run = make_run_of_losses(tmp_path / "c", [10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    chosen = select_checkpoints(run, 3, verbose=0)
    assert [c.epoch for c in chosen] == [4, 7, 10]
    assert [c.num_steps for c in chosen] == [4, 3, 3]


def test_fluctuation_and_converged_tail_are_left_out(run, capsys):
    chosen = select_checkpoints(run, 6)
    assert [c.epoch for c in chosen] == [3, 4, 5, 6, 7, 8]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(run)
    assert "left: before the highest loss" in lines[1]
    assert "kept: the loss falls here" in lines[4]
    assert "left: after convergence" in lines[11]


def test_steady_part_of_a_curve_has_its_share_beside_the_steep_one(tmp_path):
    # Nine tenths of the fall are done in one epoch of twenty.
    run = make_run_of_losses(tmp_path / "d", [10.0, *np.linspace(1, 0, 20)])
    epochs = [c.epoch for c in select_checkpoints(run, 4, verbose=0)]
    assert epochs == [2, 3, 11, 18]  # By the fall alone, [2, 3, 4, 18].


def test_more_than_the_falling_part_has_are_made_up_from_after_it(run, capsys):
    chosen = select_checkpoints(run, 8)
    assert [c.epoch for c in chosen] == list(range(3, 11))
    assert "kept: after convergence, but too few" in capsys.readouterr().out


def test_more_checkpoints_where_the_loss_falls_faster(tmp_path):
    run = make_run_of_losses(
        tmp_path / "b", np.exp(-0.5 * np.arange(20)).tolist()
    )
    epochs = [c.epoch for c in select_checkpoints(run, 5, verbose=0)]
    assert len(epochs) == 5
    assert np.median(epochs) < 6


@pytest.mark.parametrize("count", [0, 10])
def test_a_count_that_cannot_be_is_refused(run, count):
    with pytest.raises(ValueError, match="from 1 to 9"):
        select_checkpoints(run, count)


def test_a_metric_that_was_not_logged_is_named(run):
    with pytest.raises(ValueError, match="no finite 'val_loss'"):
        select_checkpoints(run, 2, metric="val_loss")


def test_when_loss_drops_saves_the_first_and_each_fall_of_a_fraction():
    chosen = WhenLossDrops(0.5)
    losses = [8.0, 5.0, 3.9, np.nan, 2.0, 1.9, 1.0]
    saved = [chosen(e, {"loss": v}) for e, v in enumerate(losses, start=1)]
    assert saved == [True, False, True, False, False, True, False]
    assert chosen(1, {"loss": 20.0})  # Another training.
    with pytest.raises(ValueError, match="not logged"):
        chosen(2, {"accuracy": 1.0})
