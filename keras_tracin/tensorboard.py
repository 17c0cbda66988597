"""Writes scores for TensorBoard, beside the metrics of Keras's callback.

`keras.callbacks.TensorBoard(log_dir)` writes the runs `log_dir/train` and
`log_dir/validation`; the functions here write `log_dir/attribution`. They need
the package `tensorboard` and, for images, the `plots` extra.

Synopsis:
```python
run = kt.TrainingRun("runs/digits")
for i, checkpoint in enumerate(run):
    tracin = kt.TracIn(model, train, run[i : i + 1])
    kt.tensorboard.write_self_influence(
        "logs", tracin.self_influence(), step=checkpoint
    )
    kt.tensorboard.write_proponents(
        "logs", tracin.top_k(test, 5), x_test, x_train, step=checkpoint
    )
```
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_tracin import plots
from keras_tracin.results import Ranking, SelfInfluence, TopK
from keras_tracin.runs import Checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_figure", "write_proponents", "write_self_influence"]

RUN = "attribution"  # the name of the run in TensorBoard


def write_self_influence(
    log_dir: str | os.PathLike,
    self_influence: SelfInfluence,
    *,
    step: int | Checkpoint,
    groups: Any = None,
    tag: str = "self_influence",
) -> None:
    """Writes histograms of scores and of their decimal logarithms.

    Few scores are large, so that a histogram of the scores often has a single
    bar, while that of the logarithms shows them all. It leaves out scores that
    are not positive.

    Args:
        log_dir: the `log_dir` of `keras.callbacks.TensorBoard`.
        self_influence: the scores of `n` examples.
        step: step on the axis of TensorBoard; or the checkpoint of the scores,
            which stands for the step that Keras gives its epoch.
        groups: values `[n]`, such as labels, in the order of the scores; each
            distinct value has a histogram of its own.
        tag: name of the histograms, which are `tag`, `tag/log10` and, for each
            group, `tag/log10/<group>`.

    Raises:
        ImportError: if tensorboard is not installed.
        ValueError: if there are no scores, if one is not finite, or if
            `groups` has another length.
    """
    scores = np.asarray(self_influence.scores)
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            "There should be scores, all of them finite. Received: "
            f"{scores.size}, of which {np.isnan(scores).sum()} are NaN."
        )
    histograms = {tag: scores, f"{tag}/log10": _log10(scores)}
    if groups is not None:
        names = np.asarray(groups)
        if names.shape != scores.shape:
            raise ValueError(
                "`groups` should have a value for each score. Received: shape "
                f"{names.shape}, and {len(scores)} scores."
            )
        for name in np.unique(names).tolist():
            histograms[f"{tag}/log10/{name}"] = _log10(scores[names == name])
    with _writer(log_dir):
        for name, values in histograms.items():
            if len(values):
                tf.summary.histogram(name, values, step=_step_number(step))


def write_proponents(
    log_dir: str | os.PathLike,
    top: TopK,
    query_images: Any,
    train_images: Any,
    *,
    step: int | Checkpoint,
    max_queries: int = 10,
    tag: str = "proponents",
    query_labels: Any = None,
    **options: Any,
) -> None:
    """Writes an image of each query's proponents and opponents.

    Args:
        log_dir: the `log_dir` of `keras.callbacks.TensorBoard`.
        top: result of `top_k` for `m` queries.
        query_images: images `[m, height, width]` or `[m, height, width,
            channels]`.
        train_images: images `[n, height, width]` or `[n, height, width,
            channels]`.
        step: step on the axis of TensorBoard; or the checkpoint of the scores,
            which stands for the step that Keras gives its epoch.
        max_queries: number of queries to draw, from the first.
        tag: prefix of the images' names, which are `tag/<query id>`.
        query_labels: labels `[m]`, shown as `str`.
        **options: further arguments of `plots.proponents_and_opponents`, such
            as `train_labels` and `train_ids`.

    Raises:
        ImportError: if tensorboard or matplotlib is not installed.
        ValueError: if queries, images and labels do not fit one another.
    """
    for name, values in (
        ("query_images", query_images),
        ("query_labels", query_labels),
    ):
        if values is not None and len(values) != len(top):
            raise ValueError(
                f"`{name}` should have length {len(top)}. Received: length "
                f"{len(values)}."
            )
    figures = {}
    for row in range(min(len(top), max_queries)):
        only = slice(row, row + 1)
        figures[f"{tag}/{top.query_ids[row]}"] = plots.proponents_and_opponents(
            _select_queries(top, only),
            query_images[only],
            train_images,
            query_labels=None if query_labels is None else query_labels[only],
            **options,
        )
    with _writer(log_dir):
        for name, figure in figures.items():
            _write_figure(name, figure, _step_number(step))


def write_figure(
    log_dir: str | os.PathLike,
    tag: str,
    figure: Figure,
    *,
    step: int | Checkpoint,
) -> None:
    """Writes any figure, such as those of `keras_tracin.plots`.

    Args:
        log_dir: the `log_dir` of `keras.callbacks.TensorBoard`.
        tag: name of the image.
        figure: a matplotlib figure.
        step: step on the axis of TensorBoard, or a checkpoint.

    Raises:
        ImportError: if tensorboard is not installed.
    """
    with _writer(log_dir):
        _write_figure(tag, figure, _step_number(step))


# One file for each run: TensorBoard orders the files of a run by name, and
# files created in the same second have no order.
_writers: dict[Path, Any] = {}


@contextlib.contextmanager
def _writer(log_dir: str | os.PathLike) -> Iterator[None]:
    """For a `with` block, `tf.summary` writes to the run."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "keras_tracin.tensorboard needs tensorboard, which is not "
            "installed. Install the `tensorboard` extra: pip install "
            "'keras_tracin[tensorboard]'."
        )
    run = Path(log_dir).absolute() / RUN
    if run not in _writers or not run.is_dir():
        _writers[run] = tf.summary.create_file_writer(str(run))
    with _writers[run].as_default():
        yield
    _writers[run].flush()


def _write_figure(tag: str, figure: Figure, step: int) -> None:
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        image = tf.image.decode_png(file.getvalue(), channels=3)
    tf.summary.image(tag, image[tf.newaxis], step=step)


def _step_number(step: int | Checkpoint) -> int:
    """The step; Keras counts epochs from 0 in TensorBoard, runs from 1."""
    return step.epoch - 1 if isinstance(step, Checkpoint) else int(step)


def _log10(scores: np.ndarray) -> np.ndarray:
    return np.log10(scores[scores > 0])


def _select_queries(top: TopK, rows: slice) -> TopK:
    up, down = (
        Ranking(side.ids[rows], side.scores[rows])
        for side in (top.proponents, top.opponents)
    )
    return TopK(up, down, top.query_ids[rows])
