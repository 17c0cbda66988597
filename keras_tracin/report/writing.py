"""Writes a page from results and data: `write_html`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.data.labels import label_values
from keras_tracin.labels import LabelIssues, TrainingDynamics
from keras_tracin.report.checks import check_no_predictions, check_results
from keras_tracin.report.examples import Shown, read
from keras_tracin.report.explained import Explained
from keras_tracin.report.labels import Classes
from keras_tracin.report.overview import counts_by_class, dynamics_map
from keras_tracin.report.page import build
from keras_tracin.report.positions import distinct, numbers, positions
from keras_tracin.report.suspects import Suspects
from keras_tracin.report.tokens import TokenViews
from keras_tracin.results import SelfInfluence, TokenInfluence, TopK
from keras_tracin.storage.files import written_whole


def write_html(
    path: str | os.PathLike,
    *,
    train: Any,
    test: Any = None,
    top_k: TopK | None = None,
    self_influence: SelfInfluence | None = None,
    label_issues: LabelIssues | None = None,
    explanation: TopK | None = None,
    neighbours: TopK | None = None,
    dynamics: TrainingDynamics | None = None,
    token_influence: TokenInfluence | None = None,
    tokenizer: Any = None,
    subwords: str = "auto",
    max_suspects: int = 1_000,
    title: str = "Training data attribution",
    class_names: Any = None,
    feature_names: Any = None,
    train_predictions: Any = None,
    test_predictions: Any = None,
    render: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Writes a page for browsing queries and reviewing suspected labels.

    The page shows each query of `top_k` with its proponents and opponents,
    and the training examples of highest self-influence, or whose labels are
    the most suspicious, one by one, to be marked as right, wrong or to be
    removed. Marks are kept by the browser and exported as CSV. It is one file
    with everything in it, data included, that works without a network.

    `train` and `test` are what is shown. They may differ from what the model
    was given, as long as the ids are the same: pass texts in place of tokens,
    images from before normalisation, features in their own units.

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
        path: path of the file.
        train: the training examples, as `model.fit` takes them, with labels
            or without. Images have the shape `[n, h, w]` or `[n, h, w, 1, 3 or
            4]`. Grey images are scaled from black, the lowest value, to white;
            others are from 0 to 255, or floats from 0 to 1. Strings
            `[n]` are texts. Anything else is a row of values. A dict or tuple
            of inputs is shown input by input.
        test: the queries, likewise. Without them, only ids of queries are
            shown.
        top_k: result of `top_k`.
        self_influence: result of `self_influence()`, or any other score by
            which to suspect labels, such as the loss:
            `kt.SelfInfluence(scores, ids)`.
        label_issues: result of `kt.find_label_issues`, in place of
            `self_influence`. Suggested labels are shown and offered first as
            the correction, and examples whose labels are estimated to be
            wrong are marked. Labels are those of the issues.
        explanation: result of `label_issues.explain(method, train)`, or
            `top_k` of other suspects as queries: beside each suspect stand the
            examples that its label contradicts, and those it agrees with.
        neighbours: the same with a method that tells what is near,
            `evaluation.EmbeddingSimilarity`: its proponents stand beside the
            suspect.
        dynamics: result of `kt.training_dynamics`, for a map of the training
            on which suspects can be chosen.
        token_influence: result of `token_influence` for queries and examples
            of `top_k`: their texts are shown with the tokens coloured by their
            shares of the score. `train` and `test` are then those that were
            scored, once they are preprocessed, of ids of tokens or of tokens
            as strings; queries may be texts.
        tokenizer: reads ids of tokens, as in `plots.token_table`: a tokenizer
            of KerasHub, a function of an id, a list of tokens, or a dict.
        subwords: how tokens make words, as in `plots.token_table`.
        max_suspects: number of highest scores to list.
        title: title of the page.
        class_names: names of the classes 0, 1, …; if labels are strings,
            all their values. Of several labels for each example, in
            `label_issues`, their names.
        feature_names: names of the values in a row; by default the columns of
            a pandas table.
        train_predictions: predictions for the training examples, shown beside
            their labels: classes, or scores `[n, classes]`, in reading order;
            a dict by id if `with_ids` attached ids.
        test_predictions: predictions for the queries, likewise.
        render: "image", "text" or "row" in place of "auto".
        overwrite: If true, an existing file is replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: if the file exists and `overwrite` is false.
        ImportError: if jinja2 is not installed, or, for images, Pillow.
        TypeError: if a result has another type.
        ValueError: if there is nothing to show, if the data lacks an id of the
            results or has other labels than `label_issues`, if scores are
            not finite, if names, predictions or shapes do not fit, if
            `token_influence` is of other queries, `explanation` of other
            examples, or `dynamics` without the suspects, or if colours are out
            of range.
    """
    path = Path(path)
    views = TokenViews.of(tokenizer, subwords, token_influence)
    results = {
        "top_k": top_k,
        "self_influence": self_influence,
        "label_issues": label_issues,
        "explanation": explanation,
        "neighbours": neighbours,
        "dynamics": dynamics,
        "token_influence": token_influence,
    }
    check_results(results, max_suspects, render)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists. Pass overwrite=True to replace it, or choose "
            "another path."
        )
    suspects = None
    if label_issues is not None:
        suspects = Suspects.from_label_issues(
            label_issues, max_suspects, class_names
        )
    elif self_influence is not None:
        suspects = Suspects.from_self_influence(self_influence, max_suspects)
    explained = None
    if suspects is not None:
        explained = Explained.of(explanation, neighbours, suspects.ids)
    predictions = train_predictions, test_predictions
    if suspects is not None and suspects.names is not None:
        class_names = None  # they are in the labels
        check_no_predictions(predictions)
    train_ids = distinct(
        *([top_k.proponents.ids, top_k.opponents.ids] if top_k else []),
        *([suspects.ids] if suspects else []),
        *(explained.ids if explained else []),
    )
    read_labels = suspects.read_labels if suspects else label_values
    options = render, feature_names, read_labels
    more = predictions[0], *options, views.train
    shown = [read(train, "train", train_ids, *more)]
    if suspects is not None:
        labels = suspects.labels(shown[0].ids, shown[0].labels)
        shown[0] = dataclasses.replace(shown[0], labels=labels)
    if test is not None and top_k is not None:
        query_ids = distinct(top_k.query_ids)
        more = predictions[1], *options, views.test
        shown.append(read(test, "test", query_ids, *more))
    suggested = None if suspects is None else suspects.suggested
    all_labels = [] if suspects is None else suspects.all_labels
    classes = _classes(shown, all_labels, class_names)
    for examples in shown:
        _add_labels(examples, classes)
    values = [str(value) for value in classes.values]
    data: dict[str, Any] = {
        "classes": list(map(list, zip(values, classes.names, strict=True))),
        "is_open": class_names is None,  # users may add classes
        "sets": {examples.name: examples.columns for examples in shown},
        "queries": top_k and _queries(top_k, shown),
        "shares": top_k and views.shares(top_k),
        "suspects": None,
    }
    if suspects is not None and explained is not None:
        data["suspects"] = suspects.as_json() | {
            "examples": positions(suspects.ids, train_ids),
            "scores": numbers(suspects.scores),
            "explained": explained.as_json(train_ids),
            "counts": suspects.issues
            and counts_by_class(suspects.issues, classes),
            "map": dynamics and dynamics_map(dynamics, train_ids, suspects.ids),
        }
        if suggested is not None:
            data["suspects"]["suggested"] = classes.codes(suggested)
    html = build(title, data)
    with written_whole(path) as unfinished:
        unfinished.write_text(html, encoding="utf-8", errors="replace")
    return path


def _queries(top_k: TopK, shown: list[Shown]) -> dict[str, Any]:
    train, *tests = shown
    sides = ("proponents", top_k.proponents), ("opponents", top_k.opponents)
    return {
        "ids": [str(query) for query in top_k.query_ids.tolist()],
        "examples": positions(top_k.query_ids, tests[0].ids) if tests else None,
        **{
            side: {
                "examples": positions(ranking.ids, train.ids),
                "scores": numbers(ranking.scores),
            }
            for side, ranking in sides
        },
    }


def _classes(
    shown: list[Shown], more_labels: list[np.ndarray], class_names: Any
) -> Classes:
    """The classes of labels, predictions and suggestions."""
    predictions = [
        examples.predictions for examples in shown if examples.predictions
    ]
    return Classes.from_labels(
        [examples.labels for examples in shown]
        + [prediction.values for prediction in predictions]
        + more_labels,
        class_names,
        max((p.num_classes for p in predictions), default=0),
    )


def _add_labels(examples: Shown, classes: Classes) -> None:
    """Adds ids, labels and predictions to the columns."""
    # As strings, since JavaScript's integers are exact only up to 2^53.
    examples.columns["ids"] = [str(id_) for id_ in examples.ids.tolist()]
    examples.columns["labels"] = classes.codes(examples.labels)
    if examples.predictions is None:
        return
    examples.columns["predicted"] = classes.codes(examples.predictions.values)
    if examples.predictions.confidence is not None:
        examples.columns["confidence"] = np.round(
            examples.predictions.confidence.astype(np.float64), 4
        ).tolist()
