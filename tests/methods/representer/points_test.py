"""Representer points against slow twins, and against their own sums."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.methods.representer import retune as retune_module
from keras_tracin.methods.representer.decomposition import L2Points
from tests.error_rows import row

NUM_TRAIN, NUM_TEST, WIDTH = 40, 6, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to end a network, and what its logits mean."""

    units: int
    activation: str
    loss: object
    labels: str


SPARSE = keras.losses.SparseCategoricalCrossentropy
BINARY = keras.losses.BinaryCrossentropy
CASES = {
    "logits": Case(3, "linear", SPARSE(from_logits=True), "ids"),
    "softmax": Case(3, "softmax", "categorical_crossentropy", "one-hot"),
    "sigmoid": Case(1, "sigmoid", "binary_crossentropy", "sides"),
    "side logits": Case(1, "linear", BINARY(from_logits=True), "sides"),
    "regression": Case(1, "linear", "mse", "values"),
}


def labels(kind, count, rng):
    ids = rng.integers(0, 3, count)
    return {
        "ids": ids,
        "one-hot": np.eye(3, dtype="float32")[ids],
        "sides": rng.integers(0, 2, count),
        "values": rng.normal(size=count).astype("float32"),
    }[kind]


def examples(case, count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, labels(case.labels, count, rng)


def build(case, separate=False, bias=True):
    keras.utils.set_random_seed(3)
    head = keras.layers.Dense(
        case.units,
        activation=None if separate else case.activation,
        use_bias=bias,
        name="head",
    )
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(WIDTH, activation="tanh", name="body"),
        keras.layers.Dropout(0.5),
        head,
    ]
    if separate:
        layers.append(keras.layers.Activation(case.activation))
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), case.loss)
    return model


@dataclasses.dataclass(frozen=True)
class Made:
    """A trained model, its data and its representer points."""

    case: Case
    model: keras.Model
    train: tuple
    test: tuple
    points: kt.RepresenterPoints


def make(name, l2=0.01, **options):
    case = CASES[name]
    train, test = examples(case, NUM_TRAIN, 0), examples(case, NUM_TEST, 1)
    model = build(case)
    model.fit(*train, epochs=3, batch_size=8, verbose=0)
    points = kt.RepresenterPoints(model, train, l2=l2, verbose=0, **options)
    return Made(case, model, train, test, points)


@pytest.fixture(scope="module", params=CASES)
def made(request):
    return make(request.param)


@pytest.fixture(scope="module")
def classes():
    return make("logits")


def features(model, x):
    """What goes into the head, with a constant, by the body alone."""
    body = model.get_layer("body")
    kernel, bias = body.get_weights()
    return np.hstack([np.tanh(x @ kernel + bias), np.ones((len(x), 1))])


def slopes(case, logits, y):
    """∂ℓ/∂φ, written out."""
    if case.labels == "values":
        return 2 * (logits - y[:, None])
    if case.labels == "sides":
        return 1 / (1 + np.exp(-logits)) - y[:, None]
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    hot = y if case.labels == "one-hot" else np.eye(3)[y]
    return exp / exp.sum(axis=1, keepdims=True) - hot


def test_values_and_scores_are_those_of_the_definition(made):
    f = features(made.model, made.train[0])
    logits = f @ made.points.weights
    alpha = -slopes(made.case, logits, made.train[1]) / (2 * 0.01 * NUM_TRAIN)
    np.testing.assert_allclose(made.points.values, alpha, rtol=2e-4, atol=1e-6)
    products = features(made.model, made.test[0]) @ f.T
    np.testing.assert_allclose(
        made.points.class_scores(made.test, verbose=0),
        products[:, :, None] * alpha,
        rtol=1e-3,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        made.points.self_influence().scores,
        np.linalg.norm(alpha, axis=1),
        rtol=2e-4,
        atol=1e-6,
    )


def test_scores_add_up_to_the_retuned_logits(made):
    logits = features(made.model, made.test[0]) @ made.points.weights
    sums = made.points.class_scores(made.test, verbose=0).sum(axis=1)
    for found in (sums, made.points.logits(made.test, verbose=0)):
        assert np.abs(found - logits).max() <= 1e-3 * np.abs(logits).max()
    report = made.points.faithfulness(made.test, verbose=0)
    assert report.agreement <= 1e-3
    assert report.gradient_ratio <= 1e-6
    assert report.residual <= 1e-4
    assert "correlation" in str(report)


def test_the_retuned_model_predicts_from_the_decomposed_logits(made):
    logits = tf.constant(made.points.logits(made.test, verbose=0), tf.float32)
    expected = keras.activations.get(made.case.activation)(logits)
    found = made.points.retuned_model.predict(made.test[0], verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_scores_push_towards_the_label(made):
    scores = made.points.influence(made.test, verbose=0).scores
    each = made.points.class_scores(made.test, verbose=0)
    y = made.test[1]
    if made.case.units == 3:
        ids = y if made.case.labels == "ids" else y.argmax(axis=1)
        expected = np.stack([each[i, :, c] for i, c in enumerate(ids)])
    elif made.case.labels == "sides":
        expected = each[:, :, 0] * (2 * y - 1)[:, None]
    else:
        expected = each[:, :, 0]  # raises the output
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_predicted_is_the_class_that_the_users_model_predicts(made):
    predicted = made.model.predict(made.test[0], verbose=0)
    found = made.points.influence(made.test, target="predicted", verbose=0)
    each = made.points.class_scores(made.test, verbose=0)
    if made.case.units == 3:
        ids = predicted.argmax(axis=1)
        expected = np.stack([each[i, :, c] for i, c in enumerate(ids)])
    elif made.case.labels == "sides":
        half = 0.5 if made.case.activation == "sigmoid" else 0.0
        expected = each[:, :, 0] * np.where(predicted > half, 1, -1)
    else:
        expected = each[:, :, 0]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_a_class_index_is_the_target_of_all_queries(classes):
    found = classes.points.influence(classes.test, target=2, verbose=0)
    each = classes.points.class_scores(classes.test, verbose=0)
    np.testing.assert_allclose(found.scores, each[:, :, 2], rtol=1e-6)
    np.testing.assert_array_equal(found.train_ids, np.arange(NUM_TRAIN))


@pytest.mark.parametrize(
    ("activation", "loss"),
    [("sigmoid", "binary_crossentropy"), ("linear", "mse")],
)
def test_outputs_side_by_side_are_asked_for_by_their_index(activation, loss):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_TRAIN, 4)).astype("float32")
    y = rng.integers(0, 2, (NUM_TRAIN, 3)).astype("float32")
    model = build(Case(3, activation, loss, "sides"))
    points = kt.RepresenterPoints(model, (x, y), l2=0.01, verbose=0)
    logits = features(model, x) @ points.weights
    for output in range(3):
        found = points.influence((x, y), target=output, verbose=0).scores
        np.testing.assert_allclose(
            found.sum(axis=1), logits[:, output], rtol=1e-3, atol=1e-4
        )
    for target in ("label", "predicted"):
        with pytest.raises(ValueError, match="3 outputs that do not exclude"):
            points.influence((x, y), target=target, verbose=0)


def test_top_k_in_small_pieces_agrees_with_all_scores(classes):
    expected = classes.points.influence(classes.test, verbose=0).top_k(4)
    small = kt.RepresenterPoints(
        classes.model, classes.train, l2=0.01, memory_limit=2000, verbose=0
    )
    found = small.top_k(classes.test, 4, verbose=0)
    for side in ("proponents", "opponents"):
        a, b = getattr(found, side), getattr(expected, side)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4)


def test_pieces_are_of_bounded_size_however_much_memory_there_is(
    classes, monkeypatch
):
    made = []

    def scores(self, prepared, rows):
        found = original(self, prepared, rows)
        made.append(found.size)
        return found

    original = L2Points.scores
    expected = classes.points.top_k(classes.test, 4, verbose=0)
    monkeypatch.setattr(L2Points, "scores", scores)
    monkeypatch.setattr(classes.points, "largest_chunk", 10 * NUM_TEST)
    found = classes.points.top_k(classes.test, 4, verbose=0)
    assert made == [10 * NUM_TEST] * (NUM_TRAIN // 10)
    np.testing.assert_array_equal(found.opponents.ids, expected.opponents.ids)


def test_replicas_do_not_matter(classes):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = build(classes.case)
    model.set_weights(classes.model.get_weights())
    points = kt.RepresenterPoints(
        model, classes.train, l2=0.01, strategy=strategy, verbose=0
    )
    np.testing.assert_allclose(
        points.influence(classes.test, verbose=0).scores,
        classes.points.influence(classes.test, verbose=0).scores,
        rtol=1e-3,
        atol=1e-5,
    )
    sweep = kt.sweep_l2(
        model, classes.train, [0.01], strategy=strategy, verbose=0
    )
    own = classes.points.faithfulness(verbose=0)
    assert sweep.rows[0].correlation == pytest.approx(own.correlation, rel=1e-4)
    refused(
        classes.model, classes.train, row("other-strategy"), strategy=strategy
    )


def lje_twin(model, train, test, l2):
    """Scores `[m, n, k]` by the formula, one training example at a time."""
    f, t = features(model, train[0]), features(model, test[0])
    weights = np.vstack(model.get_layer("head").get_weights()).astype(float)
    f, t = f.astype(float), t.astype(float)
    n, size, k = len(f), weights.size, weights.shape[1]
    logits = f @ weights
    delta = slopes(CASES["logits"], logits, train[1])
    p = delta + np.eye(k)[train[1]]
    hessian = 2 * l2 * np.eye(size)
    for i in range(n):
        curvature = np.diag(p[i]) - np.outer(p[i], p[i])
        hessian += np.kron(np.outer(f[i], f[i]), curvature) / n
    inverse = np.linalg.inv(hessian)
    parts = []
    for i in range(n):
        moved = inverse @ np.outer(f[i], delta[i]).reshape(-1)
        parts.append((weights - moved.reshape(weights.shape)) / n)
    return np.einsum("mf,nfk->mnk", t, np.stack(parts)), np.stack(parts), f


def test_local_expansion_is_that_of_its_formula(classes):
    expected, parts, f = lje_twin(
        classes.model, classes.train, classes.test, 0.01
    )
    points = kt.RepresenterPoints(
        classes.model, classes.train, l2=0.01, method="lje", verbose=0
    )
    found = points.class_scores(classes.test, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        points.logits(classes.test, verbose=0), expected.sum(1), rtol=1e-3
    )
    by_label = points.influence(classes.test, verbose=0).scores
    rows = np.arange(NUM_TEST)
    np.testing.assert_allclose(
        by_label, expected[rows, :, classes.test[1]], rtol=1e-3, atol=1e-5
    )
    own = np.einsum("nf,nfk->nk", f, parts)
    lengths = (f**2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        points.values, own / lengths, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(
        points.self_influence().scores, np.linalg.norm(own, axis=1), rtol=1e-3
    )
    with pytest.raises(ValueError, match="retunes nothing"):
        _ = points.retuned_model


class Subclassed(keras.Model):
    """A model whose layers only its `call` connects."""

    def __init__(self, body, head):
        super().__init__()
        self.head, self.body = head, body  # not in the order of the calls

    def call(self, x):
        return tf.nn.softmax(self.head(self.body(x)))


def test_the_way_a_model_is_written_does_not_matter(classes):
    loss = keras.losses.SparseCategoricalCrossentropy()
    case = dataclasses.replace(CASES["logits"], activation="softmax", loss=loss)
    separate = build(case, separate=True)
    separate.set_weights(classes.model.get_weights())
    subclassed = Subclassed(
        classes.model.get_layer("body"), classes.model.get_layer("head")
    )
    subclassed(classes.train[0])
    subclassed.compile(loss=loss)
    expected = classes.points.influence(classes.test, verbose=0).scores
    for model in (separate, subclassed):
        points = kt.RepresenterPoints(model, classes.train, l2=0.01, verbose=0)
        found = points.influence(classes.test, verbose=0).scores
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_sample_weights_scale_and_ids_follow_a_shuffle(classes):
    weight = np.linspace(0.5, 2, NUM_TRAIN).astype("float32")
    plain = (*classes.train, weight)
    ids = np.arange(100, 100 + NUM_TRAIN)
    shuffled = kt.with_ids(plain, ids).shuffle(NUM_TRAIN, seed=1).batch(7)
    one = kt.RepresenterPoints(classes.model, plain, l2=0.01, verbose=0)
    f = features(classes.model, classes.train[0])
    delta = slopes(classes.case, f @ one.weights, classes.train[1])
    expected = -delta * weight[:, None] / (2 * 0.01 * NUM_TRAIN)
    np.testing.assert_allclose(one.values, expected, rtol=1e-3, atol=1e-6)
    other = kt.RepresenterPoints(classes.model, shuffled, l2=0.01, verbose=0)
    order = np.argsort(other.train_ids)
    np.testing.assert_array_equal(other.train_ids[order], ids)
    np.testing.assert_allclose(
        other.values[order], one.values, rtol=1e-3, atol=1e-6
    )


def test_values_and_class_scores_are_of_what_is_there(classes):
    few = classes.points.among([1, 10**6])
    for compute in (
        lambda: few.values,
        lambda: few.class_scores(classes.test, verbose=0),
    ):
        with pytest.raises(ValueError, match=row("among-ids", "[1000000]")):
            compute()


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def test_the_users_model_is_left_as_it_was(classes):
    before = state(classes.model)
    for method in ("l2", "lje"):
        points = kt.RepresenterPoints(
            classes.model, classes.train, method=method, verbose=0
        )
        points.influence(classes.test, verbose=0)
    classes.points.retuned_model.predict(classes.test[0], verbose=0)
    for old, new in zip(before, state(classes.model), strict=True):
        np.testing.assert_array_equal(old, new)
    layers = classes.model._flatten_layers()
    assert all("call" not in vars(layer) for layer in layers)


def test_the_sweep_reports_each_l2_as_its_points_do(classes):
    sweep = kt.sweep_l2(classes.model, classes.train, (0.01, 0.1), verbose=0)
    assert sweep.l2 == (0.1, 0.01)
    own = classes.points.faithfulness(verbose=0)
    assert sweep.rows[1].correlation == pytest.approx(own.correlation, rel=1e-4)
    assert (
        sweep.best()
        == max(
            zip(sweep.l2, sweep.rows, strict=True),
            key=lambda p: p[1].correlation,
        )[0]
    )
    assert str(sweep).count("correlation") == 2
    assert list(sweep.to_dataframe().index) == [0.1, 0.01]


def test_no_stationary_point_is_a_warning_with_the_remedy(classes, monkeypatch):
    monkeypatch.setattr(retune_module, "_STEPS", 1)
    monkeypatch.setattr(retune_module, "_NEWTON_STEPS", 1)
    points = kt.RepresenterPoints(
        classes.model, classes.train, l2=1e-4, verbose=0
    )
    with pytest.warns(UserWarning, match="larger `l2`"):
        points.self_influence()


@pytest.mark.parametrize("l2", [0, -1.0, float("nan"), "1", True])
def test_l2_must_be_above_zero(classes, l2):
    with pytest.raises(ValueError, match=row("l2", "`l2`")):
        kt.RepresenterPoints(classes.model, classes.train, l2=l2, verbose=0)
    with pytest.raises(ValueError, match=row("l2", "`l2`")):
        kt.sweep_l2(classes.model, classes.train, [0.1, l2], verbose=0)


def refused(model, train, message, **options):
    if not model.compiled:
        model.compile(loss=SPARSE(from_logits=True))
    with pytest.raises(ValueError, match=message):
        kt.RepresenterPoints(model, train, verbose=0, **options)


def test_a_model_that_ends_otherwise_is_refused(classes):
    train = classes.train
    body = [keras.Input((4,)), keras.layers.Dense(3, name="last")]
    norm = keras.Sequential([*body, keras.layers.LayerNormalization()])
    refused(
        norm,
        train,
        row("nonlinear-layer", "Layer 'last' makes no logits...`layer=`"),
    )
    square = keras.Sequential([*body, keras.layers.Lambda(lambda t: t**2)])
    refused(square, train, row("nonlinear-layer", "'last' makes no logits"))
    refused(
        classes.model,
        train,
        row("nonlinear-layer", "'body' makes no logits"),
        layer="body",
    )
    dropout = classes.model.layers[1]
    refused(classes.model, train, "Received 'dropout", layer=dropout)
    refused(
        classes.model,
        train,
        row("unknown-layer", "fits no layer"),
        layer="nowhere",
    )


def test_a_model_without_a_dense_layer_is_refused(classes):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Softmax()])
    refused(model, classes.train, row("no-dense", "kt.TracIn"))


def test_a_model_of_several_outputs_is_refused(classes):
    inputs = keras.Input((4,))
    first, second = (keras.layers.Dense(3)(inputs) for _ in range(2))
    model = keras.Model(inputs, [first, second], name="pair")
    x, y = classes.train
    refused(model, (x, (y, y)), row("several-outputs", "'pair' with 2"))


def test_a_hessian_that_is_not_positive_is_refused(classes):
    def concave(y, y_pred):
        return -tf.reduce_sum(y_pred**2, axis=-1)

    points = kt.RepresenterPoints(
        classes.model,
        classes.train,
        l2=1e-3,
        loss=concave,
        method="lje",
        verbose=0,
    )
    with pytest.raises(ValueError, match=row("lje-hessian", "l2=0.001")):
        points.influence(classes.test, verbose=0)


@pytest.mark.parametrize("target", [3, -1, "best", True, 1.5])
def test_a_target_out_of_range_is_refused(classes, target):
    with pytest.raises(ValueError, match=row("target", " 0 to 2")):
        classes.points.influence(classes.test, target=target, verbose=0)


def test_a_label_out_of_range_is_named_by_its_id(classes):
    x, y = classes.test
    y = np.where(np.arange(NUM_TEST) == 4, 7, y)
    with pytest.raises(
        ValueError, match=row("target-labels", "[7] for ... ids [4]")
    ):
        classes.points.top_k((x, y), 2, verbose=0)


def rounded(y, y_pred):
    """A loss whose only path to the prediction has no gradient."""
    return tf.reduce_mean(tf.abs(tf.round(y_pred)), axis=-1)


def by_numpy(y, y_pred):
    """A loss that leaves TensorFlow."""
    return tf.constant(y_pred.numpy().sum(axis=-1))


def reduced(y, y_pred):
    """A loss that has summed the batch already."""
    return tf.reduce_mean(y_pred)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (rounded, "no gradient .*`loss=`"),
        (by_numpy, "cannot be differentiated.*`loss=`"),
        (reduced, row("reduced-loss", "`loss=`")),
    ],
)
def test_a_loss_without_a_gradient_is_refused(classes, loss, message):
    refused(classes.model, classes.train, message, loss=loss)


def test_a_loss_in_float32_is_served(classes):
    def loss(y, y_pred):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.cast(y, tf.int32), y_pred + tf.zeros([], tf.float32)
        )

    points = kt.RepresenterPoints(
        classes.model, classes.train, l2=0.01, loss=loss, verbose=0
    )
    np.testing.assert_allclose(
        points.values, classes.points.values, rtol=1e-2, atol=1e-3
    )


def test_a_nan_is_named_by_its_id(classes):
    x = classes.train[0].copy()
    x[11] = np.nan
    points = kt.RepresenterPoints(
        classes.model, (x, classes.train[1]), verbose=0
    )
    with pytest.raises(
        ValueError, match=row("nan-representations", "ids [11] are NaN")
    ):
        points.top_k(classes.test, 2, verbose=0)


def test_other_arguments_are_checked(classes):
    refused(classes.model, classes.train, "'l2' or 'lje'", method="l1")
    refused(
        classes.model,
        classes.train,
        row("lje-size", "`memory_limit`"),
        method="lje",
        memory_limit=1000,
    )
    with pytest.raises(ValueError, match="at least one"):
        kt.sweep_l2(classes.model, classes.train, [], verbose=0)


def test_training_examples_are_read_and_retuned_on_at_the_first_call(classes):
    read = []

    def count(x, y):
        read.append(len(x))
        return x, y

    x, y = classes.train
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = data.map(
        lambda *e: tf.py_function(count, e, [e[0].dtype, e[1].dtype])
    )
    data = data.map(
        lambda x, y: (tf.ensure_shape(x, [None, 4]), tf.ensure_shape(y, [None]))
    )
    points = kt.RepresenterPoints(classes.model, data, l2=0.01, verbose=0)
    looked_at = sum(read)
    scores = points.influence(classes.test, verbose=0).scores
    assert sum(read) >= looked_at + NUM_TRAIN
    looked_at = sum(read)
    points.self_influence(verbose=0)
    points.top_k(classes.test, 3, verbose=0)
    assert sum(read) == looked_at
    expected = classes.points.influence(classes.test, verbose=0).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)
