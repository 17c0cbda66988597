"""Refuses arguments that `write_html` cannot take.

Synopsis:

    check_results(results, max_suspects, render)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tracin.data.kinds import KINDS
from keras_tracin.labels import LabelIssues, TrainingDynamics
from keras_tracin.results import SelfInfluence, TopK

# What an argument is, and how to get it.
_KINDS: dict[str, tuple[type[Any], str]] = {
    "top_k": (TopK, "`scores.top_k(k)` converts an Attribution"),
    "self_influence": (
        SelfInfluence,
        "`kt.SelfInfluence(scores, ids)` converts arrays",
    ),
    "label_issues": (LabelIssues, "`kt.find_label_issues` returns them"),
    "explanation": (TopK, "`label_issues.explain(method, train)` returns it"),
    "neighbours": (TopK, "`label_issues.explain(method, train)` returns it"),
    "dynamics": (TrainingDynamics, "`kt.training_dynamics` returns it"),
}


def check_results(
    results: Mapping[str, Any], max_suspects: int, render: str
) -> None:
    """Refuses results of other types, and those that do not go together.

    Args:
        results: arguments of `write_html` by name.
        max_suspects: as of `write_html`.
        render: likewise.

    Raises:
        TypeError: if a result has another type.
        ValueError: if something is missing, or an option has another value.
    """
    for name, (kind, remedy) in _KINDS.items():
        _check_result(name, results[name], kind, remedy)
    given = {name for name in results if results[name] is not None}
    if not given & {"top_k", "self_influence", "label_issues"}:
        raise ValueError(
            "There is nothing to show. Pass `top_k`, `self_influence` or "
            "`label_issues`."
        )
    if {"self_influence", "label_issues"} <= given:
        raise ValueError(
            "`self_influence` and `label_issues` both rank the suspects. "
            "Received both; pass one of them, or write a page for each."
        )
    if "token_influence" in given and "top_k" not in given:
        raise ValueError(
            "`token_influence` colours the proponents and opponents of "
            "`top_k`. Received no `top_k`; pass both."
        )
    beside = sorted(given & {"explanation", "neighbours", "dynamics"})
    if beside and not given & {"self_influence", "label_issues"}:
        raise ValueError(
            f"`{beside[0]}` stands beside suspects. Received no "
            "`label_issues` and no `self_influence`; pass one of them."
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


def _check_result(name: str, value: Any, kind: type[Any], remedy: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(
            f"`{name}` should be a {kind.__name__}. Received: "
            f"{type(value).__name__}. {remedy}."
        )
    if value is not None and not len(value):
        raise ValueError(f"`{name}` should not be empty.")


def check_no_predictions(predictions: tuple[Any, Any]) -> None:
    """Refuses predictions where an example has several labels."""
    if any(part is not None for part in predictions):
        raise ValueError(
            "`train_predictions` and `test_predictions` should be a class of "
            "each example. Received them with `label_issues` of several labels "
            "for each. Leave them out: suggestions are the model's."
        )
