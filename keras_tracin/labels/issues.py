"""Labels that may be wrong, the most suspicious first.

Synopsis:

    issues = kt.find_label_issues(model, train, run, verbose=0)
    issues.ids[:20]                          # the most suspicious
    issues.issue_ids                         # those estimated to be wrong
    issues.to_dataframe().head(20)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_tracin.data.examples import open_examples
from keras_tracin.data.lookup import look_up
from keras_tracin.data.with_ids import with_ids
from keras_tracin.labels.dynamics import TrainingDynamics
from keras_tracin.labels.estimates import Estimate, estimate_number
from keras_tracin.labels.fold_dynamics import FoldDynamics
from keras_tracin.labels.suspicion import (
    check_method,
    choose_methods,
    join_scores,
    suspicion,
)
from keras_tracin.methods.attributor import Attributor
from keras_tracin.results import TopK
from keras_tracin.results.frames import pandas
from keras_tracin.results.saved import load_saved, save_fields

_UNKNOWN = -1  # number of issues, in files
_BATCH = 256  # queries


@dataclasses.dataclass(frozen=True)
class LabelIssues:
    """Training examples by how suspicious their labels are.

    All arrays are in the order of suspicion. Arrays are None where there is no
    such thing, as suggestions in a regression.

    Attributes:
        ids: `[n]`, every training example, the most suspicious first.
        scores: `[n]`, descending. Only their order means something.
        num_issues: estimated number of wrong labels; None where it cannot be
            estimated.
        method: what the scores are.
        reasons: what was chosen and why, in sentences.
        given_labels: `[n]` class indices, or `[n, labels]` of several.
        suggested_labels: the same, of what the label should be: among the
            issues the likeliest class other than the given one, else the
            likeliest class.
        suggested_probabilities: of these, averaged over the checkpoints.
    """

    ids: np.ndarray
    scores: np.ndarray
    num_issues: int | None
    method: str
    reasons: tuple[str, ...] = ()
    given_labels: np.ndarray | None = None
    suggested_labels: np.ndarray | None = None
    suggested_probabilities: np.ndarray | None = None

    # Booleans in reading order do not fit these scores.
    is_ranked = True

    @classmethod
    def from_dynamics(
        cls,
        dynamics: TrainingDynamics | None,
        method: str | Sequence[str] = "auto",
        number: str | int = "auto",
        folds: FoldDynamics | None = None,
    ) -> LabelIssues:
        """Ranks labels by training dynamics that were measured before.

        Args:
            dynamics: the dynamics of a run; may be None where there are folds.
            method: as in `find_label_issues`.
            number: as in `find_label_issues`.
            folds: dynamics of the same examples, in the same order, by copies
                that were each trained on all but a fold. Scores are then means
                of ranks, of the run, out of fold, and by the copies that were
                trained on an example. Number and suggestions are out of fold.

        Raises:
            ValueError: if `method` or `number` is none of these, or if the
                dynamics do not have what it needs.
        """
        if dynamics is not None and folds is not None:
            dynamics = _with_held_out_loss(dynamics, folds)
        models = [] if dynamics is None else [dynamics]
        models += [] if folds is None else folds.copies
        if isinstance(method, str) and method == "auto":
            chosen, why = choose_methods(models)
        else:
            chosen, why = check_method(method), ""
        scores = []
        for name in chosen:
            own = [] if dynamics is None else [suspicion(dynamics, name)]
            scores += own
            if folds is not None:
                by_copies = [suspicion(copy, name) for copy in folds.copies]
                scores += folds.split(by_copies)
        score = join_scores(scores)
        order = np.argsort(-score, kind="stable")
        judging = models[0] if folds is None else folds.out_of_fold
        estimate = estimate_number(judging, number, folds is not None)
        name = " + ".join(chosen)
        ranked = f"ranked by '{name}' of {_evidence(dynamics, folds)}"
        ranked += f", since {why}" if why else ""
        suggested, likelihood = _suggest(judging, order, estimate)
        given = judging.given_labels
        return cls(
            ids=judging.ids[order],
            scores=score[order],
            num_issues=estimate.number,
            method=name,
            reasons=(ranked, *estimate.reasons),
            given_labels=None if given is None else given[order],
            suggested_labels=suggested,
            suggested_probabilities=likelihood,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        if self.num_issues is None:
            number = "an unknown number"
        else:
            share = self.num_issues / max(1, len(self))
            number = f"{self.num_issues:,} ({share:.1%})"
        return (
            f"<LabelIssues of {len(self):,} examples, of which {number} are "
            f"estimated to have wrong labels: {'; '.join(self.reasons)}>"
        )

    @property
    def issue_ids(self) -> np.ndarray:
        """The ids of the examples whose labels are estimated to be wrong.

        Raises:
            ValueError: if their number could not be estimated.
        """
        if self.num_issues is None:
            raise ValueError(
                "The number of wrong labels is not known, so there is no set "
                f"of them. Received: {self!r}. Take as many of `ids` as you "
                "can look at, or pass `number=`."
            )
        return self.ids[: self.num_issues]

    def explain(
        self,
        method: Attributor,
        train: Any,
        k: int = 5,
        *,
        count: int | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The training examples that suspects agree with and contradict.

        Each suspect is a query under its given label. Its opponents raised its
        loss there: examples that look like it and have another label. Where
        wrong labels have large gradients, these are mostly other wrong ones,
        unless the method divides by the lengths of gradients, as
        `InfluenceFunctions(relative="loss")` does. The first of its proponents
        is mostly the suspect itself.

        Args:
            method: a method for the same training examples.
            train: the training examples, from which suspects are taken.
            k: number of proponents and of opponents.
            count: number of the most suspicious examples to explain; by
                default those whose labels are estimated to be wrong.
            verbose: 0 for silence.

        Raises:
            ValueError: if there is nothing to explain, or `train` has other
                ids.
        """
        ids = self.issue_ids if count is None else self.ids[: max(0, count)]
        if not len(ids):
            raise ValueError(
                "`count` should be 1 or more, where no label is estimated to "
                f"be wrong. Received: {count!r}, with {self!r}."
            )
        suspects = look_up(open_examples(train), ids)
        queries = with_ids(suspects.data, suspects.ids).batch(_BATCH)
        return method.top_k(queries, k, verbose=verbose)

    def to_dataframe(self):
        """A `pandas.DataFrame` by `train_id`, the most suspicious first."""
        pd = pandas()
        columns: dict[str, Any] = {"score": self.scores}
        for name, values in (
            ("given_label", self.given_labels),
            ("suggested_label", self.suggested_labels),
            ("suggested_probability", self.suggested_probabilities),
        ):
            if values is not None:
                columns[name] = list(values)
        if self.num_issues is not None:
            columns["is_issue"] = np.arange(len(self)) < self.num_issues
        index = pd.Index(self.ids, name="train_id")
        return pd.DataFrame(columns, index=index)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file; it appears whole or not at all."""
        save_fields(self, path, num_issues=np.asarray(_UNKNOWN))

    @classmethod
    def load(cls, path: str | os.PathLike) -> LabelIssues:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        arrays: dict[str, Any] = load_saved(path, names[:5], names[5:])
        number = int(arrays["num_issues"])
        arrays["num_issues"] = None if number == _UNKNOWN else number
        arrays["method"] = arrays["method"].item()
        arrays["reasons"] = tuple(arrays["reasons"].tolist())
        return cls(**arrays)


def _with_held_out_loss(
    dynamics: TrainingDynamics, folds: FoldDynamics
) -> TrainingDynamics:
    """A run with the loss on the folds, where it has none of its own."""
    if dynamics.held_out_loss is not None:
        return dynamics
    losses = folds.held_out_loss(dynamics.epochs)
    return dataclasses.replace(dynamics, held_out_loss=losses)


def _evidence(
    dynamics: TrainingDynamics | None, folds: FoldDynamics | None
) -> str:
    """What scores are made of, in words."""
    parts = []
    if dynamics is not None:
        count = len(dynamics.epochs)
        parts.append(f"{count} checkpoint{'s'[: count != 1]}")
    if folds is not None:
        parts.append(f"{len(folds.copies)} copies in and out of fold")
    return " and ".join(parts)


def _suggest(
    dynamics: TrainingDynamics, order: np.ndarray, estimate: Estimate
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Suggested labels and their probabilities, in the order given."""
    given, p = dynamics.given_labels, dynamics.mean_probabilities
    if given is None or p is None:
        return None, None
    given, p = given[order], p[order]
    if dynamics.kind == "labels":
        suggested = (p > 0.5).astype(given.dtype)
        return suggested, np.where(suggested == 1, p, 1 - p)
    allowed = p.copy()
    issues = np.arange(estimate.number or 0)
    allowed[issues, given[issues]] = -1
    suggested = allowed.argmax(axis=1).astype(given.dtype)
    return suggested, p[np.arange(len(p)), suggested]
