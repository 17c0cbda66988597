"""Decisions of a reviewer, applied to whatever `fit` takes."""

import csv

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.error_rows import row

N = 12
X = np.arange(2 * N, dtype="float32").reshape(N, 2)
Y = np.arange(N) % 3
REMOVED, RELABELLED = [7, 2], {4: 2, 11: 0}


def written(folder, rows):
    """A file of decisions, as the page exports them."""
    path = folder / "report-decisions.csv"
    names = ["id", "given_label", "decision", "new_label", "score"]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        table.writerows([*row, "0.5"] for row in rows)
    return path


@pytest.fixture
def decided(tmp_path):
    """Writes the decisions of this module, for labels put in words."""

    def write(given, new=str, ids=range(N)):
        rows = [
            (ids[3], given[3], "keep", ""),
            (ids[5], given[5], "unsure", ""),
        ]
        rows += [(ids[i], given[i], "remove", "") for i in REMOVED]
        rows += [
            (ids[i], given[i], "relabel", new(label))
            for i, label in RELABELLED.items()
        ]
        return written(tmp_path, rows)

    return write


def expected(make=np.asarray):
    """Features and class indices after the decisions."""
    y = Y.copy()
    for place, label in RELABELLED.items():
        y[place] = label
    kept = np.delete(np.arange(N), REMOVED)
    return X[kept], y[kept]


def read(dataset):
    """Ids and parts of a batched dataset, by id."""
    batches = [
        tf.nest.map_structure(np.asarray, batch) for batch in dataset.paired
    ]
    joined = tf.nest.map_structure(lambda *p: np.concatenate(p), *batches)
    order = np.argsort(joined[0])
    return tf.nest.map_structure(lambda part: part[order], joined)


def test_arrays_come_back_without_what_was_removed(decided):
    weights = np.linspace(1, 2, N)
    before = Y.copy()
    x, y, sample_weight = kt.report.apply_decisions((X, Y, weights), decided(Y))
    np.testing.assert_array_equal(x, expected()[0])
    np.testing.assert_array_equal(y, expected()[1])
    assert y.dtype == Y.dtype
    np.testing.assert_array_equal(sample_weight, np.delete(weights, REMOVED))
    np.testing.assert_array_equal(Y, before)


def test_labels_keep_their_form(decided):
    features, classes = expected()
    eye, words = np.eye(3, dtype="float32"), np.array(["ant", "bee", "a wasp"])
    soft = 0.8 * eye[Y] + 0.1 * (1 - eye[Y])
    soft_after = np.delete(soft, REMOVED, axis=0)
    for place, label in RELABELLED.items():
        soft_after[place - sum(r < place for r in REMOVED)] = eye[label]

    def quarter(label):
        return str(label / 4)

    for y, given, new, after in [
        (Y[:, None].astype("uint8"), Y, str, classes[:, None]),
        (Y.astype("float32"), Y, str, classes),
        (Y / 4, [f"{y / 4:.6g}" for y in Y], quarter, classes / 4),
        (eye[Y], Y, str, eye[classes]),
        (soft, Y, str, soft_after),
        (words[Y], words[Y], words.__getitem__, words[classes]),
        (words[Y].astype("S"), words[Y], words.__getitem__, None),
        (words[Y].astype(object), words[Y], words.__getitem__, words[classes]),
        (tf.constant(words[Y]), words[Y], words.__getitem__, None),
        ({"out": Y}, Y, str, classes),
        (tf.constant(Y), Y, str, classes),
    ]:
        got_x, got = kt.report.apply_decisions((X, y), decided(given, new))
        np.testing.assert_array_equal(got_x, features)
        got = np.asarray(got["out"] if isinstance(got, dict) else got)
        wanted = words[classes].astype("S") if after is None else after
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_soft_binary_labels_are_decided_on_as_classes(tmp_path, shape):
    y = np.array([0.1, 0.9, 0.9, 0.1], "float32").reshape(shape)
    rows = [
        (0, "0", "relabel", "1"),
        (1, "1", "keep", ""),
        (2, "1", "remove", ""),
    ]
    _, after = kt.report.apply_decisions((X[:4], y), written(tmp_path, rows))
    wanted = np.array([1, 0.9, 0.1], "float32").reshape(shape)
    np.testing.assert_array_equal(after, wanted)
    again = written(tmp_path, [(0, "1", "keep", "")])
    with pytest.raises(ValueError, match=row("decision-other-labels", "'0.1")):
        kt.report.apply_decisions((X[:4], y), again)


def test_a_longer_word_is_not_cut(tmp_path):
    y = np.array(["ant", "bee"])
    path = written(tmp_path, [(1, "bee", "relabel", "mosquito")])
    _, changed = kt.report.apply_decisions((X[:2], y), path)
    assert changed.tolist() == ["ant", "mosquito"]


def test_sets_of_labels_are_read_by_their_names(tmp_path):
    y = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], "float32")
    after = [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    by_place = [
        (0, "0, 2", "relabel", "1, 2"),
        (1, "(none)", "relabel", "0"),
        (2, "1", "relabel", "(none)"),
    ]
    data = X[:3], y
    _, changed = kt.report.apply_decisions(data, written(tmp_path, by_place))
    np.testing.assert_array_equal(changed, after)
    names = ["sea", "sky", "sand"]
    by_name = [
        (0, "sea, sand", "relabel", "sky, sand"),
        (1, "(none)", "relabel", "sea"),
        (2, "sky", "relabel", "(none)"),
    ]
    _, changed = kt.report.apply_decisions(
        data, written(tmp_path, by_name), class_names=names
    )
    np.testing.assert_array_equal(changed, after)
    # One that has one label, which might be a class.
    _, changed = kt.report.apply_decisions(
        data, written(tmp_path, [(2, "1", "relabel", "0, 1")])
    )
    np.testing.assert_array_equal(changed[2], [1, 1, 0])
    path = written(tmp_path, [(2, "sky", "relabel", "snow")])
    with pytest.raises(ValueError, match=row("decision-new-label", "snow")):
        kt.report.apply_decisions(data, path, class_names=names)


@pytest.mark.parametrize("form", ["ids", "positions", "one by one"])
def test_a_dataset_gives_a_dataset_with_ids(decided, form):
    names = np.array([f"n{(7 * i) % N:02}" for i in range(N)])
    ids = range(N) if form == "positions" else names
    data = {
        "ids": lambda: kt.with_ids((X, Y), ids=names).shuffle(9).batch(5),
        "positions": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(
            5
        ),
        "one by one": lambda: kt.with_ids((X, Y), ids=names),
    }[form]()
    cleaned = kt.report.apply_decisions(data, decided(Y, ids=ids))
    if form == "one by one":
        cleaned = cleaned.batch(4)
    got_ids, (x, y) = read(cleaned)
    kept = np.delete(np.arange(N), REMOVED)
    order = np.argsort(np.asarray(ids)[kept])
    names_of_kept = np.asarray(ids)[kept][order].tolist()
    decoded = [i.decode() if isinstance(i, bytes) else i for i in got_ids]
    assert decoded == names_of_kept
    np.testing.assert_array_equal(x, expected()[0][order])
    np.testing.assert_array_equal(y, expected()[1][order])


def test_labels_of_a_dataset_that_are_one_hot(decided):
    eye = np.eye(3, dtype="float32")
    data = tf.data.Dataset.from_tensor_slices((X, eye[Y])).batch(5)
    _, (_, y) = read(kt.report.apply_decisions(data, decided(Y)))
    np.testing.assert_array_equal(y, eye[expected()[1]])


def test_the_index_of_a_table_is_what_decisions_name(decided):
    index = [f"row {i}" for i in range(N)]
    table = pd.DataFrame(X, index, ["a", "b"])
    labels = pd.Series(Y, index)
    x, y = kt.report.apply_decisions((table, labels), decided(Y, ids=index))
    assert x.index.tolist() == np.delete(index, REMOVED).tolist()
    assert y.index.tolist() == x.index.tolist()
    np.testing.assert_array_equal(y, expected()[1])
    np.testing.assert_array_equal(labels, Y)


def test_a_pydataset_is_read_whole(decided):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, at):
            part = slice(4 * at, 4 * at + 4)
            return X[part], Y[part]

    x, y = kt.report.apply_decisions(Batches(), decided(Y))
    np.testing.assert_array_equal(x, expected()[0])
    np.testing.assert_array_equal(y, expected()[1])


def test_without_labels_examples_can_be_removed(tmp_path):
    path = written(tmp_path, [(3, "no label", "remove", "")])
    x = kt.report.apply_decisions(X, path)
    np.testing.assert_array_equal(x, np.delete(X, 3, axis=0))
    path = written(tmp_path, [(3, "no label", "relabel", "2")])
    with pytest.raises(ValueError, match=row("decision-no-class")):
        kt.report.apply_decisions(X, path)


def test_no_decisions_leave_everything(tmp_path):
    x, y = kt.report.apply_decisions((X, Y), written(tmp_path, []))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_decisions_are_applied_once_and_to_their_own_data(tmp_path, decided):
    path = decided(Y)
    other = Y.copy()
    other[3] = 2
    with pytest.raises(ValueError, match=row("decision-other-labels", "id 3")):
        kt.report.apply_decisions((X, other), path)
    path = written(tmp_path, [(4, Y[4], "relabel", 2)])
    once = kt.report.apply_decisions((X, Y), path)
    with pytest.raises(ValueError, match=row("decision-other-labels")):
        kt.report.apply_decisions(once, path)
    path = written(tmp_path, [(99, 0, "remove", "")])
    with pytest.raises(ValueError, match=row("decision-id", "'99'")):
        kt.report.apply_decisions((X, Y), path)


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("id;given_label;decision;new_label\n1;0;keep;\n")
    with pytest.raises(ValueError, match=row("decision-columns")):
        kt.report.apply_decisions((X, Y), path)
    path.write_text("")
    with pytest.raises(ValueError, match=row("decision-columns", "no columns")):
        kt.report.apply_decisions((X, Y), path)
    with pytest.raises(ValueError, match=row("decision-word", "'drop'")):
        kt.report.apply_decisions(
            (X, Y), written(tmp_path, [(1, 1, "drop", "")])
        )
    twice = [(1, 1, "keep", ""), (1, 1, "remove", "")]
    with pytest.raises(ValueError, match=row("decision-twice")):
        kt.report.apply_decisions((X, Y), written(tmp_path, twice))
    everything = [(i, Y[i], "remove", "") for i in range(N)]
    with pytest.raises(ValueError, match=row("decision-all")):
        kt.report.apply_decisions((X, Y), written(tmp_path, everything))
    with pytest.raises(FileNotFoundError):
        kt.report.apply_decisions((X, Y), tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("y", "given", "new"),
    [
        (Y, 1, "bee"),
        (Y, 1, "1.5"),
        (Y.astype("uint8"), 1, "300"),
        (100 * Y, 100, "200.5"),
        (Y, 1, str(2**70)),
        (np.eye(3)[Y], 1, "3"),
        (np.eye(3)[Y], 1, ""),
        (Y, 1, "nan"),
    ],
)
def test_a_label_that_the_data_cannot_have_is_refused(tmp_path, y, given, new):
    path = written(tmp_path, [(1, given, "relabel", new)])
    with pytest.raises(ValueError, match=row("decision-new-label")):
        kt.report.apply_decisions((X, y), path)


def test_whole_numbers_are_taken_exactly(tmp_path):
    y = np.full(N, 2**53 + 1)
    path = written(tmp_path, [(1, y[1], "relabel", 2**53 + 3)])
    _, changed = kt.report.apply_decisions((X, y), path)
    assert changed[1] == 2**53 + 3


def test_rows_of_values_on_the_page_need_not_be_classes(tmp_path):
    y = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    path = written(tmp_path, [(1, "0 1 0", "remove", "")])
    x, _ = kt.report.apply_decisions((X[:3], y), path)
    np.testing.assert_array_equal(x, X[[0, 2]])


def test_names_that_could_be_other_labels_are_refused(tmp_path):
    y = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    path = written(tmp_path, [(1, "1", "relabel", "2")])
    with pytest.raises(ValueError, match=row("decision-two-readings", "'2'")):
        kt.report.apply_decisions((X[:3], y), path, class_names=[2, 1, 0])
    for names in (["a", "b", "a, b"], ["a", "b", "a"]):
        path = written(tmp_path, [(1, "b", "relabel", "a, b")])
        with pytest.raises(ValueError, match=row("decision-names")):
            kt.report.apply_decisions((X[:3], y), path, class_names=names)


def test_categories_of_pandas_are_kept(tmp_path):
    y = pd.Series(pd.Categorical(["ant", "bee", "ant"]))
    path = written(tmp_path, [(1, "bee", "relabel", "ant")])
    _, changed = kt.report.apply_decisions((X[:3], y), path)
    assert changed.tolist() == ["ant"] * 3
    assert changed.dtype == y.dtype
    path = written(tmp_path, [(1, "bee", "relabel", "wasp")])
    with pytest.raises(ValueError, match=row("decision-category", "wasp")):
        kt.report.apply_decisions((X[:3], y), path)
    wider = y.cat.add_categories(["wasp"])
    _, changed = kt.report.apply_decisions((X[:3], wider), path)
    assert changed.tolist() == ["ant", "wasp", "ant"]


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_bytes("id,given_label\n1,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=row("decision-encoding")):
        kt.report.apply_decisions((X, Y), path)
