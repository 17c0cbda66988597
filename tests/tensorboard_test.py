import json
import sys
import time
import urllib.parse
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard import default, program

import keras_tracin as kt
from tests.error_rows import row

IMAGES = np.linspace(0, 1, 5 * 4 * 4).reshape(5, 4, 4)
QUERIES = np.linspace(0, 2, 2 * 4 * 4).reshape(2, 4, 4)
UP, DOWN = np.array([[0.5, 0.2]] * 2), np.array([[-0.5, -0.2]] * 2)
TOP = kt.TopK(
    kt.Ranking(np.array([[4, 1], [0, 2]]), UP),
    kt.Ranking(np.array([[3, 0], [1, 4]]), DOWN),
    np.array([0, 1]),
)
SCORES = np.array([0.0, 1e-3, 1.0, 10.0, 1000.0])
OWN = kt.SelfInfluence(SCORES, np.arange(5))


def checkpoint(epoch):
    return kt.Checkpoint(
        step=None,
        epoch=epoch,
        learning_rate=0.1,
        learning_rate_sum=None,
        num_steps=None,
        logs={},
        path="weights.h5",
    )


def events(log_dir):
    """The run's values by tag: `{tag: [(step, array or bytes), …]}`."""
    found = {}
    for file in sorted((log_dir / "attribution").iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor)
                found.setdefault(value.tag, []).append((event.step, content))
    return found


def total(histogram):
    """How many values are in a histogram of rows (left, right, count)."""
    return histogram[:, 2].sum()


def test_histograms_hold_all_scores_and_logarithms_of_positive_ones(tmp_path):
    kt.tensorboard.write_self_influence(tmp_path, OWN, step=3)
    found = events(tmp_path)
    assert set(found) == {"self_influence", "self_influence/log10"}
    ((step, scores),) = found["self_influence"]
    assert step == 3
    assert total(scores) == 5
    assert (scores[0, 0], scores[-1, 1]) == (0, 1000)
    ((_, logarithms),) = found["self_influence/log10"]
    assert total(logarithms) == 4
    assert (logarithms[0, 0], logarithms[-1, 1]) == (-3, 3)


def test_groups_have_histograms_of_their_own(tmp_path):
    groups = ["cat", "dog", "cat", "dog", "dog"]
    kt.tensorboard.write_self_influence(tmp_path, OWN, step=0, groups=groups)
    found = events(tmp_path)
    ((_, cats),) = found["self_influence/log10/cat"]
    ((_, dogs),) = found["self_influence/log10/dog"]
    assert (total(cats), total(dogs)) == (1, 3)


def test_a_checkpoint_stands_where_keras_puts_its_epoch(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    logs = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    record = kt.TracInCheckpoint(tmp_path / "run")
    x = np.ones((2, 1), "float32")
    model.fit(x, x, epochs=2, verbose=0, callbacks=[logs, record])
    for each in kt.TrainingRun(tmp_path / "run"):
        kt.tensorboard.write_self_influence(tmp_path, OWN, step=each)

    ours = [step for step, _ in events(tmp_path)["self_influence"]]
    (file,) = (tmp_path / "train").iterdir()
    theirs = [
        event.step
        for record in tf.data.TFRecordDataset(str(file))
        for event in [tf.compat.v1.Event.FromString(record.numpy())]
        for value in event.summary.value
        if value.tag == "epoch_loss"
    ]
    assert ours == theirs == [0, 1]


def test_each_query_has_the_picture_that_plots_draws(tmp_path):
    kt.tensorboard.write_proponents(
        tmp_path,
        TOP,
        QUERIES,
        IMAGES,
        step=checkpoint(5),
        query_labels=["a", "b"],
    )
    found = events(tmp_path)
    assert set(found) == {"proponents/0", "proponents/1"}
    pictures = []
    for ((step, (width, height, png)),) in found.values():
        assert step == 4
        picture = tf.image.decode_png(png).numpy()
        assert picture.shape == (int(height), int(width), 3)
        assert picture.std() > 10, "something is drawn"
        pictures.append(png)
    assert pictures[0] != pictures[1]


def test_queries_beyond_the_first_are_left_out(tmp_path):
    kt.tensorboard.write_proponents(
        tmp_path, TOP, QUERIES, IMAGES, step=0, max_queries=1
    )
    assert set(events(tmp_path)) == {"proponents/0"}


def test_pictures_are_found_by_id_in_what_fit_takes(tmp_path):
    names, labels = np.array(list("abcde")), np.arange(5)
    top = kt.TopK(
        kt.Ranking(names[TOP.proponents.ids], UP),
        kt.Ranking(names[TOP.opponents.ids], DOWN),
        np.array(["p", "q"]),
    )
    train = kt.with_ids((IMAGES, labels), names).shuffle(5).batch(2)
    test = kt.with_ids((QUERIES, labels[:2]), ["p", "q"]).batch(2)
    kt.tensorboard.write_proponents(
        tmp_path / "data", top, test, train, step=0, queries=["q"]
    )
    kt.tensorboard.write_proponents(
        tmp_path / "arrays",
        top,
        QUERIES,
        IMAGES,
        step=0,
        query_labels=labels[:2],
        train_labels=labels,
        train_ids=names,
    )
    drawn, expected = (events(tmp_path / name) for name in ("data", "arrays"))
    assert set(drawn) == {"proponents/q"}
    (((_, picture),), ((_, other),)) = (
        pictures["proponents/q"] for pictures in (drawn, expected)
    )
    assert picture.tolist() == other.tolist()


def test_groups_may_be_given_by_id(tmp_path):
    groups = {4: "b", 3: "b", 2: "a", 1: "b", 0: "a"}
    kt.tensorboard.write_self_influence(tmp_path, OWN, step=0, groups=groups)
    ((_, of_a),) = events(tmp_path)["self_influence/log10/a"]
    assert total(of_a) == 1  # of 0 and 1


def test_any_figure_can_be_written(tmp_path):
    figure = kt.plots.recall_curve({"mine": [1, 2]}, [True, False])
    kt.tensorboard.write_figure(tmp_path, "recall", figure, step=7)
    (((step, _),),) = events(tmp_path).values()
    assert step == 7


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Asks a TensorBoard server that shows two checkpoints."""
    log_dir = tmp_path_factory.mktemp("logs")
    for step in (0, 1):
        kt.tensorboard.write_self_influence(log_dir, OWN, step=step)
        kt.tensorboard.write_proponents(
            log_dir, TOP, QUERIES, IMAGES, step=step
        )
    board = program.TensorBoard(plugins=default.get_plugins())
    options = ["--host=127.0.0.1", "--port=0", "--load_fast=false"]
    board.configure([None, f"--logdir={log_dir}", *options])
    address = board.launch()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(route, **arguments):
        query = urllib.parse.urlencode(arguments)
        url = f"{address}data/plugin/{route}?{query}"
        with opener.open(url, timeout=20) as answer:
            return answer.read()

    for _ in range(200):  # it reads the files in the background
        if json.loads(ask("images/tags")):
            break
        time.sleep(0.1)
    return ask


def test_tensorboard_shows_the_histograms(server):
    tags = json.loads(server("histograms/tags"))
    assert set(tags["attribution"]) == {
        "self_influence",
        "self_influence/log10",
    }
    histograms = json.loads(
        server("histograms/histograms", run="attribution", tag="self_influence")
    )
    assert [step for _, step, _ in histograms] == [0, 1]
    for _, _, buckets in histograms:
        assert sum(count for _, _, count in buckets) == 5


def test_tensorboard_shows_the_pictures(server):
    tags = json.loads(server("images/tags"))
    assert set(tags["attribution"]) == {"proponents/0", "proponents/1"}
    shown = json.loads(
        server("images/images", run="attribution", tag="proponents/0", sample=0)
    )
    assert [each["step"] for each in shown] == [0, 1]
    (key,) = urllib.parse.parse_qs(shown[0]["query"])["blob_key"]
    png = server("images/individualImage", blob_key=key)
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("scores", "groups", "message"),
    [
        ([], None, "Received: 0"),
        ([1.0, np.nan], None, "1 are NaN"),
        ([1.0, 2.0], ["a"], "a value for each score"),
        ([1.0, 2.0], {0: "a"}, row("figure-lacks", "[1]")),
    ],
)
def test_histograms_refuse_what_does_not_fit(tmp_path, scores, groups, message):
    own = kt.SelfInfluence(np.array(scores), np.arange(len(scores)))
    with pytest.raises(ValueError, match=message):
        kt.tensorboard.write_self_influence(
            tmp_path, own, step=0, groups=groups
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_images": QUERIES[:1]}, "`query_images` should have length 2"),
        ({"query_labels": ["a"]}, "`query_labels` should have length 2"),
        ({"train_images": IMAGES[:2]}, "name the id"),
        ({"max_queries": 0}, row("max-queries")),
    ],
)
def test_pictures_refuse_what_does_not_fit(tmp_path, changes, message):
    arguments = {"query_images": QUERIES, "train_images": IMAGES}
    with pytest.raises(ValueError, match=message):
        kt.tensorboard.write_proponents(
            tmp_path, TOP, **arguments | changes, step=0
        )
    assert not list(tmp_path.iterdir())


def test_without_tensorboard_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="the `tensorboard` extra"):
        kt.tensorboard.write_self_influence(tmp_path, OWN, step=0)
