"""Per-example gradients kept as the factors they are made of.

The gradient of one example with respect to a dense kernel is a sum over
positions of outer products, `Σ_t x_t δ_tᵀ` (section F). Inner products of such
gradients need only the `x` and the `δ`, so the gradients themselves are made
only where that is cheaper.

Four kinds cover every layer (`kinds`); a module for each of them says how the
operations of `operations` are done on it.

Nothing here knows about Keras: these are the algebra's own objects. They
travel through `tf.function` as arguments and results.

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
    LookupFactors,
    OuterFactors,
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
from keras_tracin.gradients.factors.outer import with_ones

__all__ = [
    "DenseGradients",
    "Direction",
    "Factors",
    "LookupFactors",
    "OuterFactors",
    "TableFactors",
    "Work",
    "compact",
    "concat",
    "contract",
    "dense",
    "inner",
    "materialize",
    "merge",
    "outer",
    "rows",
    "split",
    "squared_norm",
    "table",
    "total",
    "weighted_norm",
    "with_ones",
    "work",
]
