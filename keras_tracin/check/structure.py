"""Findings about the model and its loss, without running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.check.report import Finding, LayerReport
from keras_tracin.data.preprocessing import has_unknown_fit
from keras_tracin.gradients.sites import Site, find_sites
from keras_tracin.losses.output_kinds import outputs_of
from keras_tracin.losses.outputs import REMEDY
from keras_tracin.models.compiled import (
    compiled_loss,
    losses_of,
    trains_on_compiled_loss,
)

_MOST_NAMED = 8
_RANDOM = ("Random", "RandAugment", "AugMix", "CutMix", "MixUp")
_STRENGTHS = ("rate", "stddev", "dropout", "recurrent_dropout")


def covered_layers(
    model: keras.Model, layers: Sequence[str | keras.Layer] | None
) -> tuple[LayerReport, ...]:
    """The layers whose gradients are covered.

    Raises:
        ValueError: if `layers` names a layer that cannot be covered.
    """
    return tuple(
        LayerReport(
            name=site.name,
            kind=type(site.layer).__name__,
            method="fallback" if site.rule is None else "rule",
            parameters=_size(site.variables),
        )
        for site in find_sites(model, layers)
    )


def left_out(
    model: keras.Model, layers: Sequence[str | keras.Layer] | None
) -> dict[str, int]:
    """Number of parameters that gradients do not cover, by reason."""
    sites: list[Site] = find_sites(model, layers)
    covered = {id(v) for site in sites for v in site.variables}
    trained = {id(v) for v in model.trainable_weights}
    trainable = {
        id(v)
        for layer in model._flatten_layers()
        for v in layer._trainable_variables
    }
    reasons: dict[str, list[keras.Variable]] = {}
    for weight in model.weights:
        if id(weight) in covered:
            continue
        if id(weight) in trained:
            reason = "other layers than `layers=` names"
        elif id(weight) in trainable:
            reason = "frozen (not trainable)"
        else:
            reason = "statistics and other state"
        reasons.setdefault(reason, []).append(weight)
    return {reason: _size(weights) for reason, weights in reasons.items()}


def _size(weights: Sequence[keras.Variable]) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


def model_findings(model: keras.Model) -> Iterator[Finding]:
    """Findings about layers, regularisers and custom training code."""
    differing = [x for x in model._flatten_layers() if _differs_in_training(x)]
    if differing:
        yield Finding(
            "note",
            "model",
            "Scores use inference mode, unlike training, which matters to "
            f"{_list_layers(differing)}.",
        )
    regularized = [
        layer
        for layer in model._flatten_layers()
        if any(v.regularizer is not None for v in layer._trainable_variables)
    ]
    if regularized:
        yield Finding(
            "note",
            "model",
            "Scores leave out weight regularisers, which belong to no example: "
            f"those of {_list_layers(regularized)}.",
        )
    if has_unknown_fit(model):
        yield Finding(
            "warning",
            "model",
            f"The model's class {type(model).__name__} has its own `fit`, "
            "which may change the data. Pass the data that its steps see.",
        )
    own_step = type(model).train_step is not keras.Model.train_step
    if own_step and trains_on_compiled_loss(model):  # Else it is an error.
        yield Finding(
            "warning",
            "loss",
            f"The model's class {type(model).__name__} has its own "
            "`train_step`; scores use the compiled loss. Pass `loss=` if "
            "training used another one.",
        )


def _differs_in_training(layer: keras.Layer) -> bool:
    """Whether a layer without sublayers acts differently in training."""
    if list(layer._layers) or not layer._call_has_training_arg:
        return False
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.trainable
    if type(layer).__name__.startswith(_RANDOM):
        return True
    if type(layer).__module__.startswith("keras."):
        # Many layers take `training`; only these attributes depend on it.
        return any(getattr(layer, name, None) for name in _STRENGTHS)
    return True


def _list_layers(layers: Sequence[keras.Layer]) -> str:
    descriptions = [
        f"{layer.path or layer.name} ({type(layer).__name__})"
        for layer in layers[:_MOST_NAMED]
    ]
    more = len(layers) - _MOST_NAMED
    return ", ".join(descriptions) + f" and {more} more" * (more > 0)


def broken_weights(model: keras.Model) -> str | None:
    """Names the weights that hold NaN or infinity."""
    broken = [
        weight.path
        for weight in model.trainable_weights
        if not np.isfinite(
            np.asarray(keras.ops.convert_to_numpy(weight), np.float64)
        ).all()
    ]
    if not broken:
        return None
    return (
        f"The model's present weights are NaN or infinite in {broken}. Load "
        "weights from before the loss diverged."
    )


def loss_finding(model: keras.Model, loss: Any) -> Finding:
    """Names the loss in use and the reduction that is undone."""
    compiled = compiled_loss(model) if loss is None else None
    where = "given as `loss=`" if compiled is None else "compiled"
    weights = None if compiled is None else compiled.weights
    described = [_describe_loss(part) for part in losses_of(model, loss)]
    weighted = f", weighted {weights}" if weights else ""
    return Finding(
        "note",
        "loss",
        f"{', '.join(described)} ({where}{weighted}); scores use the loss of "
        "each example alone.",
    )


def output_findings(model: keras.Model, loss: Any, x: Any) -> Iterator[Finding]:
    """Findings about outputs: their kind, and whether it fits the loss."""
    if loss is None and compiled_loss(model) is None:
        return
    outputs = outputs_of(model, loss, x)
    if outputs.contradicts:
        yield Finding("warning", "loss", f"{outputs.reason} {REMEDY}")
    elif not outputs.tells_margins:
        yield Finding(
            "note",
            "loss",
            f"{outputs.reason} `query_loss='logit'` or 'margin' and margins "
            "in TRAK are refused.",
        )
    elif not outputs.tells_logits:
        yield Finding(
            "note",
            "loss",
            f"{outputs.reason} `query_loss='logit'` is refused; 'margin' and "
            "TRAK are computed from them.",
        )


def _describe_loss(loss: Any) -> str:
    if isinstance(loss, str):
        return f"{loss}, mean over the batch"
    name = getattr(loss, "name", None) or getattr(loss, "__name__", repr(loss))
    reduction = getattr(loss, "reduction", "sum_over_batch_size")
    words = {
        "sum": "summed over the batch",
        "none": "not reduced",
        None: "not reduced",
        "mean_with_sample_weight": "mean weighted by sample weights",
    }
    return f"{name}, {words.get(reduction, 'mean over the batch')}"
