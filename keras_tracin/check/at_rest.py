"""Weights in half precision that updates leave as they are.

bfloat16 has eight bits: a step smaller than a few thousandths of a weight is
rounded away, and training goes on without moving anything.

Synopsis:

    at_rest = HalfWeights(model)
    for checkpoint in run:
        load(checkpoint)
        at_rest.look()
    at_rest.finding()           # None, or a `Finding`
"""

from __future__ import annotations

import keras
import numpy as np

from keras_tracin.check.report import Finding

_LOOKED_AT = 2**16  # entries of each variable
_MOST = 0.5  # share of weights that may stay as they are


class HalfWeights:
    """Compares weights in half precision at several checkpoints.

    Tables are left out: rows of what does not occur stay as they are.

    Args:
        model: a built model, which is lent the weights.
    """

    def __init__(self, model: keras.Model):
        self._variables = [
            variable
            for variable in model.trainable_variables
            if keras.backend.standardize_dtype(variable.dtype)
            in ("bfloat16", "float16")
            and "embedding" not in variable.path
        ]
        self._first: list[np.ndarray] | None = None
        self._last: list[np.ndarray] = []

    def look(self) -> None:
        """Takes the weights that the model has now."""
        self._last = [_some_entries(v) for v in self._variables]
        if self._first is None:
            self._first = self._last

    def finding(self) -> Finding | None:
        """A warning if most weights are the same at the last as at the first.

        None also where there were fewer than two checkpoints.
        """
        if self._first is None or self._first is self._last or not self._last:
            return None
        before, after = map(np.concatenate, (self._first, self._last))
        share = float(np.mean(before == after))
        if share <= _MOST:
            return None
        names = {
            keras.backend.standardize_dtype(v.dtype) for v in self._variables
        }
        return Finding(
            "warning",
            "run",
            f"{share:.0%} of the weights in {' and '.join(sorted(names))} are "
            "the same at the last checkpoint as at the first: steps that are "
            "small beside a weight are lost in its precision, and scores are "
            "by gradients that moved nothing. Train with "
            'keras.config.set_dtype_policy("mixed_bfloat16"), which keeps '
            "weights in float32, or at a larger rate.",
        )


def _some_entries(variable: keras.Variable) -> np.ndarray:
    """Evenly spread entries of a variable, in float32."""
    flat = keras.ops.reshape(variable.value, [-1])
    step = max(1, flat.shape[0] // _LOOKED_AT)
    return keras.ops.convert_to_numpy(keras.ops.cast(flat[::step], "float32"))
