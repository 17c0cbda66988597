"""Per-example gradients in the form of factors.

The gradient of one example with respect to a dense kernel is a sum of outer
products over positions, `Σ_t x_t δ_tᵀ` (Pruthi et al. 2020, section F). Inner
products of such gradients need only the `x` and the `δ`, so the gradients
themselves are materialized only where that is cheaper.

A few kinds of factors cover every layer (`kinds`); a module for each kind
implements the functions of `operations`.

Nothing here depends on Keras. Factors can be arguments and results of a
`tf.function`.

Synopsis:

    scores = inner(train, queries)      # [n, m]
    norms = squared_norm(train)         # [n], the diagonal of inner(f, f)
    shares = contract(train, total(queries))  # [n], one direction for all
"""

from keras_tracin.gradients.factors import dense, outer, rows, table
from keras_tracin.gradients.factors.joining import concat, merge
from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Direction,
    Factors,
    KernelAxes,
    LookupFactors,
    OuterFactors,
    PositionGradients,
    TableFactors,
)
from keras_tracin.gradients.factors.operations import (
    Work,
    compact,
    contract,
    inner,
    materialize,
    split,
    squared_norm,
    total,
    weighted_norm,
    work,
)
from keras_tracin.gradients.factors.outer import loaded, with_ones
from keras_tracin.gradients.factors.positions import inner_by_position
from keras_tracin.gradients.factors.summed import summed, summed_over

__all__ = [
    "DenseGradients",
    "Direction",
    "Factors",
    "KernelAxes",
    "LookupFactors",
    "OuterFactors",
    "PositionGradients",
    "TableFactors",
    "Work",
    "compact",
    "concat",
    "contract",
    "dense",
    "inner",
    "inner_by_position",
    "loaded",
    "materialize",
    "merge",
    "outer",
    "rows",
    "split",
    "squared_norm",
    "summed",
    "summed_over",
    "table",
    "total",
    "weighted_norm",
    "with_ones",
    "work",
]
