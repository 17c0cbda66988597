"""Examples that interact are found wherever in the data, and both ways."""

import keras
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.error_rows import row
from tests.points import examples

layers, ops = keras.layers, keras.ops


def crossentropy(y, logits):
    return keras.losses.sparse_categorical_crossentropy(
        y, logits, from_logits=True
    )


TRAIN, TEST = examples(60, 0), examples(5, 1)


class Mixing(layers.Layer):
    """Calls a function of all examples' rows."""

    def __init__(self, mix, **options):
        super().__init__(**options)
        self.mix = mix

    def call(self, x):
        return self.mix(x)


@tf.custom_gradient
def with_a_shared_gradient(x):
    return tf.identity(x), lambda grad: grad + tf.reduce_mean(grad, axis=0)


@tf.custom_gradient
def with_a_gradient_of_length_one(x):
    return tf.identity(x), lambda grad: grad / tf.norm(grad)


def hardest_half(y, logits):
    losses = crossentropy(y, logits)
    count = tf.shape(losses)[0]
    kept = tf.math.top_k(losses, (count + 1) // 2).values[-1]
    return tf.where(losses >= kept, losses, 0.0)


def centred(y, logits):
    losses = crossentropy(y, logits)
    return losses - tf.reduce_mean(losses)


def only_in_large_batches(x):
    large = tf.cast(tf.shape(x)[0] > 16, x.dtype)
    return x + large * tf.reduce_mean(x, axis=0)


def only_where_large(x):
    """Mixes rows where any example's first feature is a rare one."""
    rare = tf.cast(tf.reduce_any(x[:, 0] > 5), x.dtype)
    return x + rare * tf.reduce_max(tf.abs(x), axis=0)


LAYERS = {
    "a sum of those before": lambda x: (
        x + 0.5 * tf.cumsum(x, axis=0, exclusive=True)
    ),
    "the first row is special": lambda x: tf.concat([x[:1], x[1:] - x[:1]], 0),
    "the last row is special": lambda x: tf.concat(
        [x[:-1] + 0.1 * x[-1:], x[-1:]], axis=0
    ),
    "divided by the batch's size": lambda x: (
        x / tf.cast(tf.shape(x)[0], x.dtype)
    ),
    "sorted": lambda x: tf.sort(x, axis=0),
    "a capacity": lambda x: tf.where(
        tf.cumsum(tf.cast(x[:, :1] > 0, tf.int32), axis=0) > 3, 0.0, x
    ),
    "a gradient that is shared": with_a_shared_gradient,
    "a gradient of length one": with_a_gradient_of_length_one,
    "only in large batches": only_in_large_batches,
}


def make_model(*inside, loss=crossentropy):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            *inside,
            layers.Dense(5, activation="tanh"),
            *inside,
            layers.Dense(3, name="logits"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def run_of(model, tmp_path):
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    return kt.TrainingRun.from_weights([path], 1.0)


MESSAGE = f"{row('mixing-layer')}|{row('mixing-late')}"


@pytest.mark.parametrize("mix", LAYERS.values(), ids=LAYERS)
def test_a_layer_that_mixes_examples_is_refused(mix, tmp_path):
    model = make_model(Mixing(mix, name="mixing"))
    method = kt.TracIn(model, TRAIN, run_of(model, tmp_path))
    with pytest.raises(ValueError, match=MESSAGE) as error:
        method.self_influence()
    assert "mixing" in str(error.value) or "id " in str(error.value)


@pytest.mark.parametrize(
    "losses",
    [{"loss": hardest_half}, {"loss": centred}, {"query_loss": centred}],
    ids=["the harder half", "centred", "centred, of queries"],
)
def test_a_loss_that_mixes_examples_is_refused(losses, tmp_path):
    model = make_model()
    method = kt.TracIn(model, TRAIN, run_of(model, tmp_path), **losses)
    with pytest.raises(ValueError, match=MESSAGE):
        method.influence(TEST)


@pytest.mark.parametrize(
    "name", ["a gradient that is shared", "only in large batches"]
)
def test_check_finds_it(name):
    model = make_model(Mixing(LAYERS[name], name="mixing"))
    report = kt.check(model, TRAIN, verbose=0)
    assert "mixing" in report.errors[0].message


def test_it_is_found_in_a_stream_before_anything_is_kept(tmp_path):
    model = make_model(Mixing(only_where_large, name="mixing"))
    run = run_of(model, tmp_path)
    x, y = examples(4 * 1024, 3)
    x[3 * 1024 + 5 :, 0] = 5.5  # from the fourth batch on
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    method = kt.TracIn(model, data, run)
    kept = tmp_path / "kept"
    with pytest.raises(ValueError, match=row("mixing-layer", "mixing' (")):
        method.self_influence(directory=kept)
    assert not list(kept.glob("part-*-000003.npz"))
    with pytest.raises(ValueError, match=row("mixing-layer", "mixing' (")):
        method.self_influence(directory=kept)  # what is kept is not believed
    projection = kt.TensorSketch(dim=8)
    for work in (
        lambda: method.influence(TEST),
        lambda: kt.TRAK(
            model, data, run, projection=projection, output="margin"
        ).influence(TEST),
        lambda: kt.InfluenceIndex.build(
            method, tmp_path / "index", projection=projection
        ),
    ):
        with pytest.raises(ValueError, match=MESSAGE):
            work()


def test_a_query_loss_that_mixes_only_large_batches_is_refused(tmp_path):
    def mixing(y, logits):
        large = tf.cast(tf.shape(logits)[0] > 16, logits.dtype)
        losses = crossentropy(y, logits)
        return losses * (1.0 + large * tf.reduce_max(losses))

    model = make_model()
    method = kt.TracIn(model, TRAIN, run_of(model, tmp_path), query_loss=mixing)
    with pytest.raises(ValueError, match=MESSAGE):
        method.influence(examples(40, 4))


def test_representations_that_mix_examples_are_refused():
    model = make_model(Mixing(only_in_large_batches, name="mixing"))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(True))
    points = kt.RepresenterPoints(model, TRAIN, l2=0.1, verbose=0)
    with pytest.raises(ValueError, match=row("mixing-layer", "mixing' (")):
        points.influence(examples(4, 1), verbose=0)
