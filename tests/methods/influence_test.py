"""Influence functions against closed forms, retraining and whole matrices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.curvature.solvers import randomized_sketch as sketch_module
from keras_tracin.curvature.solvers.randomized_sketch import gaussian_rows
from keras_tracin.losses.per_example import per_example_loss
from tests.curvature import oracle
from tests.error_rows import row
from tests.gradients.oracle import jacobian, precision, sequential

NUM_TRAIN, NUM_TEST, CLASSES = 40, 4, 3
DAMPING = 0.5


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5))
    y = (x[:, 0] + x[:, 1] ** 2 + rng.normal(size=count)).astype(int)
    return x, np.clip(y, 0, CLASSES - 1)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(NUM_TEST, 1)


@pytest.fixture(scope="module")
def model():
    """A small network near a minimum of a regularised objective."""
    keras.utils.set_random_seed(0)
    regularizer = keras.regularizers.L2(0.02)
    model = sequential(
        (5,),
        layers.Dense(4, "tanh", kernel_regularizer=regularizer),
        layers.Dense(CLASSES, kernel_regularizer=regularizer),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    steps = np.tile(TRAIN[0], (200, 1)), np.tile(TRAIN[1], 200)
    model.fit(*steps, batch_size=NUM_TRAIN, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def truth(model):
    """`(H + λI)⁻¹`, and the gradients of training examples and queries."""
    loss, variables = per_example_loss(model), model.trainable_variables
    matrix = oracle.hessian(model, loss, TRAIN, variables)
    inverse = np.linalg.inv(matrix + DAMPING * np.eye(len(matrix)))
    assert np.linalg.eigvalsh(inverse).min() > 0
    train, test = (
        jacobian(model, (*data, None), variables, loss)
        for data in (TRAIN, TEST)
    )
    return inverse, train, test


def close(found, expected, tolerance=1e-8):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=tolerance * scale)


SOLVERS = {
    "exact": (kt.Exact(), 1e-8),
    "cg": (kt.CG(tol=1e-9), 1e-6),
    "lissa": (kt.LiSSA(batch_size=NUM_TRAIN, steps=150), 1e-3),
    "arnoldi": (kt.Arnoldi(rank=39), 1e-6),
}


@pytest.mark.parametrize(("solver", "tol"), SOLVERS.values(), ids=SOLVERS)
def test_scores_are_products_under_the_inverse(model, truth, solver, tol):
    inverse, train, test = truth
    method = kt.InfluenceFunctions(model, TRAIN, damping=DAMPING, solver=solver)
    scores = method.influence(TEST, verbose=0)
    close(scores.scores, test @ inverse @ train.T, tol)
    assert scores.train_ids.tolist() == list(range(NUM_TRAIN))
    own = method.self_influence(verbose=0).scores
    close(own, np.einsum("np,pq,nq->n", train, inverse, train), tol)


def test_a_sketch_serves_the_three_calls_and_again_from_a_file(
    model, truth, tmp_path
):
    inverse, train, test = truth
    solver = kt.RandomizedSketch(20, seed=1, method="cg")
    made = kt.InfluenceFunctions(model, TRAIN, damping=DAMPING, solver=solver)
    scores = made.influence(TEST, verbose=0).scores
    projection = gaussian_rows(20, len(inverse), 1, tf.float64).numpy()
    expected = test @ projection.T @ (projection @ inverse) @ train.T
    close(scores, expected, 1e-2)
    made.inverse.save(tmp_path / "inverse.npz")
    again = kt.InfluenceFunctions(
        model,
        TRAIN,
        damping=DAMPING,
        solver=kt.InverseSketch.load(tmp_path / "inverse.npz"),
    )
    close(again.influence(TEST, verbose=0).scores, scores)
    close(
        again.self_influence(verbose=0).scores,
        np.diag(made.influence(TRAIN, verbose=0).scores),
    )


@pytest.fixture(scope="module")
def method(model):
    return kt.InfluenceFunctions(
        model, TRAIN, damping=DAMPING, solver=kt.Exact()
    )


def test_top_k_agrees_with_all_scores(method):
    expected = method.influence(TEST, verbose=0).top_k(5)
    found = method.top_k(TEST, 5, verbose=0)
    for side in ("proponents", "opponents"):
        a, b = getattr(found, side), getattr(expected, side)
        np.testing.assert_array_equal(a.ids, b.ids)
        close(a.scores, b.scores)


def test_small_memory_gives_the_same_scores_in_pieces(method, model):
    whole = method.influence(TEST, verbose=0).scores
    pieces = kt.InfluenceFunctions(
        model,
        TRAIN,
        damping=DAMPING,
        solver=kt.Exact(),
        memory_limit=1,
        relative="loss",
    ).within(batch_sizes=(8, 8), query_batch=2)
    own = method.self_influence(verbose=0).scores
    found = pieces.influence(TEST, verbose=0).scores
    close(found, whole / np.sqrt(own))
    top = pieces.top_k(TEST, 9, verbose=0).proponents
    close(top.scores, -np.sort(-found, axis=1)[:, :9])


def test_relative_to_parameters_divides_by_how_far_they_move(model, truth):
    inverse, train, test = truth
    method = kt.InfluenceFunctions(
        model,
        TRAIN,
        damping=DAMPING,
        solver=kt.Exact(),
        relative="parameters",
    )
    moved = np.linalg.norm(train @ inverse, axis=1)
    expected = test @ inverse @ train.T / moved
    close(method.influence(TEST, verbose=0).scores, expected)


def test_a_group_counts_as_the_sum_of_its_members(method):
    each = method.influence(TEST, verbose=0).scores
    groups = {"few": [3, 5], "many": range(10, 30), "none": []}
    found = method.group_influence(TEST, groups, verbose=0)
    assert found.train_ids.tolist() == ["few", "many", "none"]
    expected = [each[:, [3, 5]].sum(1), each[:, 10:30].sum(1), 0 * each[:, 0]]
    close(found.scores, np.stack(expected, axis=1))
    one = method.group_influence(TEST, [3, 5], verbose=0)
    close(one.scores[:, 0], expected[0])
    with pytest.raises(ValueError, match=row("group-ids", "them: ...[99]")):
        method.group_influence(TEST, [3, 99], verbose=0)


def test_gauss_newton_has_its_own_scores(model, truth):
    _, train, test = truth
    loss, variables = per_example_loss(model), model.trainable_variables
    matrix = oracle.gauss_newton(model, loss, TRAIN, variables, model)
    matrix += np.diag(
        np.concatenate(
            [np.full(20, 0.04), np.zeros(4), np.full(12, 0.04), np.zeros(3)]
        )
    )
    inverse = np.linalg.inv(matrix + DAMPING * np.eye(len(matrix)))
    method = kt.InfluenceFunctions(
        model,
        TRAIN,
        damping=DAMPING,
        solver=kt.CG(tol=1e-9),
        curvature="gauss_newton",
    )
    found = method.influence(TEST, verbose=0).scores
    close(found, test @ inverse @ train.T, 1e-6)


def test_some_layers_have_a_block_of_the_curvature(model, truth):
    _, train, test = truth
    loss = per_example_loss(model)
    head = model.layers[-1]
    block = oracle.hessian(model, loss, TRAIN, head.trainable_variables)
    inverse = np.linalg.inv(block + DAMPING * np.eye(len(block)))
    method = kt.InfluenceFunctions(
        model,
        TRAIN,
        damping=DAMPING,
        curvature="hessian",
        layers=[head.name],
    )
    expected = test[:, -15:] @ inverse @ train[:, -15:].T
    close(method.influence(TEST, verbose=0).scores, expected, 1e-3)


def test_query_loss_turns_the_sign_so_that_positive_helps(model, truth):
    inverse, train, _ = truth

    def logit(y, y_pred, weight):
        return -tf.gather(y_pred, y, axis=1, batch_dims=1)

    data = (*TEST, None)
    test = jacobian(model, data, model.trainable_variables, logit)
    method = kt.InfluenceFunctions(
        model,
        TRAIN,
        damping=DAMPING,
        solver=kt.Exact(),
        query_loss="logit",
    )
    found = method.influence(TEST, verbose=0).scores
    close(found, test @ inverse @ train.T)


@pytest.mark.parametrize("solver", [kt.Exact(), kt.EKFAC()])
def test_variables_frozen_after_it_was_made_are_refused(solver):
    keras.utils.set_random_seed(0)
    model = sequential((5,), layers.Dense(3, "tanh"), layers.Dense(1))
    model.compile(loss="mse")
    method = kt.InfluenceFunctions(
        model, TRAIN, damping=1.0, curvature="gauss_newton", solver=solver
    )
    model.layers[0].trainable = False
    path = model.layers[0].kernel.path
    with pytest.raises(ValueError, match=row("other-trainable", path)):
        method.influence(TEST, verbose=0)
    model.layers[0].trainable = True
    assert np.all(method.self_influence(verbose=0).scores > 0)


def test_negative_curvature_is_warned_of():
    keras.utils.set_random_seed(0)
    model = sequential((5,), layers.Dense(3, "tanh"), layers.Dense(1))
    model.compile(loss="mse")
    method = kt.InfluenceFunctions(
        model, (TRAIN[0], 5.0 * TRAIN[1]), damping=0, solver=kt.Exact()
    )
    with pytest.warns(UserWarning, match="gauss_newton"):
        method.self_influence(verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1}, row("damping")),
        ({"damping": None}, row("damping", "None")),
        ({"damping": [1, 2]}, row("damping", "[1, 2]")),
        ({"damping": 0, "class_weight": [1, 2]}, row("class-weight")),
        ({"damping": 0, "class_weight": {"a": 1}}, row("class-weight", "'a'")),
        ({"damping": 0, "class_weight": {0: np.nan}}, row("class-weight")),
        ({"damping": 0, "curvature": "fisher"}, "`curvature`"),
        ({"damping": 0, "relative": "loss_"}, "`relative`"),
        (
            {"damping": 0, "layers": ["nowhere"]},
            row("unknown-layer", "nowhere"),
        ),
    ],
)
def test_bad_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        kt.InfluenceFunctions(model, TRAIN, **options)


def test_half_precision_is_refused_before_any_work():
    model = sequential((5,), layers.Dense(CLASSES, dtype="mixed_float16"))
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=row("half-precision")):
        kt.InfluenceFunctions(model, TRAIN, damping=0.1)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "ekfac"])
def test_what_cannot_be_differentiated_is_refused_by_its_name(curvature):
    model = sequential(
        (5,),
        layers.Dense(3, name="lost"),
        layers.Lambda(tf.round),
        layers.Dense(CLASSES, "softmax", name="head"),
    )
    model.compile(loss="sparse_categorical_crossentropy")
    options = {"damping": 1.0, "curvature": curvature}
    refused = kt.InfluenceFunctions(model, TRAIN, **options)
    with pytest.raises(ValueError, match=row("no-gradient", "lost...layers=")):
        refused.influence(TEST, verbose=0)
    served = kt.InfluenceFunctions(model, TRAIN, **options, layers=["head"])
    with pytest.warns(UserWarning, match="not converged"):
        scores = served.influence(TEST, verbose=0).scores
    assert np.abs(scores).min() > 0


@pytest.mark.parametrize("solver", [kt.CG(), kt.Exact(), kt.EKFAC()])
def test_a_gradient_that_is_not_a_number_is_named(solver):
    model = sequential(
        (5,),
        layers.Dense(3, kernel_initializer="ones"),
        layers.Lambda(tf.sqrt),  # whose slope is infinite at zero
        layers.Dense(CLASSES, "softmax"),
    )
    model.compile(loss="sparse_categorical_crossentropy")
    x, y = np.abs(TRAIN[0]), TRAIN[1]
    x[7] = 0
    method = kt.InfluenceFunctions(model, (x, y), damping=1.0, solver=solver)
    with pytest.raises(ValueError, match=row("overflow", "ids [7] are")):
        method.influence((x[:3], y[:3]), verbose=0)


def test_too_many_weights_are_refused_with_the_memory_they_take(
    model, monkeypatch
):
    options = {"damping": 0.5}
    exact = kt.InfluenceFunctions(
        model, TRAIN, solver=kt.Exact(max_size=38), **options
    )
    with pytest.raises(
        ValueError, match=row("exact-size", "39 × 39 numbers take ... GB")
    ):
        exact.influence(TEST, verbose=0)
    monkeypatch.setattr(sketch_module, "default_memory_limit", lambda: 1000)
    sketched = kt.InfluenceFunctions(
        model, TRAIN, solver=kt.RandomizedSketch(9), **options
    )
    with pytest.raises(
        ValueError, match=row("sketch-size", "takes ... GB...fewer `layers=`")
    ):
        sketched.top_k(TEST, 3, verbose=0)


def test_nan_in_a_query_names_it(method):
    x, y = (part.copy() for part in TEST)
    x[2] = np.nan
    with pytest.raises(
        ValueError, match=row("nan-data", "query examples with ids [2]")
    ):
        method.influence((x, y), verbose=0)
