"""The four kinds of factors that cover every layer.

* `OuterFactors`: inputs `x [n, t, i]` and output gradients `δ [n, t, o]`;
* `LookupFactors`: token ids `[n, t]` and output gradients `[n, t, o]`;
* `TableFactors`: both, for a table that is looked up and used as a kernel;
* `DenseGradients`: the gradients themselves, one `[n, p]` per variable.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from keras_tracin.gradients.nest import Nest

Direction = tuple[tf.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class OuterFactors(Nest):
    """Gradients `Σ_t x_t δ_tᵀ` of a kernel `[i, o]`, and `Σ_t δ_t` of a bias.

    Attributes:
        inputs: inputs `x [n, t, i]` of the layer.
        grads: gradients `δ [n, t, o]` of the loss at the layer's output.
        bias: True if the gradients of a bias `[o]` are included.
        runs: number of adjacent entries along `t` for each position of the
            layer's input, as of heads.
    """

    inputs: tf.Tensor
    grads: tf.Tensor
    bias: bool = False
    runs: int = 1

    static = ("bias", "runs")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Static sizes `(t, i, o)`."""
        _, t, i = self.inputs.shape
        return t, i, self.grads.shape[-1]


@dataclasses.dataclass(frozen=True)
class LookupFactors(Nest):
    """Gradients of a table `[vocabulary, o]` whose rows were looked up.

    Attributes:
        ids: rows `[n, t]` that each position looked up.
        grads: gradients `[n, t, o]` of the loss at these rows.
        vocabulary: number of rows of the table.
    """

    ids: tf.Tensor
    grads: tf.Tensor
    vocabulary: int

    static = ("vocabulary",)


@dataclasses.dataclass(frozen=True)
class TableFactors(Nest):
    """Gradients of a table that is both looked up and used as a kernel.

    A language model whose output projection is its embedding has such a table.
    The gradient is the sum over both uses.

    Attributes:
        looked_up: factors of the look-ups.
        outer: factors of the product, with inputs `[n, t, vocabulary]`.
    """

    looked_up: LookupFactors
    outer: OuterFactors


@dataclasses.dataclass(frozen=True)
class DenseGradients(Nest):
    """Materialized gradients.

    Attributes:
        parts: gradients `[n, p]` of each variable.
        outputs: `o` if the first variable is a kernel `[i, o]`.
    """

    parts: tuple[tf.Tensor, ...]
    outputs: int | None = None

    static = ("outputs",)


Factors = OuterFactors | LookupFactors | TableFactors | DenseGradients
