"""The loss of one example, against what Keras computes for a batch."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.trainers.data_adapters.data_adapter_utils import (
    class_weight_to_sample_weights,
)

from keras_tracin.losses.per_example import (
    check_no_activation_losses,
    penalty_weight,
    per_example_loss,
)
from tests.error_rows import row
from tests.gradients.oracle import functional, sequential

COUNT, CLASSES = 5, 4
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0, 3.0], "float32")
REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight")
BUILT_IN = {
    name: value
    for name, value in vars(keras.losses).items()
    if inspect.isclass(value)
    and issubclass(value, keras.losses.Loss)
    and value is not keras.losses.Loss
}
# These compare all examples of a batch with each other, or add them up first.
WHOLE_BATCH = {"Circle", "Dice", "Tversky"}
INTEGER_LABELS = {
    "CategoricalGeneralizedCrossEntropy",
    "Circle",
    "SparseCategoricalCrossentropy",
}

# A loss that Keras adds fails here until its data and kind are known.
CLASSIFIED = {
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CTC",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalHinge",
    "CosineSimilarity",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "SquaredHinge",
    *WHOLE_BATCH,
    *INTEGER_LABELS,
}


def test_every_built_in_loss_is_classified():
    assert BUILT_IN.keys() == CLASSIFIED


def identity_model(loss="mse", shape=(CLASSES,), **kwargs):
    model = sequential(shape, layers.Activation("linear"))
    model.compile(loss=loss, **kwargs)
    return model


def suitable_data(name):
    """Labels and predictions `[5, ...]` for a loss class."""
    rng = np.random.default_rng(0)
    y_pred = rng.uniform(0.1, 0.9, size=(COUNT, CLASSES)).astype("float32")
    if name == "CTC":
        y_pred = rng.normal(size=(COUNT, 6, CLASSES)).astype("float32")
        return rng.integers(1, CLASSES, size=(COUNT, 2)), y_pred
    if name in INTEGER_LABELS:
        return rng.integers(CLASSES, size=COUNT), y_pred
    return np.eye(CLASSES, dtype="float32")[[0, 1, 3, 3, 2]], y_pred


def batch_value(per_example, reduction, sample_weight=None):
    """What Keras makes of a batch, put together from its examples."""
    values = np.asarray(per_example)
    if reduction == "sum":
        return values.sum()
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        return values.sum() / sample_weight.sum()
    return values.mean()


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "name", ["MeanSquaredError", "SparseCategoricalCrossentropy"]
)
def test_examples_make_up_the_batch(name, reduction, sample_weight):
    check_batch(name, reduction, sample_weight)


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - WHOLE_BATCH))
def test_examples_of_every_built_in_loss_make_up_the_batch(name):
    check_batch(name, "sum_over_batch_size", WEIGHTS)


def check_batch(name, reduction, sample_weight):
    y, y_pred = suitable_data(name)
    model = identity_model(BUILT_IN[name](reduction=reduction))
    values = per_example_loss(model)(y, tf.constant(y_pred), sample_weight)
    assert values.shape == (COUNT,)
    expected = model.compute_loss(None, y, tf.constant(y_pred), sample_weight)
    found = batch_value(values, reduction, sample_weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - WHOLE_BATCH))
def test_an_example_does_not_depend_on_the_others(name):
    y, y_pred = suitable_data(name)
    loss = per_example_loss(identity_model(BUILT_IN[name]()))
    whole = loss(y, tf.constant(y_pred), None)
    alone = [
        loss(y[i : i + 1], tf.constant(y_pred[i : i + 1]), None)[0]
        for i in range(COUNT)
    ]
    np.testing.assert_allclose(whole, alone, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(WHOLE_BATCH))
def test_losses_of_a_whole_batch_are_refused(name):
    y, y_pred = suitable_data(name)
    loss = per_example_loss(identity_model(BUILT_IN[name]()))
    with pytest.raises(ValueError, match="examples cannot be told apart"):
        loss(y, tf.constant(y_pred), None)


@pytest.mark.parametrize("name", ["Dice", "Tversky"])
def test_overlap_losses_of_each_image_are_taken(name):
    y, y_pred = suitable_data(name)
    model = identity_model(BUILT_IN[name](axis=1))
    values = per_example_loss(model)(y, tf.constant(y_pred), None)
    assert values.shape == (COUNT,)
    np.testing.assert_allclose(
        np.mean(values),
        model.compute_loss(None, y, tf.constant(y_pred)),
        rtol=1e-5,
    )


@pytest.mark.parametrize("reduction", ["none", None])
def test_loss_without_reduction_is_a_mean_over_positions(reduction):
    rng = np.random.default_rng(0)
    y, y_pred = rng.normal(size=(2, COUNT, 3, 2)).astype("float32")
    model = identity_model(
        keras.losses.MeanSquaredError(reduction=reduction), (3, 2)
    )
    values = per_example_loss(model)(y, tf.constant(y_pred), None)
    np.testing.assert_allclose(
        values, np.mean((y - y_pred) ** 2, axis=(1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("reduction", REDUCTIONS[:3])
@pytest.mark.parametrize("shape", [None, (COUNT, 3), (COUNT, 1), (COUNT, 3, 1)])
def test_positions_and_their_weights_make_up_the_batch(shape, reduction):
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=(COUNT, 3))
    y_pred = rng.uniform(0.1, 1, size=(COUNT, 3, CLASSES)).astype("float32")
    weight = shape and rng.uniform(size=shape).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    model = identity_model(loss, (3, CLASSES))
    values = per_example_loss(model)(y, tf.constant(y_pred), weight)
    expected = model.compute_loss(None, y, tf.constant(y_pred), weight)
    np.testing.assert_allclose(
        batch_value(values, reduction), expected, rtol=1e-5
    )


def test_a_weight_for_each_sequence_scales_it():
    rng = np.random.default_rng(0)
    y, y_pred = rng.normal(size=(2, COUNT, 3, 2)).astype("float32")
    loss = per_example_loss(identity_model("mse", (3, 2)))
    plain = loss(y, tf.constant(y_pred), None)
    for weight in (WEIGHTS, WEIGHTS[:, None]):
        weighted = loss(y, tf.constant(y_pred), weight)
        np.testing.assert_allclose(weighted, WEIGHTS * plain, rtol=1e-5)


def squared(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    "loss",
    ["mse", "mean_squared_error", keras.losses.MeanSquaredError(), squared],
    ids=["short name", "name", "object", "function"],
)
@pytest.mark.parametrize("where", ["compile", "argument"])
def test_loss_is_given_in_several_forms(loss, where):
    y, y_pred = suitable_data("")
    compiled = where == "compile"
    model = identity_model(loss if compiled else "mae")
    found = per_example_loss(model, None if compiled else loss)
    np.testing.assert_allclose(
        found(y, tf.constant(y_pred), None),
        np.mean((y - y_pred) ** 2, axis=1),
        rtol=1e-5,
    )


def two_outputs():
    def call(x):
        return {
            "left": layers.Dense(2, name="left")(x),
            "right": layers.Dense(1, name="right")(x),
        }

    return functional((3,), call)


def listed_outputs():
    return functional(
        (3,),
        lambda x: [
            layers.Dense(2, name="left")(x),
            layers.Dense(1, name="right")(x),
        ],
    )


def nested_outputs():
    def call(x):
        left = layers.Dense(2, name="left")(x)
        right = layers.Dense(1, name="right")(x)
        return {"both": [left, right], "left": layers.Dense(2)(left)}

    return functional((3,), call)


@pytest.mark.parametrize(
    ("make_model", "loss", "loss_weights"),
    [
        (two_outputs, "mse", None),
        (two_outputs, {"left": "mse", "right": "mae"}, None),
        (
            two_outputs,
            {"left": "mse", "right": "mae"},
            {"left": 0.3, "right": 2.0},
        ),
        (two_outputs, {"left": "mse", "right": None}, None),
        (listed_outputs, ["mse", "mae"], [0.3, 2.0]),
        (listed_outputs, {"left": "mse", "right": "mae"}, None),
        (nested_outputs, "mse", None),
        (
            nested_outputs,
            {"both": ["mse", "mae"], "left": None},
            {"both": [0.3, 2.0], "left": 1.0},
        ),
    ],
    ids=[
        "one",
        "dict",
        "weights",
        "one unused",
        "list",
        "dict for a list",
        "nested",
        "nested weights",
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_outputs_are_added_as_keras_adds_them(
    make_model, loss, loss_weights, weighted
):
    model = make_model()
    model.compile(loss=loss, loss_weights=loss_weights)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 3)).astype("float32")
    y = {
        "left": rng.normal(size=(COUNT, 2)).astype("float32"),
        "right": rng.normal(size=(COUNT, 1)).astype("float32"),
    }
    if make_model is listed_outputs:
        y = list(y.values())
    if make_model is nested_outputs:
        y = {"both": list(y.values()), "left": y["left"]}
    sample_weight = WEIGHTS if weighted else None
    y_pred = model(x)
    values = per_example_loss(model)(y, y_pred, sample_weight)
    assert values.shape == (COUNT,)
    expected = model.compute_loss(x, y, y_pred, sample_weight)
    np.testing.assert_allclose(np.mean(values), expected, rtol=1e-5)


def masked_model(reduction="sum_over_batch_size"):
    keras.utils.set_random_seed(0)
    model = sequential(
        (4,),
        layers.Embedding(6, 3, mask_zero=True),
        layers.Dense(CLASSES, activation="softmax"),
        dtype="int32",
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    )
    return model


PADDED = np.array([[1, 2, 3, 4], [5, 1, 0, 0], [2, 0, 0, 0]])


@pytest.mark.parametrize("weighted", [False, True])
def test_masked_sequence_is_a_mean_over_its_own_positions(weighted):
    model = masked_model()
    y = np.array([[0, 1, 2, 3], [3, 2, 0, 0], [1, 0, 0, 0]])
    weight = np.array([1.0, 2.0, 0.5], "float32") if weighted else None
    values = per_example_loss(model)(y, model(PADDED), weight)
    picked = np.take_along_axis(
        np.asarray(model(PADDED)), y[..., None], axis=2
    )[..., 0]
    seen = PADDED > 0
    expected = (-np.log(picked) * seen).sum(axis=1) / seen.sum(axis=1)
    expected *= 1.0 if weight is None else weight
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_sequence_does_not_depend_on_the_rest_of_the_batch(reduction):
    model = masked_model(reduction)
    y = np.ones_like(PADDED)
    loss = per_example_loss(model)
    whole = loss(y, model(PADDED), None)
    for i in range(len(PADDED)):
        one = slice(i, i + 1)
        alone = loss(y[one], model(PADDED[one]), None)
        np.testing.assert_allclose(whole[one], alone, rtol=1e-5)


def test_masked_sequence_is_the_batch_loss_of_itself_alone():
    model = masked_model()
    y = np.ones_like(PADDED)
    values = per_example_loss(model)(y, model(PADDED), None)
    for i in range(len(PADDED)):
        one = slice(i, i + 1)
        batch = model.compute_loss(None, y[one], model(PADDED[one]))
        np.testing.assert_allclose(values[i], batch, rtol=1e-5)


def test_sequence_of_padding_alone_has_no_loss():
    model = masked_model()
    ids = np.array([[1, 2, 0, 0], [0, 0, 0, 0]])
    values = per_example_loss(model)(np.ones_like(ids), model(ids), None)
    assert values[0] > 0
    assert values[1] == 0


def test_mask_of_frames_does_not_fit_a_loss_of_sequences():
    # Keras cannot train on this either: CTC has one value for a sequence.
    model = masked_model()
    loss = per_example_loss(model, keras.losses.CTC())
    y = np.array([[1, 2], [3, 1], [2, 0]])
    with pytest.raises(ValueError, match=r"mask.*no more axes.*\(3, 4\)"):
        loss(y, model(PADDED), None)


def test_loss_reduced_to_a_scalar_is_refused_with_its_remedy():
    def reduced(y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred))

    y, y_pred = suitable_data("")
    loss = per_example_loss(identity_model(reduced))
    with pytest.raises(
        ValueError, match=row("reduced-loss", "'reduced'", "one value per")
    ):
        loss(y, tf.constant(y_pred), None)


def test_model_without_a_loss_is_refused():
    model = sequential((2,), layers.Dense(1), name="bare")
    with pytest.raises(
        ValueError, match=row("uncompiled", "'bare'", "compile(loss=")
    ):
        per_example_loss(model)
    assert callable(per_example_loss(model, "mse"))


def test_data_without_labels_is_refused():
    loss = per_example_loss(identity_model())
    with pytest.raises(ValueError, match=row("none-labels")):
        loss(None, tf.ones((2, CLASSES)), None)


@pytest.mark.parametrize(
    ("make_labels", "loss"),
    [
        (lambda labels: labels, "sparse_categorical_crossentropy"),
        (lambda labels: labels[:, None], "sparse_categorical_crossentropy"),
        (lambda labels: np.eye(CLASSES)[labels], "categorical_crossentropy"),
        (lambda labels: labels.astype("float32"), squared),
    ],
    ids=["indices", "column", "one-hot", "real"],
)
def test_class_weights_are_those_of_fit(make_labels, loss):
    _, y_pred = suitable_data("")
    y = make_labels(np.array([0, 2, 1, 3, 2]))
    if loss is squared:
        y_pred = y_pred[:, :1]
    class_weight = {0: 0.5, 2: 3.0}  # the others weigh one
    model = identity_model(loss)
    weighted = per_example_loss(model, class_weight=class_weight)
    plain = per_example_loss(model)
    as_fit = class_weight_to_sample_weights(y, class_weight)
    y_pred = tf.constant(y_pred)
    np.testing.assert_allclose(
        weighted(y, y_pred, None), plain(y, y_pred, as_fit), rtol=1e-6
    )
    np.testing.assert_allclose(
        weighted(y, y_pred, WEIGHTS),
        plain(y, y_pred, as_fit * WEIGHTS),
        rtol=1e-6,
    )


def test_class_weights_need_one_output():
    model = two_outputs()
    model.compile(loss="mse")
    loss = per_example_loss(model, class_weight={0: 1.0})
    y = {"left": np.zeros((2, 2)), "right": np.zeros((2, 1))}
    with pytest.raises(ValueError, match="single output"):
        loss(y, model(np.zeros((2, 3))), None)


class AddsLoss(keras.Layer):
    """A layer with a loss computed from its inputs."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs))
        return inputs


@pytest.mark.parametrize(
    "layer",
    [
        AddsLoss(name="culprit"),
        layers.Dense(2, activity_regularizer="l2", name="culprit"),
    ],
    ids=["add_loss", "activity_regularizer"],
)
def test_losses_on_activations_are_refused_by_name(layer):
    model = sequential((2,), layer)
    model(tf.ones((3, 2)))
    with pytest.raises(
        ValueError, match=row("added-losses", "'culprit'...Pass...`loss=`")
    ):
        check_no_activation_losses(model)


def test_weight_regularizers_are_not_losses_on_activations():
    model = sequential((2,), layers.Dense(2, kernel_regularizer="l2"))
    model(tf.ones((3, 2)))
    check_no_activation_losses(model)


@pytest.mark.parametrize(
    ("reduction", "batch_size", "weight"),
    [
        ("sum_over_batch_size", None, 1.0),
        ("sum_over_batch_size", 8, 1.0),
        ("sum", 8, 1 / 8),
        (None, 8, 1 / 8),
    ],
)
def test_a_penalty_weighs_what_it_does_beside_the_mean_loss(
    reduction, batch_size, weight
):
    layer = layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1))
    model = sequential((2,), layer)
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    model.compile(loss=loss)
    assert penalty_weight(model, batch_size=batch_size) == weight
    assert penalty_weight(model, loss, batch_size) == weight


def test_a_sum_without_its_batch_size_has_no_weight_for_a_penalty():
    layer = layers.Dense(1, kernel_regularizer="l2")
    model = sequential((2,), layer)
    loss = keras.losses.MeanSquaredError(reduction="sum")
    with pytest.raises(ValueError, match="batch_size="):
        penalty_weight(model, loss)
    assert penalty_weight(sequential((2,), layers.Dense(1)), loss) == 1.0
