"""Scores that are made of training dynamics, and their files."""

import numpy as np
import pytest

import keras_tracin as kt
from tests.error_rows import row

# Of three examples at four checkpoints.
CORRECT = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.5]])
PROBABILITY = np.array([[0.2, 0.9, 0.1], [0.6, 0.4, 0.1]] * 2)
P = np.stack([1 - PROBABILITY, PROBABILITY], -1)


def make_dynamics(**more):
    return kt.TrainingDynamics(
        ids=np.array(["a", "b", "c"]),
        epochs=np.array([1, 2, 4, 5]),
        kind="classes",
        loss=-np.log(PROBABILITY),
        margin=PROBABILITY - 0.5,
        correct=CORRECT,
        probability=PROBABILITY,
        error=1 - PROBABILITY,
        given_labels=np.ones(3, int),
        mean_probabilities=P.mean(0),
        **more,
    )


def test_scores_are_means_over_checkpoints():
    dynamics = make_dynamics()
    np.testing.assert_allclose(dynamics.confidence, [0.4, 0.65, 0.1])
    np.testing.assert_allclose(dynamics.variability, [0.2, 0.25, 0], atol=1e-9)
    np.testing.assert_allclose(dynamics.area_under_margin, [-0.1, 0.15, -0.4])
    np.testing.assert_allclose(dynamics.el2n, [0.6, 0.35, 0.9])
    np.testing.assert_allclose(dynamics.correctness, [0.5, 0.75, 0.125])
    assert dynamics.mean_loss.argmax() == 2


def test_forgetting_counts_falls_and_what_was_never_right_counts_as_all():
    assert make_dynamics().forgetting_events.tolist() == [1, 1, 4]


def test_the_first_epochs_are_those_up_to_a_number():
    dynamics = make_dynamics()
    early = dynamics.first(3)
    assert early.epochs.tolist() == [1, 2]
    np.testing.assert_allclose(early.loss, dynamics.loss[:2])
    assert early.mean_probabilities is None
    kept = make_dynamics(probabilities=P).first(1)
    np.testing.assert_allclose(kept.mean_probabilities, P[0])
    assert dynamics.first(9) is dynamics
    with pytest.raises(ValueError, match=row("dynamics-epochs")):
        dynamics.first(0)


def test_the_best_checkpoints_are_those_of_the_least_held_out_loss():
    losses = np.array([0.9, 0.5, 0.4, 0.8])
    dynamics = make_dynamics(held_out_loss=losses, probabilities=P)
    best = dynamics.best(2)
    assert best.epochs.tolist() == [2, 4]
    np.testing.assert_array_equal(best.loss, dynamics.loss[1:3])
    np.testing.assert_array_equal(best.held_out_loss, losses[1:3])
    np.testing.assert_allclose(best.mean_probabilities, P[1:3].mean(0))
    assert dynamics.best(9) is dynamics
    order = ["c", "a", "b"]
    np.testing.assert_array_equal(
        dynamics.reordered(np.array(order)).held_out_loss, losses
    )
    with pytest.raises(ValueError, match=row("dynamics-best")):
        dynamics.best(0)
    with pytest.raises(ValueError, match=row("no-such-dynamics")):
        make_dynamics().best(2)


def test_residuals_of_zero_have_no_spread():
    def regression(residual):
        return kt.TrainingDynamics(
            *(np.arange(4), np.arange(1), "numbers"),
            loss=residual,
            residual=residual,
        )

    exact = regression(np.zeros([1, 4]))
    assert exact.robust_residual.tolist() == [0, 0, 0, 0]
    mostly = regression(np.array([[0, 0, 0, 8.0]]))
    assert mostly.robust_residual.tolist() == [0, 0, 0, 4]


def test_what_is_saved_is_loaded(tmp_path):
    dynamics = make_dynamics()
    dynamics.save(tmp_path / "dynamics.npz")
    loaded = kt.TrainingDynamics.load(tmp_path / "dynamics.npz")
    assert repr(loaded) == repr(dynamics)
    assert loaded.kind == "classes"
    assert loaded.residual is None
    np.testing.assert_array_equal(loaded.margin, dynamics.margin)
    own = kt.SelfInfluence(np.ones(2), np.arange(2))
    own.save(tmp_path / "own.npz")
    with pytest.raises(ValueError, match=row("another-result")):
        kt.TrainingDynamics.load(tmp_path / "own.npz")


def test_a_table_has_the_scores_that_there_are():
    table = make_dynamics().to_dataframe()
    assert table.index.tolist() == ["a", "b", "c"]
    assert not {"robust_residual", "grand"} & set(table.columns)
    assert table["forgetting_events"].tolist() == [1, 1, 4]
    assert table["given_label"].tolist() == [1, 1, 1]
