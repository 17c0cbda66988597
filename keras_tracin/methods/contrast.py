"""Scores of why a query's answer, rather than another one.

Synopsis:

    score = functools.partial(method.influence, verbose=0)
    less_contrast(score, test, contrast)     # Attribution
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.data.asked import about_tokens
from keras_tracin.data.ids import Reading
from keras_tracin.methods.attributor import Directory
from keras_tracin.results import Attribution


def about_both(test: Any, contrast: Any, query_tokens: Any) -> tuple[Any, Any]:
    """Queries and what they are contrasted with, about some of their tokens.

    Args:
        test: the queries.
        contrast: a query for each of them, or None.
        query_tokens: as in `about_tokens`.
    """
    if contrast is not None:
        contrast = about_tokens(contrast, query_tokens)
    return about_tokens(test, query_tokens), contrast


def less_contrast(
    score: Callable[..., Attribution],
    test: Any,
    contrast: Any,
    directory: Directory | None = None,
) -> Attribution:
    """Scores of queries less those of what they are contrasted with.

    Scores are linear in the gradient at the query, so these are the scores of
    the difference of the losses.

    Args:
        score: `(queries, directory=) -> Attribution`.
        test: the queries.
        contrast: a query for each of them, or None for the scores as they are.
        directory: where finished parts are kept; those of `contrast` are in
            the folder of that name within it.

    Raises:
        ValueError: if there is not one for each query.
    """
    asked = score(test, directory=directory)
    if contrast is None:
        return asked
    within = None if directory is None else Path(directory) / "contrast"
    other = score(contrast, directory=within)
    if len(other.query_ids) != len(asked.query_ids):
        raise unequal_pairs(len(asked.query_ids), len(other.query_ids))
    others = other.scores
    if not np.array_equal(other.train_ids, asked.train_ids):  # it shuffles
        places = Reading(other.train_ids, "train").places(asked.train_ids)
        others = others[:, places]
    return dataclasses.replace(asked, scores=asked.scores - others)


def unequal_pairs(asked: int, others: int) -> ValueError:
    """The error for queries that are not contrasted one by one."""
    return ValueError(
        "`contrast` should have one query for each of `test`, in their order. "
        f"Received: {asked:,} queries, and {others:,} to contrast them with."
    )
