"""TracIn of unit lengths and under an optimizer's metric, in combination."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from tests.error_rows import row
from tests.gradients.oracle import precision

COUNT, TOKENS, WORDS, WIDTH, CLASSES = 6, 3, 7, 4, 3


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(WORDS, size=(count, TOKENS)).astype("int32"),
        rng.integers(CLASSES, size=count),
    )


TRAIN, TEST, OTHERS = texts(COUNT, 0), texts(3, 1), texts(3, 2)


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((TOKENS,), dtype="int32"),
            layers.Embedding(WORDS, WIDTH),
            # Its kernel has the heads first.
            layers.EinsumDense("btd,ndh->btnh", (None, 2, 3), bias_axes="nh"),
            layers.Reshape((TOKENS, 6)),
            layers.LayerNormalization(),
            layers.Dense(WIDTH, "tanh"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model, directory = build(), tmp_path_factory.mktemp("run")
    callback = kt.TracInCheckpoint(directory)
    model.fit(*TRAIN, batch_size=2, epochs=2, callbacks=[callback], verbose=0)
    return model, kt.TrainingRun(directory)


def rows(model, x, y):
    """Gradients of single examples, `[n, p]`."""
    result = []
    for one, label in zip(x, y, strict=True):
        with tf.GradientTape() as tape:
            loss = model.loss(label[None], model(one[None], training=False))
        grads = tape.gradient(
            loss, [v.value for v in model.trainable_variables]
        )
        flat = [np.ravel(tf.convert_to_tensor(g)) for g in grads]
        result.append(np.concatenate(flat))
    return np.array(result)


def nearest_product(diagonal):
    """Rows × columns, of which the logarithms fit best."""
    logs = np.log(diagonal)
    by_row, by_column = logs.mean(1, keepdims=True), logs.mean(0, keepdims=True)
    return np.exp(by_row + by_column - logs.mean())


def metric(model, checkpoint, aware):
    """D at a checkpoint, `[p]`."""
    parts = []
    adam = model.optimizer
    scale = np.sqrt(1 - adam.beta_2**checkpoint.step)
    pairs = zip(adam._velocities, model.trainable_variables, strict=True)
    for second, variable in pairs:
        second = second.numpy().astype("float64")
        diagonal = scale / (np.sqrt(second) + adam.epsilon)
        has_sides = aware == "factored" and variable.name != "bias"
        if has_sides and variable.ndim == 2:
            diagonal = nearest_product(diagonal)
        elif has_sides and variable.ndim == 3:
            by_inputs = diagonal.transpose(1, 0, 2).reshape(WIDTH, 6)
            diagonal = nearest_product(by_inputs).reshape(WIDTH, 2, 3)
            diagonal = diagonal.transpose(1, 0, 2)
        parts.append(diagonal.ravel() if aware else np.ones(second.size))
    return np.concatenate(parts)


def by_definition(run, normalize, aware, contrast=None):
    """Scores, their scale, and those of examples for themselves."""
    scores, own, test_own = 0.0, 0.0, 0.0
    for checkpoint in run:
        model = build()
        model.optimizer.build(model.trainable_variables)
        model.load_weights(checkpoint.path)
        weights = metric(model, checkpoint, aware)
        train, test = rows(model, *TRAIN), rows(model, *TEST)
        if contrast is not None:
            test = test - rows(model, *contrast)
        products = (test * weights) @ train.T
        lengths = np.sqrt(train**2 @ weights)
        of_queries = np.sqrt(test**2 @ weights)[:, None]
        self_scores = lengths**2
        if normalize:
            products, self_scores = products / lengths, lengths
            if normalize == "both":
                products, of_queries = products / of_queries, 1 + 0 * of_queries
            lengths = np.ones_like(lengths)
        rate = checkpoint.learning_rate
        scores = scores + rate * products
        own = own + rate * self_scores
        test_own = test_own + rate * of_queries * lengths
    return scores, test_own, own


COMBINATIONS = [
    ("train", False),
    ("both", False),
    ("train", True),
    ("both", True),
    (None, "factored"),
    ("both", "factored"),
]


@pytest.mark.parametrize(("normalize", "aware"), COMBINATIONS)
def test_scores_are_those_of_the_definition(trained, normalize, aware):
    model, run = trained
    options = {"normalize": normalize, "optimizer_aware": aware}
    tracin = kt.TracIn(model, TRAIN, run, **options)
    expected, scale, own = by_definition(run, normalize, aware)
    tolerance = 1e-5 if aware else 1e-7  # D and rates are float32

    def close(scores, expected, scale):
        assert np.abs((scores - expected) / scale).max() < tolerance

    found = tracin.influence(TEST, verbose=0)
    close(found.scores, expected, scale)
    tokens = tracin.token_influence(TEST, verbose=0)
    close(tokens.attribution.scores, expected, scale)
    assert np.abs(tokens.scores).max() > 0
    summed = tracin.influence(TEST, aggregate=True, verbose=0).scores
    close(summed[0], expected.sum(0), scale.sum(0))
    if normalize == "both":
        with pytest.raises(NotImplementedError, match=row("normalize-self")):
            tracin.self_influence(verbose=0)
    else:
        found = tracin.self_influence(verbose=0).scores
        close(found, own, own)


@pytest.mark.parametrize(
    ("normalize", "aware"),
    [("both", False), (None, True), ("train", True), ("both", "factored")],
)
def test_with_a_projection_they_are_estimates_of_these(
    trained, normalize, aware
):
    model, run = trained
    options = {"normalize": normalize, "optimizer_aware": aware}
    tracin = kt.TracIn(
        model, TRAIN, run, projection=kt.TensorSketch(2**14), **options
    )
    expected, scale, own = by_definition(run, normalize, aware)
    found = tracin.influence(TEST, verbose=0).scores
    assert np.abs((found - expected) / scale).max() < 0.05
    summed = tracin.influence(TEST, aggregate=True, verbose=0).scores
    np.testing.assert_allclose(summed[0], found.sum(0), rtol=1e-5)
    if normalize != "both":
        found = tracin.self_influence(verbose=0).scores
        np.testing.assert_allclose(found, own, rtol=0.05)


@pytest.mark.parametrize("aware", [False, True])
def test_a_contrast_has_the_length_of_the_difference(trained, aware, tmp_path):
    model, run = trained
    tracin = kt.TracIn(
        model, TRAIN, run, normalize="both", optimizer_aware=aware
    )
    expected, scale, _ = by_definition(run, "both", aware, contrast=OTHERS)
    found = tracin.influence(
        TEST, contrast=OTHERS, directory=tmp_path, verbose=0
    )
    assert np.abs((found.scores - expected) / scale).max() < 1e-5
    again = tracin.influence(
        TEST, contrast=OTHERS, directory=tmp_path, verbose=0
    )
    np.testing.assert_array_equal(again.scores, found.scores)
    with pytest.raises(ValueError, match="parts of another call"):
        tracin.influence(TEST, contrast=TEST, directory=tmp_path, verbose=0)
    fewer = tuple(part[:2] for part in OTHERS)
    with pytest.raises(ValueError, match="3 queries, and 2 to contrast"):
        tracin.influence(TEST, contrast=fewer, verbose=0)
    with pytest.raises(ValueError, match=row("contrast-sum")):
        tracin.influence(TEST, contrast=OTHERS, aggregate=True, verbose=0)


def test_an_example_of_no_weight_has_no_score_and_spoils_none(trained):
    model, run = trained
    weights = np.ones(COUNT)
    weights[2] = 0
    data = (*TRAIN, weights)
    tracin = kt.TracIn(model, data, run, normalize="both")
    found = tracin.influence(TEST, verbose=0).scores
    expected, _, _ = by_definition(run, "both", False)
    expected[:, 2] = 0
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_other_options_are_refused(trained):
    model, run = trained
    with pytest.raises(ValueError, match=row("normalize", "'test'")):
        kt.TracIn(model, TRAIN, run, normalize="test")
    with pytest.raises(ValueError, match=row("optimizer-aware", "'exact'")):
        kt.TracIn(model, TRAIN, run, optimizer_aware="exact")


def test_an_index_refuses_gradients_of_unit_length(trained, tmp_path):
    model, run = trained
    tracin = kt.TracIn(model, TRAIN, run, normalize="train")
    with pytest.raises(ValueError, match=row("index-plain")):
        kt.InfluenceIndex.build(tracin, tmp_path / "index")
