"""The methods that the paper compares, chosen and set by flags.

_METHODS = _methods.flags_of_methods(checkpoints=5)
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


def flags_of_methods(checkpoints, damping=1e-3, methods=tuple(NAMES)):
    """Defines `--method` and what sets the methods, with these defaults."""
    return Methods(
        names=flags.DEFINE_list(
            "method", list(methods), f"Which of {', '.join(NAMES)}."
        ),
        checkpoints=flags.DEFINE_integer(
            "checkpoints",
            checkpoints,
            "For TracIn: how many checkpoints, chosen where the loss falls.",
            lower_bound=1,
        ),
        layers=flags.DEFINE_list(
            "layers",
            None,
            "For TracIn: names of the layers whose gradients count; all by "
            "default.",
        ),
        projection=flags.DEFINE_integer(
            "projection",
            0,
            "For TracIn: how many numbers are kept of a gradient; 0 for all, "
            "which is exact.",
            lower_bound=0,
        ),
        damping=flags.DEFINE_float(
            "damping", damping, "For influence functions: λ.", lower_bound=0
        ),
        l2=flags.DEFINE_float(
            "l2", 1e-3, "For representer points: λ.", lower_bound=1e-12
        ),
    )


@dataclasses.dataclass(frozen=True)
class Methods:
    """The flags of `flags_of_methods`."""

    names: flags.FlagHolder
    checkpoints: flags.FlagHolder
    layers: flags.FlagHolder
    projection: flags.FlagHolder
    damping: flags.FlagHolder
    l2: flags.FlagHolder

    def make(self, model, train, run, strategy=None, head_only=False):
        """The methods that `--method` names, ready to be asked.

        Args:
            model: trained.
            train: its data.
            run: what was recorded.
            strategy: the one that the model was built under.
            head_only: influence functions of the last layer alone, with the
                exact Hessian, in place of those of all layers with EK-FAC:
                fast where the layers below are expensive.

        Returns:
            A dict by the names that figures show.
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

    def tracin(self, model, train, run, strategy=None, layers=None):
        """TracIn at selected checkpoints; `layers` instead of the flag's."""
        dim = self.projection.value
        return kt.TracIn(
            model,
            train,
            self.selected(run),
            layers=layers or self.layers.value,
            projection=kt.TensorSketch(dim) if dim else None,
            strategy=strategy,
        )

    def selected(self, run):
        """`--checkpoints` of the run's; all of them if there are no more."""
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
    """A method that sees the last layer as the model.

    Its data is what goes into the last layer, computed once. Scores are those
    of the whole model with `layers=` its last layer.
    """

    def __init__(self, model, train, method, **options):
        layer = model.layers[-1]
        self._body = keras.Model(model.inputs, layer.input)
        inputs = keras.Input(layer.input.shape[1:])
        head = keras.Model(inputs, layer(inputs))
        head.compile(loss=model.loss)
        self._method = method(head, self._features(train), **options)

    def top_k(self, test, k, **options):
        """As the method's own."""
        return self._method.top_k(self._features(test), k, **options)

    def self_influence(self, **options):
        """As the method's own."""
        return self._method.self_influence(**options)

    def _features(self, data):
        x, y = data
        return self._body.predict(x, batch_size=512, verbose=0), y


def side_by_side(tops):
    """One `TopK` of several methods' for the same queries.

    Args:
        tops: a `TopK` of each method, with m queries.

    Returns:
        A `TopK` of m times as many rows as there are methods: all methods for
        the first query, then all for the second, and so on.
    """
    joined = kt.TopK.concat(list(tops))
    order = np.arange(len(joined)).reshape(len(tops), -1).T.ravel()

    def ordered(ranking):
        return kt.Ranking(ranking.ids[order], ranking.scores[order])

    return kt.TopK(
        ordered(joined.proponents),
        ordered(joined.opponents),
        joined.query_ids[order],
    )


def cut(top, k, row):
    """Of one query, the first `k` of both sides."""

    def first(ranking):
        rows = slice(row, row + 1)
        return kt.Ranking(ranking.ids[rows, :k], ranking.scores[rows, :k])

    return kt.TopK(
        first(top.proponents),
        first(top.opponents),
        top.query_ids[row : row + 1],
    )
