"""Steps compiled by XLA are those that TensorFlow runs one by one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients.compiling import compile_step, should_compile
from keras_tracin.losses.per_example import per_example_loss
from tests.error_rows import row

COUNT, CLASSES = 6, 3
RNG = np.random.default_rng(0)


def dense(x):
    return layers.Dense(4, activation="tanh")(x)


def convolution(x):
    x = layers.Conv2D(4, 3, activation="tanh")(x)
    x = layers.BatchNormalization()(x)
    return layers.Flatten()(layers.MaxPooling2D()(x))


def embedded(x):
    x = layers.Embedding(9, 5, mask_zero=True)(x)
    x = layers.LayerNormalization()(x)
    return layers.GlobalAveragePooling1D()(x)


def attention(x):
    x = layers.MultiHeadAttention(2, 4)(x, x)
    return layers.GlobalAveragePooling1D()(x)


def recurrence(x):
    return layers.PReLU()(layers.SimpleRNN(4)(x))


MODELS = {
    "convolution": (convolution, (6, 6, 2)),
    "embedding": (embedded, (7,)),
    "attention": (attention, (5, 8)),
    "recurrence and fallback": (recurrence, (3, 2)),
}


def build(body, shape):
    keras.utils.set_random_seed(0)
    tokens = body is embedded
    inputs = keras.Input(shape, dtype="int32" if tokens else "float32")
    model = keras.Model(inputs, layers.Dense(CLASSES)(body(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    if tokens:
        x = RNG.integers(1, 9, size=(COUNT, *shape)).astype("int32")
        x[::2, 4:] = 0
    else:
        x = RNG.normal(size=(COUNT, *shape)).astype("float32")
    return model, (x, RNG.integers(0, CLASSES, COUNT))


def results(steps, data, every):
    """What all the steps make of a batch, by their names, or just products."""
    one = np.float32(1)
    queries = steps.captured(data).factors
    products = {"products": steps.products(data, queries, one)}
    if not every:
        return products
    return products | {
        "rows": steps.rows(data, one),
        "squared norms": steps.squared_norms(data, one),
        "contractions": steps.contractions(data, steps.totals(data), one),
    }


@pytest.mark.parametrize(("body", "shape"), MODELS.values(), ids=MODELS)
def test_compiled_steps_are_those_that_are_not(body, shape):
    """All of them for one model, which has factors of each kind."""
    model, data = build(body, shape)
    every = body is embedded
    plain, compiled = (
        results(
            GradientFunctions(
                model, per_example_loss(model), data, jit_compile=jit
            ),
            data,
            every,
        )
        for jit in (False, True)
    )
    for name, expected in plain.items():
        np.testing.assert_allclose(
            compiled[name], expected, rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.filterwarnings("ignore:TracIn was given the final")
@pytest.mark.filterwarnings("ignore:The model has not converged")
@pytest.mark.filterwarnings("ignore:.*did not converge")
def test_methods_pass_it_on(tmp_path):
    model, data = build(dense, (5,))
    model.fit(
        *data,
        batch_size=2,
        epochs=1,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(tmp_path)],
    )
    queries = data[0][:2], data[1][:2]
    for make in (
        lambda **jit: kt.TracIn(model, data, tmp_path, **jit),
        lambda **jit: kt.TracIn(
            model, data, tmp_path, projection=kt.TensorSketch(16), **jit
        ),
        lambda **jit: kt.InfluenceFunctions(
            model, data, damping=30.0, solver=kt.CG(max_steps=3), **jit
        ),
    ):
        plain, compiled = (
            make(jit_compile=jit).influence(queries, verbose=0).scores
            for jit in (False, True)
        )
        scale = np.abs(plain).max()
        np.testing.assert_allclose(compiled, plain, atol=1e-4 * scale)


def test_a_cpu_alone_is_not_worth_it():
    assert tf.config.list_logical_devices("GPU") == []
    assert not should_compile("auto")
    assert should_compile(True)
    assert not should_compile(False)
    with pytest.raises(
        ValueError, match=row("jit-compile", "True, False or 'auto'...'yes'")
    ):
        should_compile("yes")


def test_steps_of_many_methods_are_not_warned_of(caplog):
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        for _ in range(12):
            step = compile_step(lambda x: 2 * x, [tf.TensorSpec([None])])
            np.testing.assert_array_equal(step(np.ones(2, "float32")), [2, 2])
    finally:
        logger.removeHandler(caplog.handler)
    assert "retracing" not in caplog.text
