"""Logits and probabilities are told apart, against one tape per example."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.losses.expected_outputs import ExpectedOutputs
from keras_tracin.losses.output_kinds import kind_of, outputs_of
from keras_tracin.losses.query_losses import query_value
from tests.error_rows import row

COUNT, WIDTH, CLASSES = 12, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(COUNT, WIDTH)).astype("float32")
LABELS = np.arange(COUNT) % CLASSES
SIDES = (np.arange(COUNT) % 2).astype("float32")

FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def own_loss(y_true, y_pred):
    y_true = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
    return -tf.math.log(1e-7 + tf.gather(y_pred, y_true, batch_dims=1))


def own_loss_from_logits(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(
        y_true, y_pred, from_logits=True
    )


def by_hand(logits):
    powers = tf.exp(logits)
    return powers / tf.reduce_sum(powers, axis=-1, keepdims=True)


def model_of(end, loss, classes=CLASSES, dtype=None):
    """A model, and the one of its logits, which shares its layers."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((WIDTH,))
    hidden = layers.Dense(5, activation="tanh", dtype=dtype)(inputs)
    logits = layers.Dense(classes, dtype=dtype)(hidden)
    model = keras.Model(inputs, end(logits))
    model.compile("sgd", loss)
    return model, keras.Model(inputs, logits)


def gradients_by_hand(logits_model, measure, labels):
    """`[n, p]` in float64 logits, one tape for each example."""
    rows = []
    for at, label in enumerate(labels):
        with tf.GradientTape() as tape:
            row = tf.cast(logits_model(X[at : at + 1])[0], tf.float64)
            if len(row) == 1:
                row = tf.concat([tf.zeros_like(row), row], axis=0)
            value = -row[int(label)]
            if measure == "margin":
                others = np.arange(len(row)) != label
                value += tf.reduce_logsumexp(tf.boolean_mask(row, others))
        grads = tape.gradient(value, logits_model.trainable_variables)
        rows.append(np.concatenate([g.numpy().ravel() for g in grads]))
    return np.stack(rows).astype(np.float64)


def scores_by_hand(logits_model, measure, labels):
    grads = gradients_by_hand(logits_model, measure, labels)
    losses = []
    for at, label in enumerate(labels):
        with tf.GradientTape() as tape:
            row = logits_model(X[at : at + 1])
            if len(row[0]) == 1:
                row = tf.concat([tf.zeros_like(row), row], axis=1)
            value = tf.nn.sparse_softmax_cross_entropy_with_logits(
                [int(label)], row
            )
        found = tape.gradient(value, logits_model.trainable_variables)
        losses.append(np.concatenate([g.numpy().ravel() for g in found]))
    return grads @ np.stack(losses).astype(np.float64).T


def recorded(model, directory, labels):
    model.fit(
        X,
        labels,
        batch_size=COUNT,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(directory)],
    )
    return kt.TrainingRun(directory)


def assert_close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


ENDS = {
    "lambda": layers.Lambda(tf.nn.softmax),
    "by hand": layers.Lambda(by_hand),
    "activation": layers.Activation("softmax"),
    "layer": layers.Softmax(),
    "operation": keras.ops.softmax,
    "with a temperature": layers.Lambda(lambda z: tf.nn.softmax(z) / 3),
}


def gradient_of(model, measure, labels):
    """That of a query's measure, summed over all examples, `[p]`."""
    value = query_value(model, measure, None, X)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(value(labels, model(X), None))
    grads = tape.gradient(total, model.trainable_variables)
    return np.concatenate([g.numpy().ravel() for g in grads])


@pytest.mark.parametrize("end", ENDS)
def test_margins_of_a_softmax_are_those_of_its_logits(end):
    loss = "sparse_categorical_crossentropy"
    model, logits = model_of(ENDS[end], loss)
    actual = gradient_of(model, "margin", LABELS)
    expected = gradients_by_hand(logits, "margin", LABELS).sum(axis=0)
    assert_close(actual, expected)


@pytest.mark.parametrize("end", ["by hand", "operation"])
def test_scores_of_margins_are_those_of_the_logits(end, tmp_path):
    loss = "sparse_categorical_crossentropy"
    model, logits = model_of(ENDS[end], loss)
    run = recorded(model, tmp_path, LABELS)
    rate = float(model.optimizer.learning_rate)
    scores = kt.TracIn(model, (X, LABELS), run, query_loss="margin").influence(
        (X, LABELS), verbose=0
    )
    expected = rate * scores_by_hand(logits, "margin", LABELS)
    assert_close(scores.scores, expected)


@pytest.mark.parametrize("end", ["lambda", "by hand", "with a temperature"])
def test_logits_that_a_softmax_has_lost_are_refused(end, tmp_path):
    model, _ = model_of(ENDS[end], "sparse_categorical_crossentropy")
    run = recorded(model, tmp_path, LABELS)
    with pytest.raises(ValueError, match="not the logit that went into"):
        kt.TracIn(model, (X, LABELS), run, query_loss="logit")


@pytest.mark.parametrize("measure", ["logit", "margin"])
@pytest.mark.parametrize("end", [tf.nn.sigmoid, tf.math.sigmoid])
def test_a_sigmoid_tells_its_logit(end, measure, tmp_path):
    def last(logits):
        return layers.Lambda(lambda z: end(z) * 1.0)(logits)

    model, logits = model_of(last, "binary_crossentropy", classes=1)
    actual = gradient_of(model, measure, SIDES)
    expected = gradients_by_hand(logits, measure, SIDES).sum(axis=0)
    assert_close(actual, expected)


def test_margins_of_a_mean_of_two_softmaxes_are_of_its_probabilities():
    def mean(logits):
        return layers.Lambda(
            lambda z: (tf.nn.softmax(z) + tf.nn.softmax(2 * z)) / 2
        )(logits)

    model, _ = model_of(mean, "sparse_categorical_crossentropy")
    p = model(X).numpy().astype(np.float64)
    p = p[np.arange(COUNT), LABELS]
    value = query_value(model, "margin", None, X)(LABELS, model(X), None)
    np.testing.assert_allclose(-value, np.log(p / (1 - p)), rtol=1e-5)


def test_probabilities_in_half_precision_have_margins():
    end = layers.Lambda(by_hand, dtype="mixed_float16")
    loss = "sparse_categorical_crossentropy"
    model, logits = model_of(end, loss, dtype="mixed_float16")
    outputs = outputs_of(model, None, X)
    assert outputs.kind == "probabilities"
    z = logits(X).numpy().astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    p = p[np.arange(COUNT), LABELS]
    value = query_value(model, "margin", None, X)(LABELS, model(X), None)
    np.testing.assert_allclose(-value, np.log(p / (1 - p)), atol=1e-2)


def test_sequences_of_probabilities_have_margins():
    z = RNG.normal(size=(3, 5, CLASSES))
    p = (np.exp(z) / np.exp(z).sum(-1, keepdims=True)).astype("float32")
    p[0, 3:] = 0  # padded
    tags = RNG.integers(0, CLASSES, size=(3, 5))
    seen = np.ones((3, 5), "float32")
    seen[0, 3:] = 0
    model, _ = model_of(layers.Softmax(), own_loss)
    value = query_value(model, "margin")(tags[1:], tf.constant(p[1:]), None)
    chosen = np.take_along_axis(p[1:], tags[1:, :, None], axis=-1)[..., 0]
    chosen = chosen.astype(np.float64)
    expected = np.log(chosen / (1 - chosen)).mean(axis=1)
    np.testing.assert_allclose(-value, expected, rtol=1e-5)
    assert kind_of(tf.constant(p), ExpectedOutputs()).kind == "probabilities"


@pytest.mark.parametrize("measure", ["logit", "margin"])
@pytest.mark.parametrize(
    ("end", "loss", "classes"),
    [
        (layers.Lambda(tf.nn.softmax), FROM_LOGITS, CLASSES),
        (ENDS["with a temperature"], FROM_LOGITS, CLASSES),
        (layers.Identity(), "sparse_categorical_crossentropy", CLASSES),
        (layers.Identity(), "binary_crossentropy", 1),
        (
            layers.Lambda(tf.nn.sigmoid),
            keras.losses.BinaryCrossentropy(from_logits=True),
            1,
        ),
        (ENDS["with a temperature"], own_loss, CLASSES),
        (layers.Lambda(tf.nn.sigmoid), "mse", 1),
        (layers.Softmax(axis=0), own_loss, CLASSES),
        (
            layers.Softmax(),
            keras.losses.CategoricalCrossentropy(axis=1),
            CLASSES,
        ),
    ],
    ids=[
        "softmax, from_logits=True",
        "scaled softmax, from_logits=True",
        "logits, from_logits=False",
        "a logit, from_logits=False",
        "sigmoid, from_logits=True",
        "scaled softmax, a loss that says nothing",
        "sigmoid, a loss that says nothing",
        "a softmax over the examples",
        "classes along another axis",
    ],
)
def test_outputs_at_odds_with_the_loss_are_refused(measure, end, loss, classes):
    model, _ = model_of(end, loss, classes)
    if getattr(loss, "_fn_kwargs", {}).get("axis") == 1:
        inputs = keras.Input((WIDTH, CLASSES))
        model = keras.Model(inputs, end(inputs))
        model.compile("sgd", loss)
        x = RNG.normal(size=(2, WIDTH, CLASSES)).astype("float32")
    else:
        x = X
    with pytest.raises(ValueError, match=row("unknown-logits", f"'{measure}'")):
        query_value(model, measure, None, x)


def test_outputs_that_may_be_either_are_refused_under_a_loss_of_its_own():
    model, _ = model_of(layers.Lambda(tf.nn.sigmoid), "mse", 1)
    with pytest.raises(ValueError, match=row("unknown-outputs")):
        query_value(model, "margin", None, X)


@pytest.mark.parametrize("measure", ["logit", "margin"])
@pytest.mark.parametrize("loss", [FROM_LOGITS, own_loss_from_logits, "mse"])
def test_outputs_that_are_no_probabilities_are_logits(loss, measure):
    model, logits = model_of(layers.Identity(), loss)
    actual = gradient_of(model, measure, LABELS)
    expected = gradients_by_hand(logits, measure, LABELS).sum(axis=0)
    assert_close(actual, expected)


@pytest.mark.parametrize("loss", [FROM_LOGITS, own_loss])
def test_log_probabilities_have_margins_but_no_logits(loss):
    model, _ = model_of(layers.Activation("log_softmax"), loss)
    value = query_value(model, "margin", None, X)(LABELS, model(X), None)
    p = np.exp(model(X).numpy().astype(np.float64))
    p = p[np.arange(COUNT), LABELS]
    np.testing.assert_allclose(-value, np.log(p / (1 - p)), rtol=1e-4)
    with pytest.raises(ValueError, match="logarithms of probabilities"):
        query_value(model, "logit", None, X)


def test_probabilities_of_zero_and_one_are_refused():
    model, _ = model_of(layers.Lambda(by_hand), own_loss)
    value = query_value(model, "margin", None, X)
    certain = tf.constant(np.eye(CLASSES, dtype="float32"))
    with pytest.raises(ValueError, match="probabilities above"):
        value(LABELS[:CLASSES], certain, None)


def test_saturated_outputs_end_a_call_with_their_ids(tmp_path):
    def clipped(logits):
        # Exactly 0 or 1 for the examples whose first logit is above 0.
        return layers.Lambda(
            lambda z: tf.nn.softmax(tf.where(z[:, :1] > 0, 1e3 * z, z))
        )(logits)

    model, logits = model_of(clipped, own_loss)
    run = recorded(model, tmp_path, LABELS)
    saturated = np.flatnonzero(logits(X).numpy()[:, 0] > 0)
    tracin = kt.TracIn(model, (X, LABELS), run, query_loss="margin")
    with pytest.raises(ValueError, match=row("certain-outputs")) as error:
        tracin.influence((X, LABELS), verbose=0)
    assert str(saturated[0]) in str(error.value)


def test_labels_of_several_classes_have_no_margin():
    model, _ = model_of(layers.Activation("sigmoid"), "binary_crossentropy")
    several = np.tile(np.float32([1, 1, 0, 0]), (COUNT, 1))
    value = query_value(model, "margin", None, X)
    with pytest.raises(ValueError, match=row("several-classes")):
        value(several, model(X), None)


def test_trak_scores_probabilities_like_their_logits(tmp_path):
    loss = "sparse_categorical_crossentropy"
    model, logits = model_of(ENDS["with a temperature"], loss)
    run = recorded(model, tmp_path, LABELS)
    logits.compile("sgd", FROM_LOGITS)
    options = {"projection": kt.TensorSketch(8), "damping": 1.0}
    data = (X, LABELS)
    actual = kt.TRAK(model, data, run, **options).influence(data, verbose=0)
    # The same weights under a model that ends in its logits.
    other = recorded(logits, tmp_path / "logits", LABELS)
    logits.load_weights(run[-1].path)
    logits.save_weights(other[-1].path)
    expected = kt.TRAK(logits, data, [run], **options).influence(
        data, verbose=0
    )
    assert_close(actual.scores, expected.scores, 1e-4)


def test_trak_refuses_outputs_at_odds_with_the_loss(tmp_path):
    model, _ = model_of(ENDS["lambda"], FROM_LOGITS)
    run = recorded(model, tmp_path, LABELS)
    with pytest.raises(ValueError, match=row("unknown-logits", "'margin'")):
        kt.TRAK(model, (X, LABELS), run)


@pytest.mark.parametrize("end", ["by hand", "layer"])
def test_representer_points_see_the_logits_of_a_softmax(end):
    loss = "sparse_categorical_crossentropy"
    model, logits = model_of(ENDS[end], loss)
    logits.compile("sgd", FROM_LOGITS)
    data = (X, LABELS)
    actual, expected = (
        kt.RepresenterPoints(one, data, l2=1e-2, verbose=0).influence(data)
        for one in (model, logits)
    )
    assert_close(actual.scores, expected.scores, 1e-4)


def test_representer_points_refuse_a_loss_that_does_not_fit():
    model, _ = model_of(ENDS["by hand"], FROM_LOGITS)
    with pytest.raises(ValueError, match=row("contradicting-loss")):
        kt.RepresenterPoints(model, (X, LABELS), l2=1e-2, verbose=0)


def test_representer_points_tell_tanh_from_a_line_near_zero():
    model, _ = model_of(layers.Activation("tanh"), "mse", classes=2)
    dense = model.layers[-2]
    dense.kernel.assign(dense.kernel * 1e-2)
    points = kt.RepresenterPoints(
        model, (X, np.zeros((COUNT, 2), "float32")), l2=1e-2, verbose=0
    )
    assert points._problem.head.activation == "tanh"


@pytest.mark.parametrize(
    ("curvature", "end", "loss", "classes", "labels"),
    [
        (
            "gauss_newton",
            by_hand,
            "sparse_categorical_crossentropy",
            CLASSES,
            LABELS,
        ),
        ("ekfac", tf.nn.sigmoid, "binary_crossentropy", 1, SIDES),
    ],
)
def test_gauss_newton_is_that_of_the_logits(
    curvature, end, loss, classes, labels
):
    name = "sigmoid" if classes == 1 else "softmax"
    data, scores = (X, labels), []
    for last in (layers.Lambda(end), layers.Activation(name)):
        model, _ = model_of(last, loss, classes)
        method = kt.InfluenceFunctions(
            model, data, damping=0.1, curvature=curvature
        )
        with pytest.warns(UserWarning, match="not converged"):
            scores.append(method.influence(data, verbose=0).scores)
    assert_close(*scores, 1e-4)


@pytest.mark.parametrize(
    ("end", "loss", "severity", "words"),
    [
        ("lambda", own_loss, "note", "'margin' and TRAK are computed"),
        ("lambda", FROM_LOGITS, "warning", "from_logits=True, but the"),
        ("with a temperature", own_loss, "note", "margins in TRAK are refused"),
    ],
)
def test_check_says_what_the_outputs_are(end, loss, severity, words):
    model, _ = model_of(ENDS[end], loss)
    report = kt.check(model, (X, LABELS), verbose=0)
    assert [
        finding
        for finding in report.findings
        if words in finding.message and finding.severity == severity
    ]


def test_looking_at_outputs_leaves_the_model_as_it_was():
    class Counting(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(
                shape=(), initializer="zeros", trainable=False
            )

        def call(self, inputs):
            self.count.assign_add(1.0)
            return tf.nn.softmax(inputs)

    layer = Counting()
    model, _ = model_of(layer, own_loss)
    before = float(layer.count)
    outputs_of(model, None, X)
    assert float(layer.count) == before
