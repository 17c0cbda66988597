"""Each row of docs/errors.md: what is refused, in which words, at what cost.

A refusal costs nothing: the model's weights, its optimizer and the files of
the run are as they were. `refused` holds every row to that.
"""

import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.storage.files import digest
from tests.error_rows import row, says
from tests.states import Centred, flip, last_weights, state

ROOT = Path(__file__).absolute().parents[1]
NUM_TRAIN, NUM_TEST = 24, 6
layers, ops = keras.layers, keras.ops


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, rng.integers(0, 3, count)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(NUM_TEST, 1)
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_model(*inside, loss=CROSSENTROPY, units=5):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units, activation="tanh", name="hidden"),
            *inside,
            layers.Dense(3, name="logits"),
        ]
    )
    if loss is not None:
        model.compile(keras.optimizers.SGD(0.1, momentum=0.5), loss)
    return model


def fit(model, directory, data=TRAIN, epochs=2, **options):
    callback = kt.TracInCheckpoint(directory, **options)
    model.fit(
        *data, batch_size=8, epochs=epochs, verbose=0, callbacks=[callback]
    )
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model and the directory of its run, which no test changes."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    return fit(make_model(), directory), directory


@pytest.fixture
def copied(trained, tmp_path):
    """The same model and a copy of its run to do damage to."""
    model, directory = trained
    return model, shutil.copytree(directory, tmp_path / "run")


@contextlib.contextmanager
def refused(model, directory, message, error=ValueError):
    """Expects an error whose message fits a pattern, and no other change."""
    before = state(model, directory)
    with pytest.raises(error, match=message):
        yield
    assert state(model, directory) == before
    assert not any("call" in vars(x) for x in model._flatten_layers())


def score(model, directory, train=TRAIN, test=TEST, **options):
    return kt.TracIn(model, train, directory, **options).influence(
        test, verbose=0
    )


def with_first(leaf, rows, value):
    """A copy of an array with something else in some rows."""
    copy = leaf.copy()
    copy[rows] = value
    return copy


def numbered(data, first=100):
    """A dataset of the same examples whose ids are far from positions."""
    ids = np.arange(first, first + len(data[0]))
    return kt.with_ids(data, ids).batch(8)


# --- The model and its loss


def test_a_model_without_a_loss(trained):
    model = make_model(loss=None)
    with refused(
        model,
        trained[1],
        row("uncompiled", "`model.compile(loss=", "pass `loss=`"),
    ):
        score(model, trained[1])


def test_a_loss_that_is_reduced_already(trained):
    def reduced(y_true, y_pred):
        return ops.mean(ops.square(y_pred - y_true))

    model, directory = trained
    with refused(
        model, directory, row("reduced-loss", "one value per example")
    ):
        score(model, directory, loss=reduced)


def test_losses_that_layers_add_from_activations(tmp_path):
    model = make_model(layers.ActivityRegularization(0.1, name="penalty"))
    fit(model, tmp_path)
    with refused(
        model,
        tmp_path,
        row("added-losses", "'penalty'...cannot be split...`loss=`"),
    ):
        score(model, tmp_path)


def test_a_layer_that_mixes_examples(tmp_path):
    model = fit(make_model(Centred(name="centred")), tmp_path)
    tracin = kt.TracIn(model, TRAIN, tmp_path)
    for score_with in (
        lambda: tracin.influence(TEST, verbose=0),
        lambda: tracin.top_k(TEST, 2, verbose=0),
        lambda: tracin.self_influence(verbose=0),
    ):
        with refused(
            model,
            tmp_path,
            row("mixing-layer", "centred' (Centred) mixes...take"),
        ):
            score_with()


def test_a_loss_that_mixes_examples(trained):
    def centred(y_true, y_pred):
        values = CROSSENTROPY.fn(y_true, y_pred, from_logits=True)
        return values - ops.mean(values)

    model, directory = trained
    with refused(model, directory, row("mixing-loss")):
        score(model, directory, loss=centred)


def test_a_recurrent_layer_that_is_stateful(tmp_path):
    def make(batch_size, stateful):
        model = keras.Sequential(
            [
                keras.Input(batch_shape=(batch_size, 4)),
                layers.Reshape((2, 2)),
                layers.SimpleRNN(3, stateful=stateful, unroll=True, name="rnn"),
                layers.Dense(3),
            ]
        )
        model.compile("sgd", CROSSENTROPY)
        return model

    model = fit(make(8, True), tmp_path, epochs=1)
    with refused(
        model, tmp_path, row("stateful", "rnn' (SimpleRNN) is...stateful=False")
    ):
        score(model, tmp_path)
    with refused(model, tmp_path, row("stateful", "rnn' (SimpleRNN)")):
        kt.RepresenterPoints(model, TRAIN, l2=0.1)
    scores = score(make(None, False), tmp_path).scores  # as the error says
    assert np.all(scores != 0)


def test_a_layer_in_float8(trained, tmp_path):
    model = make_model()
    model.layers[0].quantize("float8")
    fit(model, tmp_path, epochs=1)
    message = row("float8", "hidden' (Dense) is...copy kernels and")
    with refused(model, tmp_path, message):
        score(model, tmp_path)
    copy = make_model()  # as the error says
    for own, other in zip(copy.layers, model.layers, strict=True):
        own.set_weights(other.get_weights()[:2])
    copy.save_weights(tmp_path / "copy.weights.h5")
    run = kt.TrainingRun.from_weights([tmp_path / "copy.weights.h5"], 0.1)
    assert np.all(score(copy, run).scores != 0)


def test_a_quantized_embedding_that_projects_back(tmp_path):
    def make(config):
        shared = layers.ReversibleEmbedding(9, 4, name="shared")
        inputs = keras.Input((4,), dtype="int32")
        hidden = layers.GlobalAveragePooling1D()(shared(inputs))
        hidden = layers.Dense(4, name="hidden")(hidden)
        model = keras.Model(inputs, shared(hidden, reverse=True))
        shared.quantize("int8", config=config)
        model.compile("sgd", CROSSENTROPY)
        return model

    rng = np.random.default_rng(0)
    data = rng.integers(0, 9, (8, 4)), rng.integers(0, 9, 8)
    model = make(None)
    model.save_weights(tmp_path / "own.weights.h5")
    run = kt.TrainingRun.from_weights([tmp_path / "own.weights.h5"], 0.1)
    message = row(
        "quantized-embedding",
        "shared' (ReversibleEmbedding)...no layer before it...None: quan",
    )
    with refused(model, tmp_path, message):
        score(model, run, data, data)
    config = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    scores = score(make(config), run, data, data).scores  # as the error says
    assert np.all(scores != 0)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            ["hiden"],
            row(
                "unknown-layer",
                "Received 'hiden'...no layer...'hidden', 'logits'",
            ),
        ),
        (
            ["hidden", layers.Dense(3)],
            row("unknown-layer", "Received <Dense...no layer"),
        ),
        ([], row("no-layer", "Received []")),
    ],
)
def test_layers_that_are_not_in_the_model(trained, named, message):
    model, directory = trained
    with refused(model, directory, message):
        kt.TracIn(model, TRAIN, directory, layers=named)


def test_a_layer_without_weights(tmp_path):
    model = fit(make_model(layers.ReLU(name="relu")), tmp_path)
    with refused(model, tmp_path, row("no-variables", "'relu' has")):
        kt.TracIn(model, TRAIN, tmp_path, layers="relu")
    model.trainable = False  # which the run was not: TracIn takes it
    with refused(model, tmp_path, row("no-variables", "trainable = True")):
        kt.InfluenceFunctions(model, TRAIN, damping=1.0)


def test_another_backend(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(
        ImportError, match=row("backend", "'jax'...KERAS_BACKEND=tensorflow")
    ):
        runpy.run_path(str(ROOT / "keras_tracin" / "__init__.py"))


def test_a_model_of_a_strategy_scores_the_same_without_it(trained, tmp_path):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = make_model()
    model.set_weights(trained[0].get_weights())
    scores = score(model, trained[1]).scores
    np.testing.assert_array_equal(scores, score(*trained).scores)


def test_a_strategy_that_the_model_was_not_built_under(trained):
    model, directory = trained
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with refused(model, directory, row("other-strategy", "strategy.scope()")):
        kt.TracIn(model, TRAIN, directory, strategy=strategy)
    with refused(model, directory, row("strategy", "'mirrored'"), TypeError):
        kt.TracIn(model, TRAIN, directory, strategy="mirrored")


# --- The data


@pytest.mark.parametrize("role", ["train", "test"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.shuffle(99).batch(3),
            row("unstable-data", "kt.with_ids"),
        ),
        (lambda d: d.batch(3).repeat(), row("endless-data", "`.repeat()`")),
        (lambda d: d.take(0).batch(3), row("empty-data", "at least one batch")),
        (lambda d: d, row("unbatched", "`.batch(...)`")),
    ],
    ids=["shuffled", "infinite", "empty", "unbatched"],
)
def test_a_dataset_that_cannot_be_read(trained, change, message, role):
    model, directory = trained
    data = change(tf.data.Dataset.from_tensor_slices(TRAIN))
    with refused(model, directory, message + says(f"`{role}`")):
        score(model, directory, **{role: data})


def test_examples_that_were_taken_for_batches(trained):
    model, directory = trained
    labels = np.eye(4, dtype="float32")[TRAIN[1]]
    data = tf.data.Dataset.from_tensor_slices((TRAIN[0], labels))
    with refused(
        model, directory, row("input-shape", "`train`...(1,)....batch")
    ):
        score(model, directory, train=data)


@pytest.mark.parametrize("role", ["train", "test"])
def test_parts_of_different_length(trained, role):
    model, directory = trained
    x, y = TRAIN
    message = row("unequal-lengths", f"`{role}`...(24, 4), (23,)")
    with refused(model, directory, message):
        score(model, directory, **{role: (x, y[1:])})


@pytest.mark.parametrize("role", ["train", "test"])
def test_parts_of_different_length_in_a_late_batch(trained, role):
    model, directory = trained
    x, y = TRAIN
    batches = [(x[:8], y[:8]), (x[8:16], y[8:15])]
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None], tf.int64),
        ),
    )
    message = row("unequal-lengths", f"`{role}`...(8, 4), (7,)")
    with refused(model, directory, message):
        score(model, directory, **{role: data})


def test_inputs_of_different_length_in_a_late_batch(tmp_path):
    parts = [keras.Input((width,)) for width in (3, 1)]
    outputs = layers.Dense(3)(layers.Concatenate()(parts))
    model = keras.Model(parts, outputs)
    model.compile("sgd", CROSSENTROPY)
    x, y = TRAIN
    fit(model, tmp_path, ([x[:, :3], x[:, 3:]], y), epochs=1)

    def batches():
        yield (x[:8, :3], x[:8, 3:]), y[:8]
        yield (x[8:16, :3], x[8:15, 3:]), y[8:16]

    widths = tf.TensorSpec([None, 3]), tf.TensorSpec([None, 1])
    data = tf.data.Dataset.from_generator(
        batches,
        output_signature=(widths, tf.TensorSpec([None], tf.int64)),
    )
    message = row("unequal-lengths", "`train`...(8, 3), (7, 1), (8,)")
    with refused(model, tmp_path, message):
        score(model, tmp_path, data, ([x[:2, :3], x[:2, 3:]], y[:2]))


@pytest.mark.parametrize("role", ["train", "test"])
def test_a_late_batch_of_another_shape(trained, role):
    model, directory = trained
    x, y = TRAIN
    batches = [(x[:8], y[:8]), (np.zeros((8, 5), "float32"), y[8:16])]
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(
            tf.TensorSpec([None, None]),
            tf.TensorSpec([None], tf.int64),
        ),
    )
    message = row(
        "unequal-shapes",
        f"`{role}`...(5,)...from id 8 ...(4,)...padded_batch",
    )
    with refused(model, directory, message):
        score(model, directory, **{role: data})
    if role == "train":
        with refused(model, directory, message):
            kt.RepresenterPoints(model, data, l2=0.1).influence(TEST, verbose=0)
        with refused(model, directory, message):
            kt.InfluenceFunctions(model, data, damping=0.1).influence(
                TEST, verbose=0
            )


@pytest.mark.parametrize("role", ["train", "test"])
def test_labels_of_another_shape(trained, role):
    model, directory = trained
    data = {"train": TRAIN, "test": TEST}
    x, y = data[role]
    data[role] = x, np.stack([y, y], axis=1)
    message = row("label-shape", "(None, 2)...(None, 3)...`loss=`")
    with refused(model, directory, message):
        score(model, directory, **data)


def test_a_model_that_drops_examples(tmp_path):
    class Selecting(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, name="dense")

        def call(self, inputs):
            rows = self.dense(tf.boolean_mask(inputs, inputs[:, 0] > 0))
            return inputs[:, :3] + 0.0 * ops.sum(rows)

    model = Selecting()
    model(TRAIN[0])
    model.compile("sgd", CROSSENTROPY)
    model.save_weights(tmp_path / "own.weights.h5")
    run = kt.TrainingRun.from_weights([tmp_path / "own.weights.h5"], 0.1)
    message = row(
        "partial-layer",
        "training examples with ids [0, 1, ...dense... (Dense)",
    )
    with refused(model, tmp_path, message):
        score(model, run)


def test_inputs_of_another_shape(trained):
    model, directory = trained
    for role in ("train", "test"):
        data = (np.zeros((8, 5), "float32"), np.zeros(8, "int64"))
        message = row("input-shape", f"`{role}`...(1, 5)")
        with refused(model, directory, message):
            score(model, directory, **{role: data})
        with refused(model, directory, message):
            points = kt.RepresenterPoints(
                model, data if role == "train" else TRAIN, l2=0.1, verbose=0
            )
            points.influence(data)


def test_data_without_labels(trained):
    model, directory = trained
    data = tf.data.Dataset.from_tensor_slices(TRAIN[0]).batch(8)
    with refused(model, directory, row("no-labels", "`train`")):
        score(model, directory, train=data)
    with refused(model, directory, row("none-labels", "(x, y)"), TypeError):
        score(model, directory, train=(TRAIN[0], None))


def test_more_or_fewer_ids_than_examples(trained):
    with refused(*trained, row("id-count", "3 ids for 24 examples")):
        kt.with_ids(TRAIN, [1, 2, 3])


@pytest.mark.parametrize("rows", [[1], [17, 20]], ids=["early", "late"])
def test_training_labels_outside_the_classes(trained, rows):
    model, directory = trained
    x, y = TRAIN
    data = numbered((x, with_first(y, rows, 3)))
    ids = [100 + position for position in rows]
    message = row(
        "invalid-labels",
        f"training examples with ids {ids} are",
        "Received [3...expected whole numbers from 0 to 2",
    )
    with refused(model, directory, message):
        score(model, directory, train=data)
    with refused(model, directory, message):
        kt.TracIn(model, data, directory).self_influence(verbose=0)


def test_query_labels_outside_the_classes(trained):
    model, directory = trained
    data = numbered((TEST[0], with_first(TEST[1], [5], -1)), first=500)
    message = row(
        "invalid-labels", "query examples with ids [505] are...Received [-1"
    )
    for options in ({}, {"query_loss": "margin"}):
        with refused(model, directory, message):
            score(model, directory, test=data, **options)


@pytest.mark.parametrize(("role", "first"), [("training", 100), ("query", 500)])
def test_nan_in_the_data(trained, role, first):
    model, directory = trained
    name, (x, y) = {
        "training": ("train", TRAIN),
        "query": ("test", TEST),
    }[role]
    x = with_first(x, [5], [np.nan, 1, 1, 1])
    weight = with_first(np.ones(len(y), "float32"), [4], np.inf)
    for data, number, part in (
        ((x, y), first + 5, "x"),
        ((TRAIN[0][: len(y)], y, weight), first + 4, "sample_weight"),
    ):
        message = row(
            "nan-data", f"{role} examples with ids [{number}] is...`{part}`"
        )
        with refused(model, directory, message):
            score(model, directory, **{name: numbered(data, first)})


def test_tokens_beyond_the_vocabulary(tmp_path):
    inputs = keras.Input((4,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(9, 2)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile("sgd", CROSSENTROPY)
    tokens = np.random.default_rng(0).integers(0, 9, (NUM_TRAIN, 4))
    fit(model, tmp_path, (tokens, TRAIN[1]))
    train = (with_first(tokens, [17], 9), TRAIN[1])
    message = row(
        "unknown-tokens",
        "training examples with ids [117]...9 is not in [0, 9)",
    )
    with refused(model, tmp_path, message):
        score(model, tmp_path, numbered(train), (tokens[:3], TRAIN[1][:3]))


# --- The run


def test_a_directory_that_is_missing(trained, tmp_path):
    model, _ = trained
    with refused(
        model, None, row("missing-run", "absent does...TracInCheckpoint")
    ):
        score(model, tmp_path / "absent")


def test_a_directory_without_a_run(trained, tmp_path):
    model, _ = trained
    (tmp_path / "notes.txt").write_text("mine")
    with refused(model, tmp_path, row("no-run", "TracInCheckpoint")):
        score(model, tmp_path)


def test_a_run_without_checkpoints(tmp_path):
    model = fit(make_model(), tmp_path, epochs=1, save_freq="epoch")
    run = kt.TrainingRun(tmp_path)
    with refused(
        model, tmp_path, row("no-rates-above-zero", "no checkpoints...Train")
    ):
        score(model, run.select([]))


def edit_manifest(directory, edit):
    path = Path(directory) / "run.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: cut(d / "run.json"),
            row("cut-manifest", "run.json is...again"),
        ),
        (lambda d: cut(last_weights(d)), row("cut-file", "h5 is")),
        (
            lambda d: flip(last_weights(d)),
            row("flipped-bit", "h5 is...again"),
        ),
        (
            lambda d: last_weights(d).unlink(),
            row("missing-file", "h5 is...again"),
        ),
        (
            lambda d: edit_manifest(d, lambda m: m.update(format_version=99)),
            row("newer-run", "version 99...Update keras_tracin"),
        ),
        (
            lambda d: edit_manifest(
                d, lambda m: m["checkpoints"][1].pop("size")
            ),
            row("edited-manifest", "run.json is...size or checksum"),
        ),
    ],
    ids=["truncated", "cut", "flipped", "missing", "newer", "incomplete"],
)
def test_a_damaged_run(copied, damage, message):
    model, directory = copied
    damage(directory)
    with refused(model, directory, message):
        kt.TracIn(model, TRAIN, directory)  # before any work


def test_a_run_of_another_architecture(trained):
    model = make_model(units=6)
    with refused(
        model,
        trained[1],
        row("other-architecture", "received ...expected ...Pass"),
    ):
        kt.TracIn(model, TRAIN, trained[1])


def poison(directory, value, model):
    """Puts a value into the last checkpoint's weights, checksum and all."""
    path = directory / "step-poisoned.weights.h5"
    kept = model.get_weights()
    weights = [w.copy() for w in kept]
    weights[2][0, 0] = value
    twin = make_model()
    twin.set_weights(weights)
    twin.save_weights(path)
    return kt.TrainingRun.from_weights([path], 0.1)


def test_nan_in_weights(copied):
    model, directory = copied
    run = poison(directory, np.nan, model)
    with refused(
        model, directory, row("nan-weights", "logits/kernel contains...select")
    ):
        score(model, run)


def test_infinite_weights(copied):
    model, directory = copied
    run = poison(directory, np.inf, model)
    message = row(
        "infinite-weights", "logits/kernel' is...at checkpoint ...step-...epoch"
    )
    with refused(model, directory, message):
        score(model, run)


def test_a_gradient_that_is_not_a_number(tmp_path):
    class Rooted(layers.Layer):
        def build(self, _):
            self.scale = self.add_weight(shape=(), initializer="zeros")

        def call(self, x):
            return x + ops.sqrt(self.scale)

    model = make_model(Rooted(name="rooted"))
    model.layers[1].scale.assign(1.0)
    fit(model, tmp_path)
    model.layers[1].scale.assign(0.0)
    path = tmp_path / "own.weights.h5"
    model.save_weights(path)
    run = kt.TrainingRun.from_weights([path], 0.1)
    message = row(
        "overflow", " examples with ids [0, 1, ...'...rooted' at check"
    )
    with refused(model, tmp_path, message):
        score(model, run)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (None, row("missing-rates")),
        (-0.1, row("impossible-rates", "rate of -0.1")),
        (np.nan, row("impossible-rates", "rate of nan")),
        (np.inf, row("impossible-rates", "rate of inf")),
    ],
)
def test_a_learning_rate_that_cannot_be_one(copied, rates, message):
    model, directory = copied
    path = sorted(Path(directory).glob("steps/*"))[-1]
    arrays = {"other": np.zeros(3)}
    if rates is not None:
        arrays = {"learning_rate": np.array([0.1, rates, 0.1])}
    np.savez(path, **arrays)
    entry = {"size": path.stat().st_size, "sha256": digest(path)}
    edit_manifest(directory, lambda m: m["segments"][-1].update(entry))
    with refused(model, directory, message):
        kt.TracIn(model, TRAIN, directory)


def test_a_learning_rate_of_zero_is_skipped_with_a_warning(tmp_path):
    warm_up = keras.callbacks.LearningRateScheduler(lambda e: 0.1 * (e > 0))
    model = make_model()
    callbacks = [warm_up, kt.TracInCheckpoint(tmp_path)]
    model.fit(*TRAIN, epochs=2, verbose=0, callbacks=callbacks)
    before = state(model, tmp_path)
    with pytest.warns(UserWarning, match=r"Skipping checkpoint.*rate is 0"):
        scores = score(model, tmp_path).scores
    last = kt.TrainingRun(tmp_path)[1].path
    second = kt.TrainingRun.from_weights([last], 0.1)
    np.testing.assert_allclose(scores, score(model, second).scores, rtol=1e-6)
    assert state(model, tmp_path) == before


# --- The request


def test_k_that_cannot_be(trained):
    model, directory = trained
    tracin = kt.TracIn(model, TRAIN, directory)
    for k in (0, -1, 2.5, NUM_TRAIN + 1):
        with refused(model, directory, row("k", f"Received: ...{k}")):
            tracin.top_k(TEST, k, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "median"}, row("weights", "'mean' or 'sum'...'median'")),
        ({"query_loss": 3}, row("query-loss", "3")),
    ],
)
def test_options_that_do_not_exist(trained, options, message):
    model, directory = trained
    with refused(model, directory, message):
        kt.TracIn(model, TRAIN, directory, **options)


# --- An index

INDEX = {"projection": kt.TensorSketch(8)}


@pytest.fixture(scope="module")
def built(trained, tmp_path_factory):
    """A method and the directory of its index, which no test changes."""
    method = kt.TracIn(trained[0], TRAIN, trained[1])
    directory = tmp_path_factory.mktemp("built") / "index"
    kt.InfluenceIndex.build(method, directory, **INDEX)
    return method, directory


@pytest.fixture
def indexed(trained, built, tmp_path):
    """A model, the method and a copy of its index to do damage to."""
    # As far from the run as the one it is a copy of.
    copy = shutil.copytree(built[1], tmp_path / "index")
    return trained[0], built[0], copy


def test_a_directory_without_an_index(trained, tmp_path):
    with refused(trained[0], tmp_path, row("no-index")):
        kt.InfluenceIndex(tmp_path, trained[0])


def test_a_build_that_was_interrupted(indexed):
    model, _, directory = indexed
    path = directory / "index.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "finished": 0}))
    with refused(
        model,
        directory,
        row("interrupted-build", f"{NUM_TRAIN} rows are there"),
    ):
        kt.InfluenceIndex(directory, model)


@pytest.mark.parametrize("kind", ["rows", "ids", "exact"])
@pytest.mark.parametrize("harm", ["cut", "altered", "missing"])
def test_a_damaged_index(indexed, kind, harm):
    model, _, directory = indexed
    path = directory / kind / "00000000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-8] if harm == "cut" else content)
    if harm == "missing":
        message = row("incomplete-index", f"{kind}...00000000.npy is")
    else:
        message = row("damaged-index", f"{kind}...00000000.npy is")
    with refused(model, directory, message):
        kt.InfluenceIndex(directory, model)


def test_an_index_of_another_model(indexed):
    _, _, directory = indexed
    model = make_model(units=7)
    with refused(model, directory, row("index-architecture", "(4, 5)")):
        kt.InfluenceIndex(directory, model)


def test_an_index_without_its_run(indexed, tmp_path):
    model, _, directory = indexed
    alone = shutil.copytree(directory, tmp_path / "a" / "b" / "index")
    with refused(model, alone, row("moved-run", "`run=`")):
        kt.InfluenceIndex(alone, model)
    short = fit(make_model(), tmp_path / "short", epochs=1)
    run = kt.TrainingRun(tmp_path / "short")
    with refused(short, alone, row("index-run", "lacks...epochs [1, 2]")):
        kt.InfluenceIndex(alone, short, run=run)


def test_k_that_no_index_has(indexed):
    model, _, directory = indexed
    index = kt.InfluenceIndex(directory, model)
    for k in (0, -1, 2.5, NUM_TRAIN + 1):
        with refused(model, directory, row("index-k")):
            index.query(TEST, k)


def test_reranking_that_cannot_be(indexed):
    model, method, directory = indexed
    index = kt.InfluenceIndex(directory, model)
    with refused(
        model, directory, row("rerank-method", "`rerank`...method=tracin")
    ):
        index.query(TEST, 3, rerank=10)
    index = kt.InfluenceIndex(directory, model, method=method)
    with refused(model, directory, row("rerank", "Received: 2")):
        index.query(TEST, 3, rerank=2)


@pytest.mark.parametrize(
    "kind", [kt.TensorSketch, kt.GaussianProjection, kt.FactoredProjection]
)
def test_sketches_of_no_length(kind):
    with pytest.raises(ValueError, match=row("zero-dim", "dim=0")):
        kind(0)


def test_a_disk_that_is_too_small(built, tmp_path, monkeypatch):
    method, _ = built
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    needed = row(
        "index-room", f"bytes are needed for...{usage.free:,} are free"
    )
    with pytest.raises(OSError, match=needed):
        kt.InfluenceIndex.build(method, tmp_path, **INDEX)
    monkeypatch.undo()
    index = kt.InfluenceIndex.build(method, tmp_path, **INDEX)
    assert len(index) == NUM_TRAIN


# --- Recording a run


def test_a_run_of_another_model_is_not_overwritten(trained):
    model, other = make_model(units=7), trained[1]
    model.fit(*TRAIN, verbose=0)
    with refused(model, other, row("other-run", "overwrite=True")):
        fit(model, other)


# The size a file may have stands for the room that is left on the disk. With
# 100 bytes nothing can be written, with 8,000 all but the weights. HDF5 would
# end the process over it, so this has one of its own.
FULL_DISK = """
import resource, sys
from keras_tracin import TrainingRun
from tests.bad_input_test import fit, make_model, state

directory = sys.argv[1]
model = fit(make_model(), directory)
_, before = state(model, directory)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for room in (100, 8000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        fit(model, directory)
    except OSError as error:
        print("refused:", error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    _, after = state(model, directory)
    assert before.items() <= after.items()
    run = TrainingRun(directory)
    run.verify()
    assert len(run) == 2
    run.restore(model)
fit(model, directory)
assert len(TrainingRun(directory)) == 4
print("went on")
"""


def test_a_full_disk_stops_training_and_costs_nothing_saved(tmp_path):
    environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    out = finished.stdout
    assert finished.returncode == 0, out + finished.stderr
    _, first, second = out.split("refused:")
    assert re.search(row("read-only"), first), out
    goes_on = row("disk-full", "Make room, then continue with keras_tracin.T")
    assert re.search(goes_on, second), out
    assert not re.search(row("read-only"), second), out
    assert out.endswith("went on\n"), finished.stderr


@contextlib.contextmanager
def read_only(directory):
    """Takes away the right to write to a directory, also from root."""
    is_root = os.geteuid() == 0
    directory.chmod(0o555)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(0o755)


@pytest.fixture
def public():
    """A directory that every user of the machine can reach."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_a_read_only_directory_is_refused_before_the_first_step(public):
    model = make_model()
    message = row("read-only", "Permission denied")
    with (
        refused(model, public, message, OSError),
        read_only(public),
    ):
        fit(model, public)


def test_a_run_that_became_read_only_is_not_continued(public):
    model = fit(make_model(), public)
    with (
        refused(model, public, row("disk-full", "Permission"), OSError),
        read_only(public),
    ):
        fit(model, public)
