"""The kinds of factors that cover every layer.

* `OuterFactors`: inputs `x [n, t, i]` and output gradients `δ [n, t, o]`;
* `LookupFactors`: token ids `[n, t]` and output gradients `[n, t, o]`;
* `TableFactors`: both, for a table that is looked up and used as a kernel;
* `DenseGradients`: the gradients themselves, one `[n, p]` per variable.

Rules also return `PositionGradients`, `[n, t, p]` per variable, which are
summed to `DenseGradients` except where scores are told apart by position.
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from keras_tracin.gradients.nest import Nest

Direction = tuple[tf.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class KernelAxes:
    """Order of a kernel's axes, where inputs do not come before outputs.

    Attributes:
        sizes: sizes of the axes of the inputs, and after them of the outputs.
        order: for each axis of the kernel, its place among these.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]

    def store(self, kernels: tf.Tensor) -> tf.Tensor:
        """Kernels `[..., i, o]` as entries `[n, p]` in the variable's order."""
        batch = tf.reshape(kernels, [-1, *self.sizes])
        stored = tf.transpose(batch, [0, *(1 + axis for axis in self.order)])
        return tf.reshape(stored, [-1, math.prod(self.sizes)])

    def load(self, entries: tf.Tensor) -> tf.Tensor:
        """Entries `[..., p]` of the variable as those of kernels, `[n, p]`."""
        sizes = [self.sizes[axis] for axis in self.order]
        places = [1 + self.order.index(at) for at in range(len(sizes))]
        batch = tf.reshape(entries, [-1, *sizes])
        loaded = tf.transpose(batch, [0, *places])
        return tf.reshape(loaded, [-1, math.prod(self.sizes)])


@dataclasses.dataclass(frozen=True)
class OuterFactors(Nest):
    """Gradients `Σ_t x_t δ_tᵀ` of a kernel `[i, o]`, and `Σ_t δ_t` of a bias.

    Attributes:
        inputs: inputs `x [n, t, i]` of the layer.
        grads: gradients `δ [n, t, o]` of the loss at the layer's output.
        bias: True if the gradients of a bias `[o]` are included.
        runs: number of adjacent entries along `t` for each position of the
            layer's input, as of heads.
        axes: the order of the kernel's axes, if it is another than `[i, o]`.
        calls: the number of entries along `t` of each call of the layer, where
            there are several.
    """

    inputs: tf.Tensor
    grads: tf.Tensor
    bias: bool = False
    runs: int = 1
    axes: KernelAxes | None = None
    calls: tuple[int | None, ...] = ()

    static = ("bias", "runs", "axes", "calls")

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
        calls: as of `OuterFactors`.
    """

    ids: tf.Tensor
    grads: tf.Tensor
    vocabulary: int
    calls: tuple[int | None, ...] = ()

    static = ("vocabulary", "calls")


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


@dataclasses.dataclass(frozen=True)
class PositionGradients(Nest):
    """Gradients of small variables, before they are summed over positions.

    Attributes:
        parts: gradients `[n, t, p]` of each variable.
        rows: `(first, count)` where the positions have rows of their own, one
            after another from the first one, in a table of so many rows.
        calls: as of `OuterFactors`.
    """

    parts: tuple[tf.Tensor, ...]
    rows: tuple[int, int] | None = None
    calls: tuple[int | None, ...] = ()

    static = ("rows", "calls")


Factors = (
    OuterFactors
    | LookupFactors
    | TableFactors
    | DenseGradients
    | PositionGradients
)
