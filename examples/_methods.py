"""The methods that the paper compares, selected and configured by flags.

_METHODS = _methods.define_flags(checkpoints=5)
...
for name, method in _METHODS.make(model, train, run).items():
    top = method.top_k(test, k=5, verbose=0)
"""

import dataclasses

import keras
import numpy as np
from absl import flags

import keras_tracin as kt

# A flag belongs to the program that calls the function, not to this module.
flags.disclaim_key_flags()

NAMES = {
    "tracin": "TracIn",
    "influence": "Influence functions",
    "representer": "Representer points",
}


def define_flags(checkpoints, damping=1e-3, methods=tuple(NAMES)):
    """Defines `--method` and the options of methods, with these defaults."""
    return Methods(
        names=flags.DEFINE_list(
            "method", list(methods), f"Methods to use, of {', '.join(NAMES)}."
        ),
        checkpoints=flags.DEFINE_integer(
            "checkpoints",
            checkpoints,
            "For TracIn: number of checkpoints, selected where the loss falls.",
            lower_bound=1,
        ),
        layers=flags.DEFINE_list(
            "layers",
            None,
            "For TracIn: names of the layers whose gradients to use. Default: "
            "all.",
        ),
        projection=flags.DEFINE_integer(
            "projection",
            0,
            "For TracIn: length of a sketch of a gradient; 0 for the exact "
            "gradient.",
            lower_bound=0,
        ),
        damping=flags.DEFINE_float(
            "damping",
            damping,
            "For influence functions: damping λ.",
            lower_bound=0,
        ),
        l2=flags.DEFINE_float(
            "l2",
            1e-3,
            "For representer points: L2 regularisation λ.",
            lower_bound=1e-12,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Methods:
    """The flags of `define_flags`."""

    names: flags.FlagHolder
    checkpoints: flags.FlagHolder
    layers: flags.FlagHolder
    projection: flags.FlagHolder
    damping: flags.FlagHolder
    l2: flags.FlagHolder

    def make(self, model, train, run, strategy=None, head_only=False):
        """Creates the methods that `--method` names.

        Args:
            model: the trained model.
            train: its training data.
            run: the recorded run.
            strategy: the strategy that the model was built under.
            head_only: If true, influence functions are those of the last layer
                alone, with the exact Hessian, in place of EK-FAC for all
                layers: fast if the layers below are expensive.

        Returns:
            A dict of methods by their names in figures.
        """
        makers = {
            "tracin": lambda: self.tracin(model, train, run, strategy),
            "influence": lambda: self._influence(
                model, train, strategy, head_only
            ),
            "representer": lambda: kt.RepresenterPoints(
                model, train, l2=self.l2.value, strategy=strategy, verbose=0
            ),
        }
        return {NAMES[name]: makers[name]() for name in self.names.value}

    def tracin(self, model, train, run, strategy=None):
        """TracIn at selected checkpoints."""
        dim = self.projection.value
        return kt.TracIn(
            model,
            train,
            self.select_checkpoints(run),
            layers=self.layers.value,
            projection=kt.TensorSketch(dim) if dim else None,
            strategy=strategy,
        )

    def select_checkpoints(self, run):
        """Selects `--checkpoints` checkpoints of the run, or all of them."""
        if len(run) <= self.checkpoints.value:
            return run
        return kt.select_checkpoints(run, self.checkpoints.value, verbose=0)

    def _influence(self, model, train, strategy, head_only):
        options = {"damping": self.damping.value}
        if head_only:
            return OnHead(
                model,
                train,
                kt.InfluenceFunctions,
                solver=kt.Exact(),
                **options,
            )
        return kt.InfluenceFunctions(
            model, train, curvature="ekfac", strategy=strategy, **options
        )


class OnHead:
    """A method that is applied to the last layer as a model.

    Its data are the inputs of the last layer, computed once. Scores equal those
    of the whole model with its last layer as `layers=`.
    """

    def __init__(self, model, train, method, **options):
        layer = model.layers[-1]
        self._body = keras.Model(model.inputs, layer.input)
        inputs = keras.Input(layer.input.shape[1:])
        head = keras.Model(inputs, layer(inputs))
        head.compile(loss=model.loss)
        self._method = method(head, self._features(train), **options)

    def top_k(self, test, k, **options):
        """Same as `top_k` of the method."""
        return self._method.top_k(self._features(test), k, **options)

    def _features(self, data):
        x, y = data
        return self._body.predict(x, batch_size=512, verbose=0), y


def interleave(tops):
    """Interleaves the results of several methods for the same queries.

    Args:
        tops: a `TopK` of each method, with m queries.

    Returns:
        A `TopK` with a row for each query and method: all methods for the first
        query, then all for the second, and so on.
    """
    combined = kt.TopK.concat(list(tops))
    order = np.arange(len(combined)).reshape(len(tops), -1).T.ravel()

    def reorder(ranking):
        return kt.Ranking(ranking.ids[order], ranking.scores[order])

    return kt.TopK(
        reorder(combined.proponents),
        reorder(combined.opponents),
        combined.query_ids[order],
    )


def cut(top, k, row):
    """The first `k` of both sides, for one query."""

    def first(ranking):
        rows = slice(row, row + 1)
        return kt.Ranking(ranking.ids[rows, :k], ranking.scores[rows, :k])

    return kt.TopK(
        first(top.proponents),
        first(top.opponents),
        top.query_ids[row : row + 1],
    )
