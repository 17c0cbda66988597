"""Figures of queries find examples, by ids, in data as `fit` takes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin import plots
from tests.error_rows import row
from tests.plots.helpers import rows_of, top_of

IMAGES = np.arange(6 * 4 * 4, dtype="float32").reshape(6, 4, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])
NAMES = ["zero", "one", "two"]
TOP = top_of([[4], [1], [5]], [[3], [0], [2]], query_ids=np.arange(3))
TRAIN, TEST = (IMAGES, LABELS), (IMAGES[:3] + 100, LABELS[:3])


def shown(figure):
    """`[(value of the first pixel, caption)]` of the images, row by row."""
    queries = list(figure.subfigs[0].axes)
    groups = [group.axes for group in figure.subfigs]
    cells = []
    for i in range(len(queries)):
        for group in groups:
            width = len(group) // len(queries)
            cells += group[i * width : (i + 1) * width]
    return [
        (int(cell.images[0].get_array()[0, 0]), cell.get_xlabel())
        for cell in cells
    ]


def expected(rows, names=LABELS):
    cells = []
    for at in rows:
        query, up, down = (
            at,
            TOP.proponents.ids[at, 0],
            TOP.opponents.ids[at, 0],
        )
        cells += [
            (100 + 16 * query, str(names[query])),
            (16 * up, f"{names[up]}\n+0.5"),
            (16 * down, f"{names[down]}\n-0.5"),
        ]
    return cells


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, at):
        part = slice(2 * at, 2 * at + 2)
        return {"photo": IMAGES[part]}, LABELS[part]


@pytest.mark.parametrize(
    "train",
    [
        TRAIN,
        tf.data.Dataset.from_tensor_slices(TRAIN).batch(4),
        kt.with_ids(TRAIN).shuffle(6).batch(4),
        Batches(),
        (
            {
                "photo": IMAGES,
                "age": np.arange(6),
                "name": np.array([*"abcdef"]),
            },
            tf.one_hot(LABELS, 3),
        ),
    ],
    ids=["arrays", "dataset", "ids", "PyDataset", "dict"],
)
def test_images_and_labels_come_from_data_as_fit_takes_them(train):
    figure = plots.proponents_and_opponents(TOP, TEST, train)
    assert shown(figure) == expected([0, 1, 2])


@pytest.mark.parametrize(
    ("queries", "rows"), [(2, [0, 1]), ([2, 0], [2, 0]), (np.array([1]), [1])]
)
def test_some_queries_are_chosen_by_number_or_by_id(queries, rows):
    figure = plots.proponents_and_opponents(TOP, TEST, TRAIN, queries=queries)
    assert shown(figure) == expected(rows)


def test_images_of_the_chosen_queries_are_enough():
    figure = plots.proponents_and_opponents(
        TOP,
        TEST[0][[2, 0]],
        TRAIN,
        queries=[2, 0],
        query_labels=["two", "zero"],
    )
    cells = shown(figure)
    assert [cells[0], cells[3]] == [(132, "two"), (100, "zero")]


def test_attached_ids_find_the_queries_whatever_their_order():
    top = top_of([[4], [1]], [[3], [0]], query_ids=["b", "a"])
    test = kt.with_ids(TEST, ["a", "b", "c"]).shuffle(3).batch(2)
    cells = shown(plots.proponents_and_opponents(top, test, IMAGES))
    assert [cells[0], cells[3]] == [(116, "1"), (100, "0")]


def test_classes_are_named_and_labels_given_by_id():
    figure = plots.proponents_and_opponents(TOP, TEST, TRAIN, class_names=NAMES)
    assert shown(figure) == expected([0, 1, 2], [NAMES[y] for y in LABELS])
    by_id = dict(enumerate("abcdef"))
    figure = plots.proponents_and_opponents(
        TOP,
        TEST,
        kt.with_ids(TRAIN).shuffle(6).batch(3),
        query_labels=by_id,
        train_labels=by_id,
    )
    assert shown(figure) == expected([0, 1, 2], "abcdef")


def test_an_attribution_is_ranked_on_the_way():
    scores = kt.Attribution(
        np.array([[0.1, 0.5, -0.5, 0.2]]), np.arange(1), np.arange(4)
    )
    figure = plots.proponents_and_opponents(scores, TEST[0][:1], TRAIN, k=1)
    assert shown(figure)[1:] == [(16, "1\n+0.5"), (32, "2\n-0.5")]


def test_of_several_images_one_is_named():
    x = {"left": IMAGES, "right": IMAGES + 50}
    options = {"train_images": (x, LABELS), "query_images": TEST}
    figure = plots.proponents_and_opponents(TOP, **options, input_name="right")
    assert shown(figure)[1][0] == 16 * 4 + 50
    with pytest.raises(ValueError, match=row("figure-inputs", "'left'")):
        plots.proponents_and_opponents(TOP, **options)
    with pytest.raises(ValueError, match=row("figure-input-name", "'both'")):
        plots.proponents_and_opponents(TOP, **options, input_name="both")


def test_a_grid_is_limited_and_says_so():
    figure = plots.proponents_and_opponents(
        rows_of(12, m=25), np.zeros((25, 4, 4)), np.zeros((12, 4, 4))
    )
    assert max(figure.get_size_inches()) < 30
    note = figure.texts[-1].get_text()
    assert note.startswith("20 of 25 queries")
    assert "10 of 12 on each side; more by k=" in note
    more = plots.proponents_and_opponents(
        rows_of(12, m=25),
        np.zeros((25, 4, 4)),
        np.zeros((12, 4, 4)),
        queries=25,
        k=12,
    )
    assert len(more.axes) == 25 * 25
    assert not more.texts


def test_long_labels_and_paths_stay_below_their_image():
    labels = [
        "MeanOfTransportation",
        "flowers/roses/12345678.jpg",
        "a means of transportation by water and air",
        "7 (7)\nTracIn",
        *"ab",
    ]
    figure = plots.proponents_and_opponents(
        TOP, TEST, TRAIN, query_labels=labels[:3], train_labels=labels
    )
    captions = [caption.split("\n") for _, caption in shown(figure)]
    assert captions[0][0].startswith("MeanOfTr")
    assert captions[0][0].endswith("…")
    assert captions[3][0].startswith("…")
    assert captions[3][0].endswith("5678.jpg")
    assert captions[6] == ["a means of", "transportation by", "water and air"]
    assert captions[2] == ["7 (7)", "TracIn", "-0.5"]
    assert max(map(len, captions)) == 3


def test_texts_and_values_of_all_inputs_stand_in_one_row():
    x = {
        "title": np.array(["t0", "t1", "t2", "t3", "t4", "t5"]),
        "sizes": np.full((6, 2), 0.5),
        "photo": IMAGES,
    }
    first = {name: values[:3] for name, values in x.items()}
    figure = plots.text_table(TOP, (first, LABELS[:3]), (x, LABELS))
    texts = {text.get_text() for text in figure.texts}
    assert {"sizes: 0.5, 0.5 · title: t4", "1"} <= texts
    with pytest.raises(ValueError, match=row("figure-images")):
        plots.text_table(TOP, TEST, TRAIN)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (row("figure-queries"), {"query_images": (IMAGES[:2], LABELS[:2])}),
        (row("figure-queries"), {"query_images": TRAIN}),
        (
            row("figure-queries"),
            {"query_images": tf.data.Dataset.from_tensors(TRAIN)},
        ),
        (row("figure-queries"), {"query_images": IMAGES[:1]}),
        (row("figure-queries"), {"query_images": IMAGES[:1], "queries": 2}),
        (row("figure-chosen"), {"queries": [0, 9]}),
        (row("figure-number"), {"queries": 0}),
        (row("figure-number"), {"queries": [True, False, True]}),
        (row("figure-number"), {"queries": []}),
        (row("figure-k"), {"k": 2}),
        (row("figure-class-names"), {"class_names": ["zero"]}),
        (
            row("figure-by-id"),
            {
                "train_images": kt.with_ids(TRAIN).batch(2),
                "train_labels": LABELS,
            },
        ),
        (row("figure-lacks"), {"is_mislabeled": {4: True}}),
        (
            row("figure-train-ids"),
            {"train_images": Batches(), "train_ids": np.arange(6)},
        ),
    ],
)
def test_data_that_do_not_fit_the_result_are_refused(message, changes):
    arguments = {"query_images": TEST, "train_images": TRAIN} | changes
    with pytest.raises(ValueError, match=message):
        plots.proponents_and_opponents(TOP, **arguments)


@pytest.mark.parametrize("figure", ["proponents_and_opponents", "text_table"])
def test_results_without_queries_are_refused(figure):
    for result in (kt.SelfInfluence(np.ones(6), np.arange(6)), TOP.proponents):
        with pytest.raises(TypeError, match=row("figure-result")):
            getattr(plots, figure)(result, TEST, TRAIN)
