"""The slow, obvious twin of per-example gradients: whole Jacobians.

A test of a layer rule is a table of models. Each is built twice with the same
weights, in float64 and in float32; what the package computes from factors is
held against the rows of a float64 Jacobian.

Synopsis:

    CASES = {
        "one layer": Case(lambda: sequential((5,), layers.Dense(3))),
    }

    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_factors_match_the_jacobian(case):
        check(case)
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import flat
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.sites import find_sites, site_variables

# Relative to √(s_ii s_jj), the product of the two gradients' lengths.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and the kind of data it takes.

    Attributes:
        build: makes the model; called once for each precision.
        layers: what `layers=` restricts the gradients to, by name or path.
        shape: the shape of one example, or a list of one for each input;
            where it is left out, that of the model's inputs.
        tokens: inputs are ids below this number; zero for real numbers.
        num_train: how many training examples there are.
        num_queries: how many queries.
        compact: whether the compact form and the compiled steps are held
            against the Jacobian too, in float32. They know nothing of a layer
            but its factors, so one case of each kind of factors is enough.
        dtype: what takes the place of float64 for layers that compute in
            float32 whatever their policy, or not at all in float64.
    """

    build: Callable[[], keras.Model]
    layers: Sequence[str] | None = None
    shape: Any = None
    tokens: int = 0
    num_train: int = 5
    num_queries: int = 3
    compact: bool = True
    dtype: str = "float64"


def compact_in(cases: dict[str, Case], *names: str) -> dict[str, Case]:
    """The cases of a table, of which only the named ones are compact too.

    Args:
        cases: the cases by name.
        names: a case for each form that the factors of the table take.
    """
    assert cases.keys() >= set(names)
    return {
        name: dataclasses.replace(case, compact=name in names)
        for name, case in cases.items()
    }


@contextlib.contextmanager
def precision(dtype: str):
    """Makes new layers, inputs and losses of this type."""
    policy = keras.config.dtype_policy()
    floatx = keras.config.floatx()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def sequential(shape: Sequence[int | None], *layers, dtype=None, name=None):
    """A `Sequential` model on examples of this shape."""
    return keras.Sequential(
        [keras.Input(shape, dtype=dtype), *layers], name=name
    )


def functional(shape: Sequence[int | None], call: Callable, dtype=None):
    """A functional model with one input."""
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, call(inputs))


def uneven_loss(y, y_pred, sample_weight=None) -> tf.Tensor:
    """A loss that no wrong gradient is likely to agree with.

    It is not linear in any output, mixes the positions of an example, and
    weighs examples and positions differently.
    """
    total = 0.0
    for output in tf.nest.flatten(y_pred):
        output = tf.convert_to_tensor(output)
        flat = tf.reshape(output, [tf.shape(output)[0], -1])
        label = tf.cast(y, flat.dtype)
        places = tf.cast(tf.range(tf.shape(flat)[1]), flat.dtype)
        curved = tf.tanh(flat + label[:, None]) + 0.3 * tf.square(flat)
        total += tf.reduce_sum(tf.cos(places) * curved, axis=1)
        total += tf.square(tf.reduce_sum(flat, axis=1)) * (1.5 + tf.sin(label))
    if sample_weight is not None:
        total *= tf.cast(sample_weight, total.dtype)
    return total


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Gives every weight a value; zero biases would hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if not variable.dtype.startswith("float"):
            continue
        value = rng.normal(size=variable.shape, scale=0.5)
        if "variance" in variable.path:
            value = 0.5 + np.abs(value)
        if variable.path.endswith(("kernel_scale", "embeddings_scale")):
            continue  # of a quantized layer: fits what was rounded
        variable.assign(value)


def examples(case: Case, model: keras.Model, count: int, seed: int):
    """Inputs, labels and sample weights that suit the case, in float64."""
    rng = np.random.default_rng(seed)

    def values(shape):
        if case.tokens:
            # Some ids are in nearly every example, most in hardly any.
            share = rng.uniform(size=(count, *shape)) ** 2
            return (share * case.tokens).astype("int32")
        return rng.normal(size=(count, *shape))

    shapes = case.shape
    if shapes is None:
        shapes = [tuple(entry.shape[1:]) for entry in model.inputs]
        shapes = shapes[0] if len(shapes) == 1 else shapes
    x = (
        [values(shape) for shape in shapes]
        if isinstance(shapes, list)
        else values(shapes)
    )
    y = rng.normal(size=count)
    weight = rng.uniform(0.5, 2.0, size=count)
    return x, y, weight


def jacobian(
    model: keras.Model,
    data: tuple,
    variables: Sequence[keras.Variable],
    loss: Callable = uneven_loss,
) -> np.ndarray:
    """Per-example gradients `[n, p]`, each by its own backward pass."""
    x, y, weight = data
    values = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True) as tape:
        losses = loss(y, model(x, training=False), weight)
    parts = tape.jacobian(
        losses,
        values,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
        experimental_use_pfor=False,
    )
    return np.concatenate(
        [np.reshape(part, (len(y), -1)) for part in parts], axis=1
    )


def covered(model: keras.Model, layers: Sequence[str] | None) -> list:
    """The variables that `layers=` stands for, each once."""
    if layers is None:
        return list(model.trainable_variables)
    chosen = [
        variable
        for layer in model._flatten_layers()
        if layer.name in layers or layer.path in layers
        for variable in layer.trainable_variables
    ]
    return list({id(variable): variable for variable in chosen}.values())


def check(case: Case) -> None:
    """Holds products, contractions and norms against the Jacobian.

    In float64 the factors are tried as captured, in float32 in the compact
    form, by the compiled steps that the methods use.
    """
    with precision(case.dtype):
        keras.utils.set_random_seed(0)
        model = case.build()
        train = examples(case, model, case.num_train, seed=1)
        queries = examples(case, model, case.num_queries, seed=2)
        if case.dtype == "float32":
            train, queries = _narrow(train), _narrow(queries)
        model(train[0])  # builds subclassed models
        randomize(model)
        variables = covered(model, case.layers)
        truth = (
            jacobian(model, train, variables),
            jacobian(model, queries, variables),
        )
        step = _capture_step(model, train, case.layers)
        _check_factors(step(train), step(queries), *truth, case.dtype)
        known = site_variables(find_sites(model, case.layers))
        _check_rows(step(queries), known, variables, truth[1], case.dtype)
    if not case.compact:
        return
    with precision("float32"):
        twin = case.build()
        train, queries = _narrow(train), _narrow(queries)
        twin(train[0])
        twin.set_weights(model.get_weights())
        functions = GradientFunctions(
            twin, uneven_loss, like=train, layers=case.layers
        )
        captured = functions.captured(queries)
        _check_factors(functions.captured(train), captured, *truth, "float32")
        assert_products_close(
            functions.products(train, captured.factors, tf.constant(1.0)),
            truth[1],
            truth[0],
            "float32",
        )


def assert_products_close(actual, left, right, dtype: str) -> None:
    """Whether `actual [n, m]` are the products of the rows of `left`, `right`.

    The error is measured against the product of the rows' lengths.
    """
    lengths = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    scale = np.outer(*lengths)
    assert np.all(scale > 0), "the case has examples without a gradient"
    assert np.shape(actual) == scale.shape
    error = np.abs(np.asarray(actual, np.float64) - left @ right.T) / scale
    assert error.max() <= TOLERANCE[dtype], f"relative error {error.max():.1e}"


def _check_factors(left, right, rows, other_rows, dtype: str) -> None:
    assert left.names == right.names
    pairs = list(zip(left.factors, right.factors, strict=True))
    inner = sum(algebra.inner(a, b).numpy() for a, b in pairs)
    assert_products_close(inner, rows, other_rows, dtype)

    shares = sum(
        algebra.contract(a, algebra.total(b)).numpy() for a, b in pairs
    )
    whole = other_rows.sum(axis=0, keepdims=True)
    assert_products_close(shares[:, None], rows, whole, dtype)

    norms = sum(algebra.squared_norm(a).numpy() for a, _ in pairs)
    expected = np.sum(rows**2, axis=1)
    np.testing.assert_allclose(norms, expected, rtol=TOLERANCE[dtype])


def _check_rows(captured, known, variables, expected, dtype: str) -> None:
    """Holds the flat rows against the Jacobian, variable by variable."""
    rows = flat.rows(captured.factors).numpy()
    covered_by = [known[at] for group in captured.positions for at in group]
    places = dict(zip(map(id, covered_by), _columns(covered_by), strict=True))
    scale = np.abs(expected).max()
    for variable, columns in zip(variables, _columns(variables), strict=True):
        truth = expected[:, columns]
        if id(variable) not in places:  # the model does not use it
            assert np.all(truth == 0)
            continue
        error = np.abs(rows[:, places[id(variable)]] - truth).max() / scale
        assert error < TOLERANCE[dtype], variable.path


def _columns(variables) -> list[slice]:
    """Where each variable's numbers are in a row."""
    ends = np.cumsum([0, *map(flat.size_of, variables)])
    return [slice(*ends[at : at + 2]) for at in range(len(variables))]


def _capture_step(model, data, layers):
    """`capture` as it stands, compiled for batches of any size."""
    spec = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), data
    )
    return tf.function(
        lambda batch: capture(model, uneven_loss, batch, layers),
        autograph=False,
        input_signature=[spec],
    )


def _narrow(data):
    return tf.nest.map_structure(
        lambda leaf: leaf.astype("float32") if leaf.dtype == float else leaf,
        data,
    )
