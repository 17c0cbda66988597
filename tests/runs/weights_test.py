"""Lending a model the weights of checkpoints."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import TrainingRun, run_weights
from tests.error_rows import row
from tests.runs.helpers import make_model, make_run, shift_weights


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.stack = [keras.layers.Dense(3), keras.layers.Dropout(0.5)]
        self.norm = keras.layers.BatchNormalization()
        # Optimizers that a user keeps in a container are not weights either.
        self.spare = {"optimizer": keras.optimizers.Adam()}

    def get_config(self):
        return {}

    def call(self, x, training=False):
        for layer in self.stack:
            x = layer(x, training=training)
        return self.norm(x, training=training)


def layers():
    return [
        keras.layers.Dense(3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3),
    ]


def sequential():
    return keras.Sequential([keras.Input((3,)), *layers()])


def functional():
    x = y = keras.Input((3,))
    for layer in layers():
        y = layer(y)
    return keras.Model(x, y)


def nested():
    inner = functional()
    inner.compile("adam", "mse")  # has an optimizer of its own
    x = keras.Input((3,))
    return keras.Model(x, keras.layers.Dense(3)(inner(x)))


X = np.random.default_rng(0).normal(size=[8, 3]).astype("float32")


def values(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def assert_same(variables, expected):
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_array_equal(variable, value)


def fit(model):
    # A few steps of a small model take less time than to compile one.
    model.compile(
        keras.optimizers.Adam(0.1), "mse", metrics=["mae"], run_eagerly=True
    )
    model.fit(X, X, batch_size=4, verbose=0)


def everything(model):
    return [
        *model.variables,
        *model.optimizer.variables,
        *model.metrics_variables,
    ]


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (sequential, ".weights.h5"),
        (functional, ".keras"),
        (Subclassed, ".weights.h5"),
        (Subclassed, ".keras"),
        (nested, ".weights.h5"),
        (nested, ".keras"),
    ],
)
def test_weights_come_in_and_everything_goes_back(tmp_path, make, suffix):
    model = make()
    fit(model)
    path = tmp_path / f"saved{suffix}"
    save = model.save if suffix == ".keras" else model.save_weights
    save(path)
    saved = values(model.weights)
    fit(model)
    model.optimizer.learning_rate = 0.7
    before, others = values(everything(model)), len(model.variables)

    run = TrainingRun.from_weights([path], 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with run_weights(model) as load:
            load(run[0])
            assert_same(model.weights, saved)
            assert_same(everything(model)[others:], before[others:])
            model(X, training=True)  # moves statistics and Dropout's seeds
    assert_same(everything(model), before)
    assert not np.array_equal(saved[0], before[0])


@pytest.mark.parametrize("compile_it", [True, False])
def test_an_optimizer_without_state_stays_without(tmp_path, compile_it):
    trained, model = sequential(), sequential()
    fit(trained)
    trained.save_weights(tmp_path / "a.weights.h5")
    if compile_it:
        model.compile("adam", "mse")
        optimizer = values(model.optimizer.variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with run_weights(model) as load:
            load(tmp_path / "a.weights.h5")
            assert_same(model.weights, values(trained.weights))
    if compile_it:
        assert not model.optimizer.built
        assert_same(model.optimizer.variables, optimizer)


def test_metrics_of_another_compilation_do_not_matter(tmp_path):
    trained, model = sequential(), sequential()
    fit(trained)
    trained.save_weights(tmp_path / "a.weights.h5")
    model.compile("sgd", "mse", metrics=["mae", "cosine_similarity"])
    model.evaluate(X, X, verbose=0)
    with run_weights(model) as load:
        load(tmp_path / "a.weights.h5")
        assert_same(model.weights, values(trained.weights))


def test_derived_state_of_normalization_goes_back(tmp_path):
    def make(data):
        layer = keras.layers.Normalization()
        layer.adapt(data)
        return keras.Sequential([keras.Input((3,)), layer])

    make(X * 5).save_weights(tmp_path / "a.weights.h5")
    model = make(X)
    before = model.predict(X, verbose=0)
    with run_weights(model) as load:
        load(tmp_path / "a.weights.h5")
        assert not np.allclose(model(X), before)
    np.testing.assert_array_equal(model(X), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_go_back_after(tmp_path, error):
    model = make_model()
    run = TrainingRun(make_run(tmp_path, model))
    shift_weights(model)
    before = values(model.variables)

    def interrupted():
        with run_weights(model) as load:
            load(run[0])
            raise error

    with pytest.raises(error):
        interrupted()
    assert_same(model.variables, before)


def load_first(model, run):
    with run_weights(model) as load:
        load(run[0])


def test_a_damaged_file_is_refused_before_it_is_read(tmp_path):
    model = make_model()
    run = TrainingRun(make_run(tmp_path, model))
    content = bytearray(run[0].path.read_bytes())
    content[-1] ^= 1
    run[0].path.write_bytes(content)
    before = values(model.variables)
    with pytest.raises(ValueError, match=row("flipped-bit", "step-00000001")):
        load_first(model, run)
    run[0].path.unlink()
    with pytest.raises(ValueError, match=row("missing-file", "step-00000001")):
        load_first(model, run)
    assert_same(model.variables, before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_model(5), r"received .*kernel with shape \(3, 5\).* \(3, 2\)"),
        (sequential(), "received a model with 8 weights, expected 2"),
    ],
    ids=["shape", "count"],
)
def test_another_architecture_is_refused(tmp_path, other, message):
    run = TrainingRun(make_run(tmp_path))
    with pytest.raises(ValueError, match=message):
        load_first(other, run)


@pytest.mark.parametrize("anew", [False, True])
def test_layers_in_another_order_are_refused(tmp_path, anew):
    """Else each would get the weights of another, which has its shapes."""

    def in_order(layers):
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile("sgd", "mse")
        return model

    def named(*names):
        return [keras.layers.Dense(3, name=name) for name in names]

    layers = named("a", "b", "c")
    model = in_order(layers)
    callback = kt.TracInCheckpoint(tmp_path / "run")
    model.fit(np.ones([4, 3]), np.ones([4, 3]), verbose=0, callbacks=[callback])
    first, second, third = named("a", "b", "c") if anew else layers
    run = TrainingRun(tmp_path / "run")
    load_first(in_order([first, second, third]), run)
    other = in_order([second, first, third])
    what = "weight 0 is ...b/kernel, expected ...a/kernel"
    with pytest.raises(ValueError, match=row("other-architecture", what)):
        load_first(other, run)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_adopted_files_of_another_model_or_kind_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"not a weights file")
    run = TrainingRun.from_weights([path], 0.1)
    with pytest.raises(ValueError, match=f"a{suffix} could not be loaded"):
        load_first(make_model(), run)
    if suffix == ".keras":
        make_model().save(path)
    else:
        make_model().save_weights(path)
    model = make_model(5)
    before = values(model.variables)
    with pytest.raises(ValueError, match=f"a{suffix} could not be loaded"):
        load_first(model, run)
    assert_same(model.variables, before)


def test_a_missing_adopted_file_is_named(tmp_path):
    make_model().save_weights(tmp_path / "a.weights.h5")
    run = TrainingRun.from_weights([tmp_path / "a.weights.h5"], 0.1)
    run[0].path.unlink()
    with pytest.raises(ValueError, match=r"a\.weights\.h5 does not exist"):
        load_first(make_model(), run)


def test_another_dtype_of_the_same_shapes_is_welcome(tmp_path):
    run = TrainingRun(make_run(tmp_path))
    inputs, dense = keras.Input((3,)), keras.layers.Dense(2, dtype="float64")
    model = keras.Model(inputs, dense(inputs))
    with run_weights(model) as load:
        load(run[0])
        bias = values(model.weights)[1]
    np.testing.assert_array_equal(bias, np.ones(2))


def test_nan_in_weights_is_refused_with_its_name(tmp_path):
    model = make_model()
    path = tmp_path / "a.weights.h5"
    kernel, bias = model.get_weights()
    model.set_weights([kernel * np.nan, bias])
    model.save_weights(path)
    model.set_weights([kernel, bias])
    with pytest.raises(ValueError, match=r"a\.weights\.h5: .*kernel contains"):
        load_first(model, TrainingRun.from_weights([path], 0.1))
    assert_same(model.weights, [kernel, bias])


def test_an_unbuilt_model_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="Call it on a batch of data first"):
        load_first(model, TrainingRun(make_run(tmp_path)))


def test_checkpoints_can_be_keys(tmp_path):
    run = TrainingRun(make_run(tmp_path))
    rates = {checkpoint: checkpoint.learning_rate for checkpoint in run}
    assert len(rates) == 3
    assert rates[dataclasses.replace(run[0])] == run[0].learning_rate
