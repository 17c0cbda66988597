"""Methods that invert or follow the curvature of the training objective.

Synopsis:

    class Newton(OfObjective):               # and so on, as for `Method`
        def __init__(self, model, train):
            self.engine = self._whole = Engine(model, train)
            self._penalty = penalty_weight(model)
"""

from __future__ import annotations

from typing import Any

from keras_tracin.data.batches import content_digest
from keras_tracin.engine.engine import Engine
from keras_tracin.methods.by_token import ByToken
from keras_tracin.models.descriptions import describe

_DIGESTED = 256  # examples at a time


class OfObjective(ByToken):
    """A method in whose scores all training examples have a part."""

    _whole: Engine  # of all of them, also where `among` scores some
    _penalty: float  # factor of the weight regularisers beside the mean loss

    @property
    def objective_settings(self) -> dict[str, Any]:
        """What the objective has beside the loss, as JSON."""
        return {
            "penalty": self._penalty,
            "regularizers": [
                describe(getattr(weight, "regularizer", None))
                for weight in self.model.weights
            ],
        }

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores for `test` depend on, for the parts on disk."""
        train = self._whole.train.batches(_DIGESTED)
        return {**super().job(test), "train": content_digest(train)}
