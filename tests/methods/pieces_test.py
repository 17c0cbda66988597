"""A call in pieces, anywhere and in any order, is that of one process.

Beam's own tests need it installed: see docs/scaling.md.
"""

import signal

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.engine.parts import Parts
from tests import processes, records
from tests.engine import scoring_worker
from tests.error_rows import row
from tests.index import index_worker
from tests.methods.pieces_worker import pieces_in

CALLS = ("top_k", "self_influence", "influence")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A run and training examples in files, where factories find them."""
    with records.written(tmp_path_factory.mktemp("inputs")) as run:
        yield run


@pytest.fixture(scope="module")
def method(inputs):
    return index_worker.tracin(inputs)


@pytest.fixture(scope="module")
def expected(method, tmp_path_factory):
    """The results of one process."""
    return {
        call: scoring_worker.arrays_of(
            scoring_worker.answer(method, call, tmp_path_factory.mktemp(call))
        )
        for call in CALLS
    }


def noted_parts(monkeypatch):
    """A list of the parts that are put from now on."""
    made = []
    put = Parts.put

    def put_and_note(self, block, chunk, *arguments, **arrays):
        made.append((block, chunk))
        put(self, block, chunk, *arguments, **arrays)

    monkeypatch.setattr(Parts, "put", put_and_note)
    return made


def assert_same(result, expected):
    arrays = scoring_worker.arrays_of(result)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "options", [{}, records.OF_RECORDS], ids=["arrays", "files of records"]
)
def test_pieces_in_any_order_are_the_call(expected, tmp_path, call, options):
    pieces = pieces_in(tmp_path, call, **options)
    numbers = pieces.begin()
    assert len(numbers) > 3
    digests = {number: pieces.compute(number) for number in numbers[::-1]}
    assert_same(pieces.finish(digests), expected[call])
    again = {number: pieces.compute(number) for number in pieces.begin()}
    assert again == digests
    assert_same(pieces.finish(digests), expected[call])


def test_pieces_that_are_there_are_not_computed_again(
    expected, tmp_path, monkeypatch
):
    pieces = pieces_in(tmp_path)
    first, *others = pieces.begin()
    pieces.compute(first)
    made = noted_parts(monkeypatch)
    digests = {number: pieces.compute(number) for number in pieces.begin()}
    assert made == others
    assert_same(pieces.finish(digests), expected["top_k"])


def test_a_call_of_one_process_goes_on_from_pieces(
    method, expected, tmp_path, monkeypatch
):
    pieces = pieces_in(tmp_path)
    numbers = pieces.begin()
    for number in numbers[1::2]:
        pieces.compute(number)
    made = noted_parts(monkeypatch)
    result = scoring_worker.answer(method, "top_k", tmp_path)
    assert made == numbers[::2]
    assert_same(result, expected["top_k"])


FITTED = {
    "EK-FAC": (kt.InfluenceFunctions, {"damping": 0.1, "curvature": "ekfac"}),
    "relative": (kt.InfluenceFunctions, {"relative": "loss"}),
    "TRAK": (kt.TRAK, {"projection": kt.TensorSketch(16)}),
    "unit lengths": (kt.TracIn, {"normalize": "both"}),
}


@pytest.mark.parametrize(("kind", "options"), FITTED.values(), ids=FITTED)
def test_methods_that_are_fitted_first(
    inputs, tmp_path, monkeypatch, kind, options
):
    def make():
        return kind(
            scoring_worker.build(),
            index_worker.TRAIN,
            run=kt.TrainingRun(inputs),
            memory_limit=100_000,
            **options,
        )

    monkeypatch.setattr(records, "make_tracin", make)
    whole = scoring_worker.answer(make(), "top_k", tmp_path / "whole")
    pieces = pieces_in(tmp_path / "pieces")
    digests = {
        number: pieces.compute(number) for number in pieces.begin()[::-1]
    }
    assert len(digests) > 1
    assert_same(pieces.finish(digests), scoring_worker.arrays_of(whole))


def test_the_pieces_of_a_killed_worker_are_computed_by_another(
    expected, tmp_path
):
    worker = processes.start("tests.methods.pieces_worker", tmp_path, 3)
    code, output = processes.end_of(worker)
    assert code == -signal.SIGKILL, output
    assert len(list(tmp_path.glob("part-*.npz"))) == 3
    pieces = pieces_in(tmp_path)
    digests = {number: pieces.compute(number) for number in pieces.begin()}
    assert_same(pieces.finish(digests), expected["top_k"])


def test_a_missing_piece_is_named(inputs, tmp_path):
    pieces = pieces_in(tmp_path)
    numbers = pieces.begin()
    digests = {number: pieces.compute(number) for number in numbers[:2]}
    with pytest.raises(ValueError, match=row("missing-pieces")):
        pieces.finish(digests)
    digests |= dict.fromkeys(numbers[2:], "")
    with pytest.raises(ValueError, match=row("missing-pieces")):
        pieces.finish(digests)


def test_pieces_of_other_examples_are_refused(inputs, tmp_path):
    pieces = pieces_in(tmp_path, **records.OF_RECORDS)
    first = pieces.begin()[0]
    pieces.compute(first)
    others = pieces_in(
        tmp_path, **{**records.OF_RECORDS, "read": "tests.records:read_others"}
    )
    with pytest.raises(ValueError, match="made from other queries or train"):
        others.compute(first)


def test_what_pieces_cannot_use_is_refused(inputs, tmp_path, monkeypatch):
    def refused(match, error=ValueError, **options):
        options = {**records.OF_RECORDS, **options}

        def compute_all():
            pieces = pieces_in(tmp_path / "scores", **options)
            return [pieces.compute(number) for number in pieces.begin()]

        with pytest.raises(error, match=match):
            compute_all()

    refused(row("pieces-call"), call="predict")
    refused(row("pieces-test"), test=None)
    refused(row("pieces-name"), test="tests.records:nothing")
    refused(row("pieces-count"), num_examples=None)
    refused(row("pieces-range"), read="tests.records:read_too_few")
    refused(row("pieces-form"), read="tests.records:read_another_form")
    refused("should not exceed", num_examples=3)
    plain = {"factory": "tests.records:make_tracin", "read": None}
    monkeypatch.setattr(
        records,
        "make_tracin",
        lambda: kt.RepresenterPoints(
            scoring_worker.build(), index_worker.TRAIN, verbose=0
        ),
    )
    refused(row("pieces-method"), TypeError, **plain)
    monkeypatch.setattr(
        records,
        "make_tracin",
        lambda: index_worker.tracin(inputs).among([1, 2]),
    )
    refused(row("pieces-among"), **plain)
    monkeypatch.undo()


def test_a_process_of_a_cluster_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", processes.tf_config(0, 2, 20_000))
    with pytest.raises(ValueError, match=row("pieces-cluster")):
        pieces_in(tmp_path).begin()


def test_a_beam_pipeline_makes_the_same_scores(expected, tmp_path):
    beam = pytest.importorskip(
        "apache_beam", reason="Apache Beam has an environment of its own."
    )
    from keras_tracin.beam import ComputeScores

    for call in CALLS:
        options = dict(records.OF_RECORDS)
        if call != "self_influence":
            options["test"] = "tests.records:queries"
        if call == "top_k":
            options["k"] = 4
        for runner in records.RUNNERS:
            out = tmp_path / call / "result.npz"
            with beam.Pipeline(runner=runner) as pipeline:
                _ = (
                    pipeline
                    | ComputeScores(call, directory=tmp_path / call, **options)
                    | beam.Map(lambda result, out=out: result.save(out))
                )
            kind = {"top_k": kt.TopK, "self_influence": kt.SelfInfluence}
            result = kind.get(call, kt.Attribution).load(out)
            assert_same(result, expected[call])
