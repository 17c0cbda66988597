"""Training examples with suspected labels, as the page lists them.

Synopsis:

    suspects = Suspects.from_label_issues(issues, 1_000, class_names=None)
    suspects.ids, suspects.scores            # the most suspicious first
    suspects.labels(ids, read)               # as the issues have them
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.labels import label_values
from keras_tracin.data.lookup import locate
from keras_tracin.labels import LabelIssues
from keras_tracin.report.examples import NO_LABEL
from keras_tracin.results import SelfInfluence

NONE_HOLDS = "(none)"


@dataclasses.dataclass(frozen=True)
class Suspects:
    """Some training examples, the most suspicious first.

    Attributes:
        ids: ids `[k]`.
        scores: scores `[k]`, descending.
        total: number of examples that were ranked.
        score_name: what the scores are, on the page.
        issues: label issues that they come from; None if from other scores.
        suggested: labels `[k]` as the page has them; None if there are none.
        probabilities: probabilities `[k]` of these.
        names: names of the labels, of which an example has several; None if
            it has one.
    """

    ids: np.ndarray
    scores: np.ndarray
    total: int
    score_name: str = "Self-influence"
    issues: LabelIssues | None = None
    suggested: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def from_self_influence(cls, scores: SelfInfluence, count: int) -> Suspects:
        """The `count` examples of highest self-influence."""
        ranked = scores.ranking()
        return cls(ranked.ids[:count], ranked.scores[:count], len(scores))

    @classmethod
    def from_label_issues(
        cls, issues: LabelIssues, count: int, class_names: Any
    ) -> Suspects:
        """The `count` most suspicious, with suggested labels.

        Raises:
            ValueError: if examples have several labels and `class_names` are
                fewer.
        """
        given, suggested = issues.given_labels, issues.suggested_labels
        names, likelihood = None, issues.suggested_probabilities
        if given is not None and given.ndim == 2:
            names = _names(class_names, given.shape[1])
            if suggested is not None:
                suggested = label_sets(suggested[:count], names)
            if likelihood is not None:  # that of the doubtful one
                likelihood = likelihood[:count].min(axis=1)
        return cls(
            ids=issues.ids[:count],
            scores=issues.scores[:count],
            total=len(issues),
            score_name="Suspicion",
            issues=issues,
            suggested=None if suggested is None else suggested[:count],
            probabilities=None if likelihood is None else likelihood[:count],
            names=names,
        )

    @property
    def read_labels(self) -> Callable[[Any], np.ndarray]:
        """How labels of data are read for the page, a value per example."""
        names = self.names
        if names is None:
            return label_values

        def read_sets(y: Any) -> np.ndarray:
            leaves = tf.nest.flatten(y)  # a single output may have a name
            if len(leaves) == 1 and np.shape(leaves[0])[1:] == (len(names),):
                return label_sets(leaves[0], names)
            return label_values(y)

        return read_sets

    @property
    def all_labels(self) -> list[np.ndarray]:
        """Arrays of labels that the page may show, also of no suspect."""
        if self.suggested is None:
            return []
        given = None if self.issues is None else self.issues.given_labels
        if given is None or self.names is not None:
            return [self.suggested]
        assert self.issues is not None
        return [given, np.asarray(self.issues.suggested_labels)]

    def labels(self, ids: np.ndarray, read: np.ndarray) -> np.ndarray:
        """Labels of training examples, `[k]`.

        They are the given labels of the issues, where these have suggestions,
        so that both are of the same classes.

        Args:
            ids: ids `[k]`.
            read: labels `[k]` in the data that the page shows.

        Raises:
            ValueError: if the data has other labels.
        """
        if self.issues is None or self.suggested is None:
            return read
        places = locate(self.issues.ids.tolist(), ids, "label_issues")
        assert self.issues.given_labels is not None
        given = self.issues.given_labels[places]
        if self.names is not None:
            given = label_sets(given, self.names)
        # Strings, as of soft labels, are not in the words of the issues.
        is_comparable = read.dtype.kind == "i"
        if self.names is not None:
            is_comparable = NO_LABEL not in read
        differs = is_comparable & np.asarray(read != given)
        if differs.any():
            at = int(differs.argmax())
            raise ValueError(
                "`train` has other labels than those that `label_issues` are "
                f"of. Received: the id {ids[at]!r} with the label "
                f"{read[at].item()!r} and not {given[at].item()!r}. Pass the "
                "labels as they were, or find the issues of the new ones."
            )
        return given

    def as_json(self) -> dict[str, Any]:
        """What the script reads, but for examples, scores and labels."""
        shown: dict[str, Any] = {
            "total": self.total,
            "score_name": self.score_name,
            "has_suggestions": self.suggested is not None,
            "num_issues": self.issues and self.issues.num_issues,
        }
        if self.probabilities is not None:
            shown["probabilities"] = np.round(
                self.probabilities.astype(np.float64), 4
            ).tolist()
        return shown


def label_sets(y: Any, names: Sequence[str]) -> np.ndarray:
    """The labels that hold of each example, in words, `[n]`.

    Args:
        y: `[n, labels]`, above one half where a label holds.
        names: names of the labels.
    """
    held = np.asarray(y).astype(np.float64) > 0.5
    texts = [", ".join(names[i] for i in row.nonzero()[0]) for row in held]
    return np.array([text or NONE_HOLDS for text in texts])


def _names(class_names: Any, count: int) -> tuple[str, ...]:
    names = list(range(count) if class_names is None else class_names)
    if len(names) != count:
        raise ValueError(
            "`class_names` should have a name for every label. Received: "
            f"{len(names)} names, and {count} labels of each example."
        )
    return tuple(map(str, names))
