"""Plans of a sweep, and its chunks."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.data.batches import Batch
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink, in_chunks
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.footprint import Footprint
from keras_tracin.engine.planning import make_plan
from keras_tracin.engine.sweep import sweep
from keras_tracin.results import ScoreColumns
from tests.gradients.oracle import sequential


def arrays(count):
    """`count` examples of four bytes each."""
    return np.zeros((count, 1), "float32"), np.zeros(count, "int32")


def plan_for(count, **changes):
    """A plan with everything small but what is changed."""
    options = {
        "num_queries": 10,
        "num_checkpoints": 3,
        "footprint": Footprint(1000, 100),
        "bytes_per_query": 100,
        "memory_limit": 2**30,
        **changes,
    }
    execution = Execution(memory_limit=options.pop("memory_limit"))
    train = open_examples(arrays(count))
    return make_plan(train, execution=execution, **options)


def test_batches_shrink_as_examples_grow():
    small = plan_for(10_000).batch_size
    large = plan_for(10_000, footprint=Footprint(0, 2**20)).batch_size
    assert large < small
    assert Execution().batch_sizes[0] <= large <= 64


def test_a_step_stays_small_where_memory_is_ample():
    plan = plan_for(10_000, footprint=Footprint(2**21, 2**10))
    assert plan.batch_size * 2**21 <= Execution().largest_step
    room = plan_for(10_000, footprint=Footprint(2**18, 2**10)).batch_size
    assert room > plan.batch_size


def test_memory_counts_the_step_of_the_queries():
    large = Footprint(2**21, 2**10)
    plan = plan_for(10_000, footprint=large)
    more = plan_for(10_000, footprint=large, query_batch=plan.batch_size + 1)
    assert more.memory == plan.memory + 2**21
    fewer = plan_for(10_000, footprint=large, query_batch=1)
    assert fewer.memory == plan.memory


def test_memory_counts_weights_whatever_the_limit():
    plan = plan_for(10_000, memory_limit=2**20)
    lent = plan_for(10_000, memory_limit=2**20, weights=2**24, loading=2**25)
    # Nothing else is there while a checkpoint is loaded.
    assert lent.memory == 2**24 + 2**25
    assert lent.memory - lent.weights == plan.memory
    assert "MB for weights)" in str(lent)
    assert "for weights" not in str(plan)
    aware = plan_for(
        10_000,
        memory_limit=2**20,
        weights=2**24,
        loading=2**25,
        prepared=2**26,
    )
    assert aware.memory == 2**24 + 2**26 + plan.memory
    assert aware.weights == 2**24 + 2**26
    assert (aware.batch_size, aware.chunk) == (plan.batch_size, plan.chunk)


def test_a_small_limit_means_several_chunks():
    plan = plan_for(10_000, memory_limit=2**20)
    assert plan.batch_size <= plan.chunk < 10_000
    # A chunk's scores stay within a quarter of the limit.
    assert plan.chunk * 10 * 4 <= 2**20 / 4


def test_memory_is_flat_once_chunks_are_full():
    small, large = (
        plan_for(count, memory_limit=2**20) for count in (10_000, 60_000)
    )
    assert small.memory == large.memory


def test_a_plan_counts_its_steps_and_says_so():
    plan = plan_for(2_050)
    assert plan.steps == -(-2_050 // plan.batch_size) * 3
    text = str(plan)
    assert all(part in text for part in ("2,050", "10 queries", "3 checkp"))


def test_chunks_keep_batches_whole_and_in_order():
    batches = [Batch(np.arange(i, i + 3), None) for i in range(0, 15, 3)]
    chunks = list(in_chunks(batches, 5))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert [b.ids[0] for chunk in chunks for b in chunk] == [0, 3, 6, 9, 12]


class Recorded:
    """A step, and what is read of it, in order."""

    def __init__(self, step):
        self._step, self.events = step, []

    def __call__(self, *arguments):
        self.events.append("run")
        return self._step(*arguments)

    def get_concrete_function(self):
        return self._step.get_concrete_function()

    def read(self, result):
        self.events.append("read")
        return result.numpy()


@pytest.mark.parametrize(
    ("held", "beginning"),
    [
        (2**24, ["run"] * 5),
        (80, ["run", "run", "read"]),  # two batches of ten numbers
        (1, ["run", "read"]),
    ],
)
def test_results_are_read_once_enough_have_come_together(
    held, beginning, monkeypatch, tmp_path
):
    monkeypatch.setattr("keras_tracin.engine.sweep._HELD", held)
    model = sequential((3,), keras.layers.Dense(2))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    data = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    model.fit(*data, callbacks=[kt.TracInCheckpoint(tmp_path)], verbose=0)
    method = kt.TracIn(model, data, tmp_path)
    expected = method.self_influence(verbose=0).scores
    small = method.within(batch_sizes=(10, 10))
    work = small.self_pass()
    recorded = Recorded(work.step)
    columns = ScoreColumns()
    sweep(
        small.engine,
        dataclasses.replace(work, step=recorded, finish=recorded.read),
        Sink(columns.add),
        Call(verbose=0),
    )
    assert recorded.events[: len(beginning)] == beginning
    assert "read" in recorded.events
    np.testing.assert_allclose(columns.scores, expected, 1e-5)
