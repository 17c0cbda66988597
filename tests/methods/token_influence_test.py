"""Scores by token: their sums, and the shares of single positions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_tracin as kt
from tests.error_rows import row
from tests.gradients.oracle import precision

COUNT, TOKENS, WORDS, WIDTH, CLASSES = 7, 5, 9, 4, 3

pytestmark = pytest.mark.filterwarnings("ignore:The model has not converged")


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(WORDS, size=(count, TOKENS)).astype("int32"),
        rng.integers(CLASSES, size=count),
    )


TRAIN, TEST = texts(COUNT), texts(3, seed=1)


def recorded(model, data, directory, epochs=2):
    model.fit(
        *data,
        epochs=epochs,
        batch_size=4,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(directory)],
    )
    return kt.TrainingRun(directory)


def pooled():
    """Each token is looked up and goes through a layer; then all are pooled."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((TOKENS,), dtype="int32"),
            layers.Embedding(WORDS, WIDTH, name="table"),
            layers.Dense(WIDTH, activation="tanh", name="each"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


class Tied(layers.Layer):
    """A causal model whose output projection is its embedding."""

    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(WORDS, WIDTH)
        self.attention = layers.MultiHeadAttention(2, 2)
        self.norm = layers.LayerNormalization()

    def call(self, ids):
        hidden = self.table(ids)
        attended = self.attention(hidden, hidden, use_causal_mask=True)
        hidden = self.norm(hidden + attended)
        return ops.matmul(hidden, ops.transpose(self.table.embeddings))


def language_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((TOKENS,), dtype="int32")
    model = keras.Model(inputs, Tied()(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def continued(data):
    """Texts, and the next token of each as its label."""
    x, _ = data
    return x, np.roll(x, -1, axis=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A pooled model, trained, and its run."""
    model = pooled()
    return model, recorded(model, TRAIN, tmp_path_factory.mktemp("pooled"))


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A language model, trained, its run, and what it was trained on."""
    model, data = language_model(), continued(TRAIN)
    run = recorded(model, data, tmp_path_factory.mktemp("language"))
    return model, run, data


@pytest.fixture(scope="module")
def tracin(speaker):
    """TracIn of the language model."""
    model, run, data = speaker
    return kt.TracIn(model, data, run)


METHODS = {
    "TracIn": lambda model, run, data: kt.TracIn(model, data, run),
    "optimizer-aware": lambda model, run, data: kt.TracIn(
        model, data, run, optimizer_aware=True
    ),
    "EK-FAC": lambda model, run, data: kt.InfluenceFunctions(
        model, data, damping=0.1, curvature="ekfac"
    ),
    "of equal lengths": lambda model, run, data: kt.InfluenceFunctions(
        model, data, damping=0.1, curvature="ekfac", relative="loss"
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["pooled", "language model"])
def test_tokens_and_rest_add_up_to_the_scores(method, kind, request):
    if kind == "language model":
        model, run, data = request.getfixturevalue("speaker")
        test = continued(TEST)
    else:
        model, run = request.getfixturevalue("classifier")
        data, test = TRAIN, TEST
    scored = METHODS[method](model, run, data)
    expected = scored.influence(test, verbose=0)
    tokens = scored.token_influence(test, verbose=0)
    assert tokens.scores.shape == (3, COUNT, TOKENS)
    total = tokens.attribution
    np.testing.assert_allclose(total.scores, expected.scores, rtol=1e-9)
    np.testing.assert_array_equal(total.train_ids, expected.train_ids)
    np.testing.assert_array_equal(total.query_ids, expected.query_ids)
    assert np.abs(tokens.scores).min() > 0
    assert 0 < tokens.rest_share < 0.9


def test_a_token_has_the_share_of_the_weights_applied_to_it(classifier):
    """Against a twin whose layers have weights of their own at each token."""
    model, run = classifier
    run = run[-1:]
    table, kernel, bias, head, offset = (
        tf.constant(v.numpy()) for v in model.trainable_variables
    )

    def gradients(x, y):
        """By the weights at each token, and by those of the head."""
        tables = tf.repeat(table[np.newaxis], TOKENS, 0)
        kernels = tf.repeat(kernel[np.newaxis], TOKENS, 0)
        biases = tf.repeat(bias[np.newaxis], TOKENS, 0)
        with tf.GradientTape() as tape:
            tape.watch([tables, kernels, biases, head, offset])
            hidden = [
                tf.tanh(
                    tf.linalg.matvec(
                        kernels[t], tables[t, x[t]], transpose_a=True
                    )
                    + biases[t]
                )
                for t in range(TOKENS)
            ]
            mean = tf.add_n(hidden) / TOKENS
            logits = tf.linalg.matvec(head, mean, transpose_a=True) + offset
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        sources = [tables, kernels, biases, head, offset]
        *placed, w, b = (
            tf.convert_to_tensor(g).numpy()
            for g in tape.gradient(loss, sources)
        )
        placed = [g.reshape(TOKENS, -1) for g in placed]
        return np.concatenate(placed, 1), np.concatenate([w.ravel(), b])

    rate = run.learning_rates[0]
    scored = kt.TracIn(model, TRAIN, run)
    tokens = scored.token_influence(TEST, verbose=0)
    trained = [gradients(x, y) for x, y in zip(*TRAIN, strict=True)]
    for query, (x, y) in enumerate(zip(*TEST, strict=True)):
        placed, rest = gradients(x, y)
        for example, (own, own_rest) in enumerate(trained):
            np.testing.assert_allclose(
                tokens.scores[query, example],
                rate * own @ placed.sum(axis=0),
                atol=1e-7,
            )
            np.testing.assert_allclose(
                tokens.rest[query, example], rate * own_rest @ rest, atol=1e-7
            )


def test_adapters_of_attention_have_shares_of_tokens(tmp_path):
    model = language_model()
    (tied,) = [layer for layer in model.layers if isinstance(layer, Tied)]
    tied.trainable = False
    for layer in (tied.attention.query_dense, tied.attention.value_dense):
        layer.trainable = True
        layer.enable_lora(1)
        layer.bias.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    data, test = map(continued, (TRAIN, TEST))
    scored = kt.TracIn(model, data, recorded(model, data, tmp_path))
    expected = scored.influence(test, verbose=0).scores
    tokens = scored.token_influence(test, verbose=0)
    np.testing.assert_allclose(tokens.attribution.scores, expected, rtol=1e-9)
    assert np.abs(tokens.scores).max() > 0
    np.testing.assert_array_equal(tokens.rest, 0)


def test_padding_has_no_share_in_both_directions_of_a_recurrence(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((TOKENS,), dtype="int32"),
            layers.Embedding(WORDS, WIDTH, mask_zero=True),
            layers.Bidirectional(layers.LSTM(3)),
            layers.Dense(CLASSES),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    x = np.array([[3, 1, 4, 0, 0], [5, 2, 0, 0, 0]], "int32")
    data = x, np.array([0, 1])
    scored = kt.TracIn(model, data, recorded(model, data, tmp_path))
    tokens = scored.token_influence(data, verbose=0)
    np.testing.assert_array_equal(tokens.scores[:, x == 0], 0)
    assert np.abs(tokens.scores[:, x > 0]).min() > 0


def test_training_examples_come_in_the_order_asked_for(classifier):
    model, run = classifier
    scored = kt.TracIn(model, TRAIN, run)
    everything = scored.token_influence(TEST, verbose=0)
    some = scored.token_influence(TEST, train=[5, 0, 2], verbose=0)
    np.testing.assert_array_equal(some.train_ids, [5, 0, 2])
    np.testing.assert_allclose(some.scores, everything.scores[:, [5, 0, 2]])
    np.testing.assert_allclose(some.rest, everything.rest[:, [5, 0, 2]])


def test_results_are_saved_and_shown(tmp_path):
    rng = np.random.default_rng(0)
    tokens = kt.TokenInfluence(
        rng.normal(size=(2, 3, 4)),
        rng.normal(size=(2, 3)),
        np.array([7, 8]),
        np.array(["a", "b", "c"]),
    )
    tokens.save(tmp_path / "tokens.npz")
    loaded = kt.TokenInfluence.load(tmp_path / "tokens.npz")
    np.testing.assert_array_equal(loaded.scores, tokens.scores)
    np.testing.assert_array_equal(loaded.rest, tokens.rest)
    table = tokens.to_dataframe()
    assert table.loc[(8, "b", 2), "score"] == tokens.scores[1, 1, 2]
    assert table.loc[(8, "b", -1), "score"] == tokens.rest[1, 1]
    assert "2 queries to 3 training examples of 4 tokens" in repr(tokens)
    with pytest.raises(ValueError, match="that without tokens"):
        kt.TokenInfluence(
            tokens.scores, tokens.rest[:1], tokens.query_ids, tokens.train_ids
        )


def two_sided(encoder, decoder, names=("encoder_ids", "decoder_ids")):
    """A model of two sequences, and data for it."""
    keras.utils.set_random_seed(0)
    inputs = {
        name: keras.Input((length,), dtype="int32", name=name)
        for name, length in zip(names, (encoder, decoder), strict=True)
    }
    parts = [
        layers.GlobalAveragePooling1D()(layers.Embedding(WORDS, WIDTH)(x))
        for x in inputs.values()
    ]
    model = keras.Model(
        inputs, layers.Dense(CLASSES)(ops.concatenate(parts, axis=-1))
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    rng = np.random.default_rng(0)
    x = {
        name: rng.integers(WORDS, size=(COUNT, value.shape[1])).astype("int32")
        for name, value in inputs.items()
    }
    return model, (x, TRAIN[1])


def test_one_side_of_an_encoder_and_a_decoder_is_chosen(tmp_path):
    model, data = two_sided(6, 4)
    scored = kt.TracIn(model, data, recorded(model, data, tmp_path))
    expected = scored.influence(data, verbose=0).scores
    for side, length in (("encoder", 6), ("decoder", 4)):
        tokens = scored.token_influence(data, sequence=side, verbose=0)
        assert tokens.scores.shape == (COUNT, COUNT, length)
        np.testing.assert_allclose(tokens.attribution.scores, expected)
    with pytest.raises(
        ValueError, match=row("token-sequence", "sequence=None")
    ):
        scored.token_influence(data, verbose=0)
    with pytest.raises(ValueError, match=row("token-word", "'left'")):
        scored.token_influence(data, sequence="left", verbose=0)


@pytest.mark.parametrize("side", [None, "encoder"])
def test_sides_of_one_length_cannot_be_told_apart(side, tmp_path):
    model, data = two_sided(4, 4)
    scored = kt.TracIn(model, data, recorded(model, data, tmp_path))
    with pytest.raises(
        ValueError, match=row("token-sequence", "'decoder_ids': 4")
    ):
        scored.token_influence(data, sequence=side, verbose=0)


def test_two_texts_of_one_length_are_not_added_up(tmp_path):
    model, data = two_sided(4, 4, ("premise", "hypothesis"))
    scored = kt.TracIn(model, data, recorded(model, data, tmp_path))
    with pytest.raises(ValueError, match=row("token-sequence", "'premise': 4")):
        scored.token_influence(data, verbose=0)


def test_layers_that_froze_in_between_count_as_in_the_scores(tmp_path):
    model = pooled()
    recorder = kt.TracInCheckpoint(tmp_path)
    model.fit(*TRAIN, epochs=1, verbose=0, callbacks=[recorder])
    model.get_layer("each").trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    fit = {"epochs": 2, "initial_epoch": 1, "verbose": 0}
    model.fit(*TRAIN, **fit, callbacks=[recorder])
    run = kt.TrainingRun(tmp_path)
    scored = kt.TracIn(model, TRAIN, run)
    expected = scored.influence(TEST, verbose=0).scores
    tokens = scored.token_influence(TEST, verbose=0)
    np.testing.assert_allclose(tokens.attribution.scores, expected, rtol=1e-9)
    inverse = kt.InfluenceFunctions(
        model, TRAIN, run=run, damping=0.1, curvature="ekfac"
    )
    plain = inverse.influence(TEST, verbose=0).scores
    tokens = inverse.token_influence(TEST, verbose=0)
    np.testing.assert_allclose(tokens.attribution.scores, plain, rtol=1e-9)
    # At a single checkpoint, unit lengths follow from the plain scores.
    last = kt.TracIn(model, TRAIN, run[-1:])
    assert last.engine.shares is not None
    own = last.self_influence(verbose=0).scores / run.learning_rates[-1]
    unit = kt.TracIn(model, TRAIN, run[-1:], normalize="train")
    np.testing.assert_allclose(
        unit.influence(TEST, verbose=0).scores,
        last.influence(TEST, verbose=0).scores / np.sqrt(own),
        rtol=1e-6,
    )


def plain_gradients(model, x, y, weight=None):
    """One example's gradient by all trained variables, by a plain tape."""
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            y, model(x[np.newaxis])[0]
        )
        weight = np.ones(losses.shape) if weight is None else weight
        loss = tf.reduce_sum(losses * weight) / tf.size(losses, tf.float64)
    values = [v.value for v in model.trainable_variables]
    dense = map(tf.convert_to_tensor, tape.gradient(loss, values))
    return np.concatenate([np.ravel(gradient) for gradient in dense])


def test_a_contrast_of_some_words_is_that_of_plain_tapes(speaker):
    model, run, data = speaker
    run = run[-1:]
    x, y = continued(TEST)
    other = (y + 1) % WORDS
    weight = np.zeros(y.shape)
    weight[:, 3:] = [1.0, 0.5]
    scored = kt.TracIn(model, data, run)
    scores = scored.influence(
        (x, y, weight), contrast=(x, other, weight), verbose=0
    ).scores
    rate = run.learning_rates[0]
    trained = [
        plain_gradients(model, *pair) for pair in zip(*data, strict=True)
    ]
    for row_of, *query in zip(scores, x, y, other, weight, strict=True):
        tokens, label, instead, w = query
        asked = plain_gradients(model, tokens, label, w)
        contrasted = plain_gradients(model, tokens, instead, w)
        expected = [rate * own @ (asked - contrasted) for own in trained]
        np.testing.assert_allclose(row_of, expected, atol=1e-9)


def test_an_adapter_has_the_shares_of_its_twin_at_each_token(tmp_path):
    model = pooled()
    for name in ("table", "head"):
        model.get_layer(name).trainable = False
    layer = model.get_layer("each")
    layer.enable_lora(2)
    layer.bias.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    run = recorded(model, TRAIN, tmp_path, epochs=1)
    table, (head, offset) = model.layers[0], model.layers[-1].weights
    table, kernel = table.embeddings.value, layer._kernel.value

    def gradients(x, y):
        """By the adapters' weights at each token, `[tokens, ...]`."""
        a, b = (
            tf.repeat(tf.cast(v.value, kernel.dtype)[np.newaxis], TOKENS, 0)
            for v in (layer.lora_kernel_a, layer.lora_kernel_b)
        )
        bias = tf.cast(layer.bias.value, kernel.dtype)
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            hidden = [
                tf.tanh(
                    tf.linalg.matvec(
                        kernel + layer.lora_alpha / 2 * a[t] @ b[t],
                        table[x[t]],
                        transpose_a=True,
                    )
                    + bias
                )
                for t in range(TOKENS)
            ]
            mean = tf.add_n(hidden) / TOKENS
            logits = tf.linalg.matvec(head.value, mean, transpose_a=True)
            value = tf.nn.sparse_softmax_cross_entropy_with_logits(
                y, logits + offset.value
            )
        placed = [g.numpy() for g in tape.gradient(value, [a, b])]
        return np.concatenate([g.reshape(TOKENS, -1) for g in placed], 1)

    tokens = kt.TracIn(model, TRAIN, run).token_influence(TEST, verbose=0)
    trained = [gradients(*pair) for pair in zip(*TRAIN, strict=True)]
    rate = run.learning_rates[0]
    for row_of, *pair in zip(tokens.scores, *TEST, strict=True):
        query = gradients(*pair).sum(axis=0)
        expected = [rate * own @ query for own in trained]
        np.testing.assert_allclose(row_of, expected, atol=1e-8)
    np.testing.assert_array_equal(tokens.rest, 0)


ASKED = np.zeros((3, TOKENS), "float32")
ASKED[:, 3:] = 1


@pytest.mark.parametrize("weighted", [False, True])
def test_tokens_that_are_asked_about_are_weights(weighted, tracin):
    test = continued(TEST)
    asked, weights = test, ASKED
    if weighted:
        given = np.random.default_rng(0).uniform(0.5, 2, ASKED.shape)
        asked, weights = (*test, given), ASKED * given
    expected = tracin.influence((*test, weights), verbose=0).scores
    found = tracin.influence(asked, query_tokens=ASKED, verbose=0).scores
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = tracin.influence(asked, query_tokens=ASKED[0] > 0, verbose=0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    tokens = tracin.token_influence(asked, query_tokens=ASKED, verbose=0)
    np.testing.assert_allclose(tokens.attribution.scores, expected, rtol=1e-5)
    top = tracin.top_k(asked, 1, query_tokens=ASKED, verbose=0)
    np.testing.assert_array_equal(
        top.proponents.ids[:, 0], expected.argmax(axis=1)
    )
    # The members of an ensemble get the rows of their block.
    ensemble = kt.Ensemble([tracin], memory_limit=400)
    found = ensemble.influence(asked, query_tokens=ASKED, verbose=0).scores
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_contrasts_take_data_in_another_order_each_time(classifier):
    model, run = classifier
    other = TEST[0], (TEST[1] + 1) % CLASSES
    given = {"contrast": other, "verbose": 0}
    plain = kt.TracIn(model, TRAIN, run)
    expected = plain.token_influence(TEST, **given)
    shuffled = kt.with_ids(TRAIN).shuffle(COUNT, seed=3).batch(4)
    found = kt.TracIn(model, shuffled, run).token_influence(TEST, **given)
    order = np.argsort(found.train_ids)
    np.testing.assert_array_equal(found.train_ids[order], expected.train_ids)
    np.testing.assert_allclose(
        found.scores[:, order], expected.scores, rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("normalize", [None, "both"])
def test_contrasts_have_shares_of_tokens(normalize, speaker):
    model, run, data = speaker
    test = continued(TEST)
    other = test[0], (test[1] + 1) % WORDS
    tracin = kt.TracIn(model, data, run, normalize=normalize)
    given = {"contrast": other, "query_tokens": ASKED, "verbose": 0}
    expected = tracin.influence(test, **given).scores
    tokens = tracin.token_influence(test, train=[4, 1], **given)
    np.testing.assert_allclose(
        tokens.attribution.scores, expected[:, [4, 1]], rtol=1e-6
    )
    plain = tracin.influence(test, query_tokens=ASKED, verbose=0).scores
    assert np.abs(plain - expected).max() > 0.1 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["yes"], row("query-tokens")),
        (-ASKED, row("query-tokens")),
        (
            ASKED[:2],
            row("query-tokens-fit", "(2, 5)", "3 queries or more"),
        ),
        (np.ones((4, 5)), row("query-tokens-fit", "(4, 5)", "3 queries")),
        (
            np.ones(4),
            row("query-tokens-fit", "(4,)", "labels of shape (1, 5)"),
        ),
        (ASKED * [[1], [0], [1]], row("query-empty", "query with id 1")),
    ],
)
def test_tokens_that_cannot_be_asked_about_are_refused(tokens, message, tracin):
    with pytest.raises(ValueError, match=message):
        tracin.influence(continued(TEST), query_tokens=tokens, verbose=0)


def test_representer_points_have_no_tokens():
    model = pooled()
    points = kt.RepresenterPoints(model, TRAIN, l2=0.1, verbose=0)
    expected = row("query-tokens-representer")
    with pytest.raises(ValueError, match=expected):
        points.influence(TEST, query_tokens=[1], verbose=0)


def test_what_has_no_tokens_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(CLASSES)])
    model.compile("sgd", "mse")
    data = np.ones((4, 3)), np.ones((4, CLASSES))
    scored = kt.TracIn(model, data, recorded(model, data, tmp_path))
    with pytest.raises(ValueError, match=row("token-input", "these: {}")):
        scored.token_influence(data, verbose=0)


def test_sketches_and_too_many_scores_are_refused(classifier):
    model, run = classifier
    sketched = kt.TracIn(model, TRAIN, run, projection=kt.TensorSketch(16))
    with pytest.raises(ValueError, match=row("token-sketches", "projection=")):
        sketched.token_influence(TEST, verbose=0)
    small = kt.TracIn(model, TRAIN, run, memory_limit=500)
    with pytest.raises(ValueError, match=row("token-size", "3 queries × 7")):
        small.token_influence(TEST, verbose=0)
