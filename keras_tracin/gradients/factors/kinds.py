"""The four kinds of factors that cover every layer.

* `OuterFactors`: inputs `x [n, t, i]` and output gradients `δ [n, t, o]`;
* `LookupFactors`: token ids `[n, t]` and output gradients `[n, t, o]`;
* `TableFactors`: both, of a table that is looked up and multiplied by;
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
        inputs: `x [n, t, i]`.
        grads: `δ [n, t, o]`, the loss's gradient at the layer's output.
        bias: whether a bias `[o]` stands beside the kernel.
    """

    inputs: tf.Tensor
    grads: tf.Tensor
    bias: bool = False

    static = ("bias",)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The static `(t, i, o)`."""
        _, t, i = self.inputs.shape
        return t, i, self.grads.shape[-1]


@dataclasses.dataclass(frozen=True)
class LookupFactors(Nest):
    """Gradients of a table `[vocabulary, o]` whose rows were looked up.

    Attributes:
        ids: `[n, t]`, the rows each position took.
        grads: `[n, t, o]`, the loss's gradient at what was taken.
        vocabulary: the number of rows.
    """

    ids: tf.Tensor
    grads: tf.Tensor
    vocabulary: int

    static = ("vocabulary",)


@dataclasses.dataclass(frozen=True)
class TableFactors(Nest):
    """Gradients of a table whose rows were looked up and multiplied by.

    A language model whose output projection is its embedding has such a
    table: the gradient is the sum of the two uses'.

    Attributes:
        looked_up: the rows that were taken.
        outer: the product's factors, its inputs `[n, t, vocabulary]`.
    """

    looked_up: LookupFactors
    outer: OuterFactors


@dataclasses.dataclass(frozen=True)
class DenseGradients(Nest):
    """Materialised gradients, `[n, p]` for each variable.

    Attributes:
        parts: one for each variable.
        outputs: `o` if the first of them is a kernel's, `[n, i·o]`.
    """

    parts: tuple[tf.Tensor, ...]
    outputs: int | None = None

    static = ("outputs",)


Factors = OuterFactors | LookupFactors | TableFactors | DenseGradients
