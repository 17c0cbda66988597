"""Which training examples suspects contradict, as docs/mislabeled.md has it."""

import re

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.evaluation import flip_labels
from tests.error_rows import row
from tests.points import CROSSENTROPY
from tests.source_tree import ROOT

N = 120


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the recipe of the page needs: three clouds, a tenth wrong."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, N)
    x = rng.normal(scale=0.4, size=[N, 3]) + 1.5 * np.eye(3)[right]
    y = flip_labels(right, 0.1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, name="logits")]
    )
    model.compile(keras.optimizers.SGD(0.3), CROSSENTROPY)
    run = tmp_path_factory.mktemp("run") / "a"
    recorder = kt.TracInCheckpoint(run)
    model.fit(x, y, batch_size=20, epochs=3, verbose=0, callbacks=[recorder])
    issues = kt.find_label_issues(model, (x, y), run, number=12, verbose=0)
    return {**globals(), **locals()}


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_opponents_have_the_label_that_is_right(names):
    page = (ROOT / "docs" / "mislabeled.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(
        r"```python\n(influence = [^`]*explain[^`]*)```", page
    )
    exec(compile(recipe, "docs/mislabeled.md", "exec"), names)
    top, issues, right = names["top"], names["issues"], names["right"]
    assert top.query_ids.tolist() == issues.issue_ids[:10].tolist()
    is_wrong = issues.given_labels[:10] != right[top.query_ids]
    assert is_wrong.sum() >= 8
    opponents = names["y"][top.opponents.ids][is_wrong]
    assert (opponents == right[top.query_ids][is_wrong, None]).mean() > 0.8
    assert (top.opponents.scores < 0).all()


def test_all_issues_are_explained_by_any_method_and_ids(names):
    issues, model = names["issues"], names["model"]
    ids = np.array([f"n{i:03}" for i in range(N)])
    train = kt.with_ids((names["x"], names["y"]), ids).shuffle(N).batch(50)
    named = kt.LabelIssues(
        *(ids[issues.ids], issues.scores, 4, issues.method),
    )
    method = kt.RepresenterPoints(model, train, l2=0.1, verbose=0)
    top = named.explain(method, train, 2, verbose=0)
    assert top.query_ids.tolist() == named.issue_ids.tolist()
    assert top.proponents.ids.shape == (4, 2)


def test_where_nothing_is_an_issue_a_count_is_needed(names):
    issues = kt.LabelIssues(np.arange(3), np.arange(3), 0, "loss")
    for count in (None, 0, -1):
        with pytest.raises(ValueError, match=row("explain-count")):
            issues.explain(names["model"], (names["x"],), count=count)
