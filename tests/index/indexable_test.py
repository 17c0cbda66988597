"""An index takes any method that says how its rows are made."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.methods.indexable import Indexable
from tests.error_rows import row
from tests.index.network import change_a_bit

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype("float32")
TRAIN = X, (4 * X[:, :1] + 1).astype("float32")
TEST = X[:4] + 1, TRAIN[1][:4]
PROJECTION = kt.TensorSketch(8, seed=1)


@pytest.fixture(scope="module")
def tracin(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    run = tmp_path_factory.mktemp("run")
    callback = kt.TracInCheckpoint(run)
    model.fit(*TRAIN, epochs=2, callbacks=[callback], verbose=0)
    return kt.TracIn(model, TRAIN, run)


class Negative:
    """A method of the user's own: TracIn with the sign of queries turned."""

    def __init__(self, tracin):
        self.tracin = tracin

    def index_rows(self, projection, keep):
        recipe = self.tracin.index_rows(projection, keep)
        return dataclasses.replace(
            recipe,
            query_projection=Turned(recipe.query_projection),
            identity={**recipe.identity, "method": "Negative"},
            exact=None,
        )


@dataclasses.dataclass(frozen=True)
class Turned:
    projection: kt.TensorSketch

    @property
    def dim(self):
        return self.projection.dim

    def sketch(self, factors, position=0):
        return -self.projection.sketch(factors, position)


def test_an_index_of_any_method_has_the_products_of_its_rows(tracin, tmp_path):
    plain = kt.InfluenceIndex.build(
        tracin, tmp_path / "plain", projection=PROJECTION
    )
    turned = kt.InfluenceIndex.build(
        Negative(tracin), tmp_path / "turned", projection=PROJECTION
    )
    expected, received = plain.query(TEST, 5), turned.query(TEST, 5)
    np.testing.assert_array_equal(
        received.proponents.ids, expected.opponents.ids
    )
    np.testing.assert_array_equal(
        received.proponents.scores, -expected.opponents.scores
    )
    assert turned.recall["proponents"] == 1  # against its own products
    with pytest.raises(
        ValueError,
        match=row("rerank-method", "`rerank` scores training examples"),
    ):
        turned.query(TEST, 5, rerank=10)
    with pytest.raises(ValueError, match="another method"):
        kt.InfluenceIndex.build(
            tracin, tmp_path / "turned", projection=PROJECTION
        )


def test_methods_that_make_no_rows_are_refused(tracin, tmp_path):
    model, run = (
        tracin.engine.model,
        next(iter(tracin.checkpoints)).path.parents[1],
    )
    for method in (kt.SOURCE(model, TRAIN, run), kt.TracIn, None):
        with pytest.raises(TypeError, match="An index is built from a"):
            kt.InfluenceIndex.build(method, tmp_path)
    assert isinstance(tracin, Indexable)


def test_the_remedy_for_a_damaged_file_is_that_of_its_directory(
    tracin, tmp_path
):
    model = tracin.engine.model
    solver = kt.RandomizedSketch(4, method="cg")
    method = kt.InfluenceFunctions(model, TRAIN, damping=1.0, solver=solver)
    kt.InfluenceIndex.build(method, tmp_path / "influence")
    change_a_bit(tmp_path / "influence" / "inverse.npz")
    with pytest.raises(ValueError, match="Copy the index again, or delete it"):
        kt.InfluenceIndex(tmp_path / "influence", model)
    checkpoint = next(iter(tracin.checkpoints))
    directory = checkpoint.path.parents[1]
    run = shutil.copytree(directory, tmp_path / "run")
    kt.InfluenceIndex.build(tracin, tmp_path / "tracin", projection=PROJECTION)
    change_a_bit(run / checkpoint.path.relative_to(directory))
    index = kt.InfluenceIndex(tmp_path / "tracin", model, run=run)
    with pytest.raises(ValueError, match="an index of a run without this"):
        index.query(TEST, 3)
    with pytest.raises(ValueError, match="leave this checkpoint out"):
        kt.TracIn(model, TRAIN, run)


def test_influence_functions_at_other_weights_make_no_index(tracin, tmp_path):
    model = tracin.engine.model
    solver = kt.RandomizedSketch(4, method="cg")
    method = kt.InfluenceFunctions(model, TRAIN, damping=1.0, solver=solver)
    own = model.get_weights()
    try:
        model.set_weights([weight + 1 for weight in own])
        with pytest.raises(ValueError, match=row("other-weights")):
            kt.InfluenceIndex.build(method, tmp_path)
    finally:
        model.set_weights(own)
