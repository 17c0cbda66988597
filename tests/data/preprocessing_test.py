"""Data as `fit` sees them, for models whose `fit` preprocesses."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data.preprocessing import open_for_model
from tests.error_rows import row

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is an extra: pip install keras-tracin[hub]"
)
hub = keras_hub.models

RATE = 0.1
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["the", "cat", "dog", "ran", "sat", "good", "bad", "film"]
SENTENCES = [
    "the cat sat",
    "the dog ran",
    "good film",
    "bad film the dog sat",
    "the good dog ran",
    "a bad cat",
]


LINES = SENTENCES[:4]


class Kept(keras.callbacks.Callback):
    """The weights at each epoch's end."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append([v.numpy() for v in self.model.weights])


class Small(hub.Task):
    """A task whose backbone is a single layer."""

    def __init__(self, preprocessor):
        images = keras.Input((2, 2, 1))
        outputs = keras.layers.Dense(3)(keras.layers.Flatten()(images))
        super().__init__(images, outputs, compile=False)
        self.preprocessor = preprocessor


def scaling(scale=1 / 255):
    return hub.ImageClassifierPreprocessor(
        keras_hub.layers.ImageConverter(scale=scale)
    )


def compiled(model):
    model.compile(
        keras.optimizers.SGD(RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def small():
    keras.utils.set_random_seed(0)
    return compiled(Small(scaling()))


def image_classifier():
    keras.utils.set_random_seed(0)
    backbone = hub.ViTBackbone(
        image_shape=(4, 4, 3),
        patch_size=2,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        mlp_dim=4,
        dropout_rate=0.0,
        attention_dropout=0.0,
    )
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(4, 4), scale=1 / 255, offset=-0.5
    )
    preprocessor = hub.ViTImageClassifierPreprocessor(converter)
    return compiled(
        hub.ViTImageClassifier(backbone, 3, preprocessor=preprocessor)
    )


def text_backbone(kind):
    keras.utils.set_random_seed(0)
    return kind(
        vocabulary_size=len(WORDS),
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        intermediate_dim=4,
        max_sequence_length=8,
        dropout=0.0,
    )


def text_classifier():
    tokenizer = hub.BertTokenizer(vocabulary=WORDS)
    return compiled(
        hub.BertTextClassifier(
            text_backbone(hub.BertBackbone),
            preprocessor=hub.BertTextClassifierPreprocessor(
                tokenizer, sequence_length=8
            ),
            num_classes=2,
            dropout=0.0,
        )
    )


def masked_words():
    steps = hub.BertMaskedLMPreprocessor(
        Words(vocabulary=WORDS), sequence_length=8
    )
    backbone = text_backbone(hub.BertBackbone)
    return compiled(hub.BertMaskedLM(backbone, preprocessor=steps))


class Words(hub.BertTokenizer):
    """Whole words, since pieces and byte pairs take seconds to trace."""

    def tokenize(self, inputs):
        return tf.ragged.map_flat_values(
            lambda words: tf.argmax(
                words[:, None] == WORDS, axis=1, output_type="int32"
            ),
            tf.strings.split(inputs),
        )

    @property
    def start_token_id(self):
        return self.cls_token_id

    @property
    def end_token_id(self):
        return self.sep_token_id


def next_words():
    tokenizer = Words(vocabulary=WORDS)
    return hub.GPT2CausalLMPreprocessor(tokenizer, sequence_length=6)


def language_model():
    backbone = text_backbone(hub.GPT2Backbone)
    return compiled(hub.GPT2CausalLM(backbone, preprocessor=next_words()))


class Bigrams(hub.Task):
    """A language model that sees one word and its place: little to trace."""

    def __init__(self):
        ids = {
            name: keras.Input((6,), dtype="int32", name=name)
            for name in ("token_ids", "padding_mask")
        }
        words = keras.layers.Embedding(len(WORDS), 4)(ids["token_ids"])
        words += keras_hub.layers.PositionEmbedding(6)(words)
        outputs = keras.layers.Dense(len(WORDS))(words)
        super().__init__(ids, outputs, compile=False)
        self.preprocessor = next_words()


def images(count=8, size=4, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, size, size, channels)
    pictures = rng.integers(0, 256, shape).astype("uint8")
    return pictures, rng.integers(0, 3, count)


def by_hand(model, data):
    """`(x, y, sample_weight)` that the preprocessor makes of all the data."""
    parts = data if isinstance(data, tuple) else (data,)
    return tf.nest.map_structure(
        lambda leaf: None if leaf is None else np.asarray(leaf),
        keras.utils.unpack_x_y_sample_weight(model.preprocessor(*parts)),
    )


def loss_of(model, x, y, weight):
    """Keras's loss of a batch of one."""
    losses = keras.losses.sparse_categorical_crossentropy(
        y, model(x, training=False), from_logits=True
    )
    if weight is not None:
        losses *= tf.cast(weight, losses.dtype)
    return tf.reduce_mean(losses)


def gradients(model, data):
    """`[n, p]`, a tape for each preprocessed example."""
    x, y, weight = data
    rows = []
    values = [v.value for v in model.trainable_variables]
    for i in range(len(y)):
        one = tf.nest.map_structure(lambda leaf, i=i: leaf[i : i + 1], (x, y))
        own = None if weight is None else weight[i : i + 1]
        with tf.GradientTape() as tape:
            value = loss_of(model, *one, own)
        found = tape.gradient(value, values, unconnected_gradients="zero")
        rows.append(
            np.concatenate(
                [np.ravel(tf.convert_to_tensor(part)) for part in found]
            )
        )
    return np.stack(rows)


def expected(model, kept, train, test):
    """Scores from preprocessed data at the weights that were kept."""
    before = [v.numpy() for v in model.weights]
    scores = 0
    for weights in kept.weights:
        for variable, value in zip(model.weights, weights, strict=True):
            variable.assign(value)
        products = gradients(model, test) @ gradients(model, train).T
        scores = scores + RATE * products
    for variable, value in zip(model.weights, before, strict=True):
        variable.assign(value)
    return scores


def assert_close(scores, right):
    np.testing.assert_allclose(scores, right, 1e-4, 1e-5 * abs(right).max())


def plain(data):
    """The parts that are there."""
    return tuple(part for part in data if part is not None)


class Trained:
    """A model, its data as `fit` took them, and the scores to expect."""

    def __init__(self, model, train, test, directory):
        kept = Kept()
        self.model, self.train, self.test = model, train, test
        self.run = directory / "run"
        parts = train if isinstance(train, tuple) else (train,)
        recorder = kt.TracInCheckpoint(self.run)
        model.fit(
            *parts,
            batch_size=3,
            epochs=2,
            verbose=0,
            callbacks=[recorder, kept],
        )
        self.made = by_hand(model, train), by_hand(model, test)
        self.scores = expected(model, kept, *self.made)

    def influence(self, train, test):
        tracin = kt.TracIn(self.model, train, self.run)
        return tracin.influence(test, verbose=0).scores


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    train, test = images(), images(3, seed=1)
    return Trained(
        image_classifier(), train, test, tmp_path_factory.mktemp("images")
    )


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory):
    train = SENTENCES, np.array([0, 1, 0, 1, 0, 1])
    test = SENTENCES[1:3], np.array([1, 1])
    return Trained(
        text_classifier(), train, test, tmp_path_factory.mktemp("texts")
    )


@pytest.fixture(scope="module")
def of_lines(tmp_path_factory):
    return Trained(
        language_model(), LINES, LINES[1:3], tmp_path_factory.mktemp("lm")
    )


@pytest.fixture(scope="module")
def of_small(tmp_path_factory):
    train, test = images(9, 2, 1), images(3, 2, 1, seed=1)
    return Trained(small(), train, test, tmp_path_factory.mktemp("small"))


def test_images_are_scored_as_fit_scales_them(of_images):
    scores = of_images.influence(of_images.train, of_images.test)
    assert_close(scores, of_images.scores)


def test_texts_are_scored_as_fit_tokenises_them(of_texts):
    scores = of_texts.influence(of_texts.train, of_texts.test)
    assert_close(scores, of_texts.scores)


def test_texts_that_are_tokens_already_are_taken_as_they_are(of_texts):
    train = plain(of_texts.made[0])
    for form in (train, tf.data.Dataset.from_tensor_slices(train).batch(4)):
        examples = open_for_model(of_texts.model, form)
        assert "taken as preprocessed already" in examples.note
        batch = examples.first(6)
        tf.nest.map_structure(np.testing.assert_array_equal, batch.x, train[0])
        np.testing.assert_array_equal(batch.y, train[1])


def test_a_language_model_makes_its_labels_of_texts_alone(of_lines):
    scores = of_lines.influence(of_lines.train, of_lines.test)
    assert_close(scores, of_lines.scores)


@pytest.mark.parametrize(
    "form",
    [
        lambda texts: (texts,),
        np.array,
        lambda texts: tf.data.Dataset.from_tensor_slices(texts).batch(3),
        lambda texts: kt.with_ids((texts,)).batch(3),
    ],
)
def test_texts_alone_come_in_any_form_that_fit_takes(of_lines, form):
    batch = open_for_model(of_lines.model, form(LINES)).first(9)
    x, y, weight = of_lines.made[0]
    assert batch.ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(batch.x["token_ids"], x["token_ids"])
    np.testing.assert_array_equal(batch.y, y)
    np.testing.assert_array_equal(batch.sample_weight, weight)


def test_data_are_taken_as_they_are_without_a_preprocessor(of_small):
    model, preprocessor = of_small.model, of_small.model.preprocessor
    train, test = map(plain, of_small.made)
    model.preprocessor = None
    try:
        scores = of_small.influence(train, test)
    finally:
        model.preprocessor = preprocessor
    assert_close(scores, of_small.scores)


def test_ids_are_kept_through_preprocessing_and_shuffling(of_small):
    names = [f"picture-{i}" for i in range(9)]
    shuffled = kt.with_ids(of_small.train, names).shuffle(9, seed=1).batch(2)
    tracin = kt.TracIn(of_small.model, shuffled, of_small.run)
    result = tracin.influence(of_small.test, verbose=0)
    order = [names.index(one) for one in result.train_ids]
    assert order != sorted(order)
    assert_close(result.scores, of_small.scores[:, order])


def test_sample_weights_pass_the_preprocessor_by(of_small):
    weights = np.linspace(0.5, 2, 9)
    scores = of_small.influence((*of_small.train, weights), of_small.test)
    assert_close(scores, of_small.scores * weights)


def test_what_is_done_to_the_data_is_said_once(of_small, capsys):
    model = small()
    model.set_weights(of_small.model.get_weights())
    for _ in range(2):
        tracin = kt.TracIn(model, of_small.train, of_small.run)
        tracin.influence(of_small.test, verbose=0)
        assert capsys.readouterr().out == ""
    tracin.influence(of_small.test)
    tracin.self_influence()
    said = capsys.readouterr().out
    assert said.count("preprocessed by ImageClassifierPreprocessor") == 1
    assert "Small.fit" in said


def test_a_check_says_what_is_done_to_the_data(of_small):
    report = kt.check(
        of_small.model, of_small.train, of_small.run, of_small.test, verbose=0
    )
    notes = [note.message for note in report.notes]
    assert report.ok
    assert sum("as Small.fit does" in note for note in notes) == 2


@pytest.fixture
def both(of_small):
    """Calls a function with raw data, and with data scaled by hand."""

    def call(function):
        model = of_small.model
        raw = function(of_small.train, of_small.test)
        preprocessor, model.preprocessor = model.preprocessor, None
        try:
            return raw, function(*map(plain, of_small.made))
        finally:
            model.preprocessor = preprocessor

    return call


def test_representer_points_are_those_of_preprocessed_data(of_small, both):
    def scores(train, test):
        points = kt.RepresenterPoints(of_small.model, train, verbose=0)
        faithful = points.faithfulness(test, verbose=0)
        values = points.influence(test, verbose=0).scores
        return np.append(values, faithful.correlation)

    assert_close(*both(scores))


def test_influence_functions_and_trak_take_data_as_fit_does(of_small, both):
    def scores(train, test):
        influence = kt.InfluenceFunctions(of_small.model, train, damping=0.1)
        trak = kt.TRAK(
            of_small.model,
            train,
            of_small.run,
            projection=kt.GaussianProjection(dim=8),
        )
        return np.stack(
            [
                each.influence(test, verbose=0).scores
                for each in (influence, trak)
            ]
        )

    assert_close(*both(scores))


def test_an_index_takes_data_as_fit_does(of_small, both, tmp_path):
    places = iter("ab")

    def scores(train, test):
        method = kt.TracIn(of_small.model, train, of_small.run)
        place = tmp_path / next(places)
        index = kt.InfluenceIndex.build(
            method, place, projection=kt.GaussianProjection(dim=8)
        )
        index.append(kt.with_ids(test, [20, 21, 22]).batch(3))
        found = index.query(test, 3)
        return np.stack([found.proponents.scores, found.opponents.ids])

    assert_close(*both(scores))


def test_a_traced_training_sees_what_its_steps_see(of_small, both):
    start = of_small.model.get_weights()

    def scores(train, test):
        of_small.model.set_weights(start)
        return kt.trace_training(
            of_small.model, train, test, epochs=1, batch_size=4
        ).scores

    try:
        assert_close(*both(scores))
    finally:
        of_small.model.set_weights(start)


def test_a_training_on_texts_alone_is_traced():
    keras.utils.set_random_seed(0)
    model = compiled(Bigrams())
    trace = kt.trace_training(model, LINES, LINES[:2], epochs=1, batch_size=2)
    np.testing.assert_allclose(trace.scores.sum(axis=1), trace.loss_drop, 1e-6)
    assert (trace.loss_drop > 0).all()


def test_an_unrolled_training_replays_preprocessed_data(of_small, tmp_path):
    model = small()
    kt.record_training(
        model, of_small.train, directory=tmp_path, epochs=2, batch_size=4
    )
    method = kt.UnrolledInfluence(model, of_small.train, tmp_path)
    assert method.replay_error < 1e-4
    raw = method.influence(of_small.test, verbose=0).scores
    train, test = map(plain, of_small.made)
    model.preprocessor = None
    other = kt.UnrolledInfluence(model, train, tmp_path)
    assert_close(raw, other.influence(test, verbose=0).scores)


def test_trainings_again_are_given_raw_data_and_measured_as_fit_sees(of_small):
    seen = []

    def fit(rows):
        seen.append(rows[0].max())
        return of_small.model

    tracin = kt.TracIn(of_small.model, of_small.train, of_small.run)
    scores = tracin.influence(of_small.test, verbose=0)
    patch = kt.evaluation.tail_patch(
        scores, of_small.model, of_small.train, of_small.test, k=2
    )
    outcome = kt.evaluation.leave_one_out(
        scores, of_small.train, of_small.test, fit, count=2
    )
    assert seen[0] > 100
    assert (outcome.actual == 0).all()
    # A step on raw pixels, 255 times as large, would throw the losses about.
    assert 0 < abs(patch.gain).max() < 1


def test_a_preprocessor_that_draws_masks_is_refused(of_small):
    model = masked_words()
    with pytest.raises(
        ValueError, match=row("random-preprocessor", "fixed = list")
    ):
        kt.TracIn(model, SENTENCES, of_small.run)


def test_a_preprocessor_that_pads_to_the_longest_is_refused(of_small):
    model = small()
    model.preprocessor = lambda x: x - tf.reduce_max(x)
    with pytest.raises(
        ValueError, match=row("padding-preprocessor", "sequence_length")
    ):
        open_for_model(model, of_small.train)


def test_any_callable_is_a_preprocessor(of_small):
    model = small()
    model.preprocessor = lambda x: x / 255
    examples = open_for_model(model, of_small.train)
    np.testing.assert_allclose(examples.first(9).x, of_small.made[0][0], 1e-6)
    assert examples.size == 9


def test_labels_that_nobody_makes_are_missed(of_texts):
    with pytest.raises(
        ValueError, match=row("preprocessor-labels", "Pass (x, y)")
    ):
        open_for_model(of_texts.model, SENTENCES)


def test_data_that_neither_takes_is_refused(of_texts):
    numbers = np.ones([4, 3]), np.ones(4)
    with pytest.raises(
        ValueError, match=row("preprocessor-input", "`train`...token_ids")
    ):
        open_for_model(of_texts.model, numbers)


def test_texts_one_by_one_are_refused(of_lines):
    texts = tf.data.Dataset.from_tensor_slices(LINES)
    with pytest.raises(ValueError, match=re.escape("Call `.batch(...)`")):
        open_for_model(of_lines.model, texts)


def test_arrays_of_different_lengths_are_refused(of_small):
    x, y = of_small.train
    with pytest.raises(ValueError, match=row("unequal-lengths")):
        open_for_model(of_small.model, (x, y[:5]))


def test_too_many_arrays_are_refused(of_small):
    with pytest.raises(TypeError, match="a tuple of length 4"):
        open_for_model(of_small.model, (*of_small.train,) * 2)


def test_a_check_warns_of_a_fit_that_it_does_not_know():
    class Own(keras.Model):
        def fit(self, x, y):
            return super().fit(x / 255, y)

    images = keras.Input((4,))
    model = compiled(Own(images, keras.layers.Dense(3)(images)))
    data = np.ones([4, 4], "float32"), np.zeros(4, int)
    report = kt.check(model, data, verbose=0)
    assert any("its own `fit`" in one.message for one in report.warnings)


def test_streams_and_tables_are_preprocessed_as_arrays_are():
    x = np.arange(24, dtype="float32").reshape(6, 2, 2, 1)
    y = np.arange(6) % 3
    model = small()

    def batches():
        yield x[:4], y[:4]
        yield x[4:], y[4:]

    (read,) = open_for_model(model, batches).batches(6)
    (held,) = open_for_model(model, (x, y)).batches(6)
    np.testing.assert_allclose(read.x, held.x)
    np.testing.assert_allclose(held.x, x / 255, 1e-6)
    pandas = pytest.importorskip("pandas")
    labels = pandas.Series(y, index=[f"image {at}" for at in range(6)])
    (named,) = open_for_model(model, (x, labels)).batches(6)
    np.testing.assert_allclose(named.x, held.x)
    assert named.ids.tolist() == labels.index.tolist()
