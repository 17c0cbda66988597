"""From results and data to a page: `write_html`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.report.examples import Shown, read
from keras_tracin.report.labels import Classes
from keras_tracin.report.page import build
from keras_tracin.report.rendering import KINDS
from keras_tracin.results import SelfInfluence, TopK
from keras_tracin.storage.files import written_whole


def write_html(
    path: str | os.PathLike,
    *,
    train: Any,
    test: Any = None,
    top_k: TopK | None = None,
    self_influence: SelfInfluence | None = None,
    max_suspects: int = 1_000,
    title: str = "Training data attribution",
    class_names: Any = None,
    feature_names: Any = None,
    train_predictions: Any = None,
    test_predictions: Any = None,
    render: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Writes a page to browse queries and to review suspected labels.

    The page shows each query of `top_k` with its proponents and opponents,
    and the training examples of highest self-influence one by one, to be
    marked as right, wrong or to be removed. Marks are kept by the browser and
    exported as CSV. It is one file with everything in it, data included, that
    works without a network.

    `train` and `test` are what is shown, which need not be what the model was
    given: only the ids must be the same. So pass texts in place of tokens,
    images as they were before normalisation, features in their own units.

    Example:
    ```python
    kt.report.write_html(
        "report.html",
        train=(x_train, y_train),
        test=(x_test, y_test),
        top_k=tracin.top_k((x_test, y_test), k=8),
        self_influence=tracin.self_influence(),
        class_names=["cat", "dog"],
        train_predictions=model.predict(x_train),
    )
    ```

    Args:
        path: of the file.
        train: the training examples, as `model.fit` takes them. Images have
            the shape `[n, h, w]` or `[n, h, w, 1, 3 or 4]`: grey ones are
            drawn from black, the lowest value, to white, others have integers
            from 0 to 255 or floats from 0 to 1. Strings `[n]` are texts.
            Anything else is a row of values. A dict or tuple of inputs is
            shown input by input.
        test: the queries, likewise. Without them, queries have only an id.
        top_k: what `top_k` returned.
        self_influence: what `self_influence()` returned, or any other
            suspicion, such as the loss: `kt.SelfInfluence(scores, ids)`.
        max_suspects: how many of the highest scores to list.
        title: of the page.
        class_names: names of the classes 0, 1, …; where labels are strings,
            all their values.
        feature_names: names of the values in a row.
        train_predictions: what the model says of the training examples, to
            stand beside their labels: classes, or scores `[n, classes]`, in
            reading order; a dict by id where `with_ids` attached ids.
        test_predictions: of the queries, likewise.
        render: "image", "text" or "row" in place of "auto".
        overwrite: whether to replace a file.

    Returns:
        The path.

    Raises:
        FileExistsError: if there is a file and `overwrite` is false.
        ImportError: if jinja2 is not installed, or, for images, Pillow.
        TypeError: if results are of another type.
        ValueError: if there is nothing to show, if the data lacks an id that
            results have, if scores are not finite, if names, predictions or
            shapes do not fit, or if colours are out of range.
    """
    path = Path(path)
    _check(top_k, self_influence, max_suspects, render)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists. Pass overwrite=True to replace it, or choose "
            "another path."
        )
    suspects = self_influence and _first(self_influence, max_suspects)
    train_ids = _distinct(
        *([top_k.proponents.ids, top_k.opponents.ids] if top_k else []),
        *([suspects.ids] if suspects else []),
    )
    options = render, feature_names
    shown = [read(train, "train", train_ids, train_predictions, *options)]
    if test is not None and top_k is not None:
        query_ids = _distinct(top_k.query_ids)
        shown.append(read(test, "test", query_ids, test_predictions, *options))
    data: dict[str, Any] = {
        "classes": _name_labels(shown, class_names),
        "is_open": class_names is None,  # there may be more classes
        "sets": {each.name: each.columns for each in shown},
        "queries": top_k and _queries(top_k, shown),
        "suspects": None,
    }
    if self_influence is not None and suspects is not None:
        data["suspects"] = {
            "examples": _places(suspects.ids, train_ids),
            "scores": _numbers(suspects.scores),
            "total": len(self_influence),
        }
    html = build(title, data)
    with written_whole(path) as unfinished:
        unfinished.write_text(html, encoding="utf-8", errors="replace")
    return path


def _check(
    top_k: Any, self_influence: Any, max_suspects: int, render: str
) -> None:
    """Raises what `write_html` does for arguments that cannot be right."""
    _check_result(
        "top_k",
        top_k,
        TopK,
        "`scores.top_k(k)` makes one of an Attribution",
    )
    _check_result(
        "self_influence",
        self_influence,
        SelfInfluence,
        "`kt.SelfInfluence(scores, ids)` makes one of arrays",
    )
    if top_k is None and self_influence is None:
        raise ValueError(
            "There is nothing to show. Pass `top_k`, `self_influence` or both."
        )
    if isinstance(max_suspects, bool) or max_suspects < 1:
        raise ValueError(
            "`max_suspects` should be a whole number of 1 or more. Received: "
            f"{max_suspects!r}."
        )
    if render not in ("auto", *KINDS):
        raise ValueError(
            f"`render` should be 'auto' or one of {list(KINDS)}. Received: "
            f"{render!r}."
        )


def _check_result(name: str, value: Any, kind: type, remedy: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(
            f"`{name}` should be a {kind.__name__}. Received: "
            f"{type(value).__name__}. {remedy}."
        )
    if isinstance(value, TopK | SelfInfluence) and not len(value):
        raise ValueError(f"`{name}` should not be empty.")


def _first(self_influence: SelfInfluence, count: int) -> SelfInfluence:
    """The `count` highest scores, the highest first."""
    ranking = self_influence.ranking()
    return SelfInfluence(ranking.scores[:count], ranking.ids[:count])


def _distinct(*ids: np.ndarray) -> np.ndarray:
    """Each id once, sorted."""
    return np.unique(np.concatenate([each.reshape(-1) for each in ids]))


def _places(ids: np.ndarray, known: np.ndarray) -> list:
    """Where each of `ids` is in `known`, which is sorted and has them all."""
    return np.searchsorted(known, ids).tolist()


def _numbers(scores: np.ndarray) -> list:
    """Scores with as many digits as tell them apart.

    Raises:
        ValueError: if one is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("Scores should be finite. Received NaN or infinity.")
    # By way of strings: 0.1 in single precision is 0.1, and not 0.100000001.
    return scores.astype(str).astype(np.float64).tolist()


def _queries(top_k: TopK, shown: list[Shown]) -> dict[str, Any]:
    train, *tests = shown
    sides = ("proponents", top_k.proponents), ("opponents", top_k.opponents)
    return {
        "ids": [str(one) for one in top_k.query_ids.tolist()],
        "examples": _places(top_k.query_ids, tests[0].ids) if tests else None,
        **{
            side: {
                "examples": _places(ranking.ids, train.ids),
                "scores": _numbers(ranking.scores),
            }
            for side, ranking in sides
        },
    }


def _name_labels(shown: list[Shown], class_names: Any) -> list[list[str]]:
    """Adds ids, labels and predictions to the columns; returns the classes.

    Each class is a pair of its value, which labels have, and its name.
    """
    predictions = [each.predictions for each in shown if each.predictions]
    classes = Classes.of(
        [each.labels for each in shown] + [each.values for each in predictions],
        class_names,
        max((each.num_classes for each in predictions), default=0),
    )
    for each in shown:
        # As strings, since a browser's numbers end at 2^53.
        each.columns["ids"] = [str(one) for one in each.ids.tolist()]
        each.columns["labels"] = classes.codes(each.labels)
        if each.predictions is not None:
            each.columns["predicted"] = classes.codes(each.predictions.values)
            if each.predictions.confidence is not None:
                each.columns["confidence"] = np.round(
                    each.predictions.confidence.astype(np.float64), 4
                ).tolist()
    values = [str(value) for value in classes.values]
    return [list(pair) for pair in zip(values, classes.names, strict=True)]
