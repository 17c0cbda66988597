"""What cannot be unrolled, and what is said about it."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.methods.unrolled.updates import Update
from tests.error_rows import row
from tests.methods.unrolled.helpers import QUERIES, X, Y, make_model, recorded
from tests.strategies import mirrored

optimizers = keras.optimizers


def refused(model, match, directory="nowhere", train=(X, Y)):
    with pytest.raises(ValueError, match=match):
        kt.UnrolledInfluence(model, train, directory)


@pytest.mark.parametrize(
    ("optimizer", "match"),
    [
        (optimizers.Nadam(), "'Nadam'"),
        (optimizers.SGD(use_ema=True), "use_ema=True"),
        (
            optimizers.Adam(gradient_accumulation_steps=2),
            "accumulation_steps=2",
        ),
        (optimizers.Adam(loss_scale_factor=4.0), "loss_scale_factor=4.0"),
        (optimizers.LossScaleOptimizer(optimizers.SGD()), "'LossScale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_optimizers_are_refused_by_name(optimizer, match):
    refused(make_model(optimizer, dtype="float32"), match)


def test_models_are_refused_by_the_layers_in_question():
    refused(make_model("sgd", keras.layers.BatchNormalization()), "LayerNorm")
    refused(
        make_model("sgd", dtype="mixed_bfloat16"),
        row("half-precision", "half precision"),
    )
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, kernel_constraint="non_neg"),
        ]
    )
    refused(model, "not compiled")
    model.compile("sgd", "mse")
    refused(model, "constraints on .*kernel")
    with mirrored(2).scope():
        model = make_model("sgd", dtype="float32")
    refused(model, row("trace-replicas", "strategy of 2 replicas"))


def test_frozen_batch_normalization_is_as_good_as_any_layer(tmp_path):
    frozen = keras.layers.BatchNormalization(trainable=False)
    model = make_model(optimizers.SGD(0.3), frozen, dtype="float32")
    unrolled = recorded(model, tmp_path)
    assert np.abs(unrolled.influence(QUERIES, verbose=0).scores).max() > 1e-4
    assert unrolled.replay_error < 1e-5


def test_losses_of_activations_are_refused(tmp_path):
    layer = keras.layers.ActivityRegularization(0.1)
    model = make_model(optimizers.SGD(0.1), layer, dtype="float32")
    unrolled = recorded(model, tmp_path)
    with pytest.raises(ValueError, match="activity_regularization"):
        unrolled.influence(QUERIES, verbose=0)


def test_runs_that_do_not_tell_enough_are_refused(tmp_path):
    model = make_model(optimizers.SGD(0.1), dtype="float32")
    model.save_weights(tmp_path / "a.weights.h5")
    adopted = kt.TrainingRun.from_weights([tmp_path / "a.weights.h5"], 0.1)
    refused(model, "adopted weight files", adopted)
    kt.record_training(model, (X, Y), tmp_path / "run", epochs=1)
    refused(model, "no checkpoints", kt.TrainingRun(tmp_path / "run")[:0])
    other = make_model(optimizers.SGD(0.1), hidden=False, dtype="float32")
    refused(other, row("other-architecture"), tmp_path / "run")
    refused(model, "without the ids", tmp_path / "run", (X[:20], Y[:20]))


def test_states_of_random_numbers_are_missed_where_they_are_needed(tmp_path):
    plain = make_model(optimizers.SGD(0.1), dtype="float32")
    kt.record_training(plain, (X, Y), tmp_path, epochs=1)
    dropping = keras.layers.Dropout(0.5)
    model = make_model(optimizers.SGD(0.1), dropping, dtype="float32")
    unrolled = kt.UnrolledInfluence(model, (X, Y), tmp_path)
    with pytest.raises(ValueError, match="received 0 states, expected 1"):
        unrolled.influence(QUERIES, verbose=0)


def test_calls_that_make_no_sense_are_refused(tmp_path):
    model = make_model(optimizers.SGD(0.1), dtype="float32")
    unrolled = recorded(model, tmp_path, epochs=1)
    with pytest.raises(
        NotImplementedError, match=row("no-self-influence", "the 30 examples")
    ):
        unrolled.self_influence()
    with pytest.raises(ValueError, match=r"Received shape \(29,\)"):
        unrolled.retrain(QUERIES, np.ones(29))
    with pytest.raises(ValueError, match="should not exceed"):
        unrolled.top_k(QUERIES, k=31, verbose=0)


def test_a_model_that_changed_since_is_refused(tmp_path):
    model = make_model(optimizers.Adam(0.01), dtype="float32")
    unrolled = recorded(model, tmp_path, epochs=1)
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match=row("other-trainable")):
        unrolled.influence(QUERIES, verbose=0)
    model.layers[0].trainable = True
    model.compile(optimizers.SGD(0.1), model.loss)
    match = row("other-optimizer", "Adam", "SGD")
    with pytest.raises(ValueError, match=match):
        unrolled.influence(QUERIES, verbose=0)


def test_unstable_training_overflows_with_an_error(tmp_path):
    model = make_model(
        optimizers.SGD(50.0), hidden=False, dtype="float32", decay=1.0
    )
    unrolled = recorded(model, tmp_path)
    queries = *QUERIES, np.full(4, 1e35, "float32")
    with pytest.raises(ValueError, match="overflow on their way back"):
        unrolled.influence(queries, verbose=0)


def test_slots_are_named_for_each_way_of_using_an_optimizer():
    model = make_model("sgd", dtype="float32")
    variables = model.trainable_variables
    expected = {
        (): optimizers.SGD(),
        ("_velocities",): optimizers.RMSprop(),
        ("_momentums", "_velocities", "_velocity_hats"): optimizers.AdamW(
            amsgrad=True
        ),
    }
    for names, optimizer in expected.items():
        optimizer.build(variables)
        update = Update(optimizer, variables)
        assert update.slots == names
        slots = update.slots_of(optimizer)
        assert [len(slot) for slot in slots] == [len(variables)] * len(names)
