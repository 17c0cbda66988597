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
        "logs", tracin.top_k(test, 5), test, train, step=checkpoint
    )
```
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_tracin.plots.images import MOST_EXAMPLES, Pictures
from keras_tracin.plots.selection import select
from keras_tracin.results import Attribution, SelfInfluence, TopK
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
        groups: values `[n]`, such as labels, in the order of the scores, or
            by id; each distinct value has a histogram of its own.
        tag: name of the histograms, which are `tag`, `tag/log10` and, for each
            group, `tag/log10/<group>`.

    Raises:
        ImportError: if tensorboard is not installed.
        ValueError: if there are no scores, if one is not finite, or if
            `groups` has another length, or lacks an id.
    """
    scores = np.asarray(self_influence.scores)
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            "There should be scores, all of them finite. Received: "
            f"{scores.size}, of which {np.isnan(scores).sum()} are NaN."
        )
    histograms = {tag: scores, f"{tag}/log10": _log10(scores)}
    if groups is not None:
        names = _by_id(groups, self_influence)
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
    top: TopK | Attribution,
    query_images: Any,
    train_images: Any,
    *,
    step: int | Checkpoint,
    max_queries: int = 10,
    queries: int | Sequence[Any] | None = None,
    k: int | None = None,
    tag: str = "proponents",
    **options: Any,
) -> None:
    """Writes an image of each query's proponents and opponents.

    Args:
        log_dir: the `log_dir` of `keras.callbacks.TensorBoard`.
        top: result of `top_k` for `m` queries, or of `influence`.
        query_images: the queries as `fit` takes them, or images, as in
            `plots.proponents_and_opponents`.
        train_images: the training examples, likewise.
        step: step on the axis of TensorBoard; or the checkpoint of the scores,
            which stands for the step that Keras gives its epoch.
        max_queries: number of queries to draw, from the first.
        queries: ids of the queries to draw, in place of the first.
        k: number of proponents and of opponents to draw, as in
            `plots.proponents_and_opponents`.
        tag: prefix of the images' names, which are `tag/<query id>`.
        **options: further arguments of `plots.proponents_and_opponents`, such
            as `class_names`, `query_labels` and `train_ids`.

    Raises:
        ImportError: if tensorboard or matplotlib is not installed.
        TypeError: if `top` is another result.
        ValueError: as `plots.proponents_and_opponents`.
    """
    if queries is None and max_queries < 1:
        raise ValueError(
            "`max_queries` should be 1 or more. Received: "
            f"max_queries={max_queries}."
        )
    selection = select(top, queries, k, (max_queries, MOST_EXAMPLES))
    pictures = Pictures.look_up(
        selection, query_images, train_images, **options
    )
    figures = {
        f"{tag}/{name}": pictures.draw(
            slice(row, row + 1), selection.note_of_sides
        )
        for row, name in enumerate(selection.top.query_ids)
    }
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


def _by_id(groups: Any, self_influence: SelfInfluence) -> np.ndarray:
    """Values in the order of the scores, of values in this order or by id."""
    if not isinstance(groups, Mapping):
        return np.asarray(groups)
    ids = self_influence.ids.tolist()
    missing = [id_ for id_ in ids if id_ not in groups]
    if missing:
        raise ValueError(
            "`groups` should hold every id that has a score. It lacks "
            f"{missing[:5]}."
        )
    return np.array([groups[id_] for id_ in ids])


def _log10(scores: np.ndarray) -> np.ndarray:
    return np.log10(scores[scores > 0])
