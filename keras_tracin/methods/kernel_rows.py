"""Rows of TRAK, for an index, whose products are its scores.

With the Cholesky factor L of the kernel ΦᵀΦ + λI at a checkpoint, a row is
L⁻¹ φ(z) times the mean Q of the example over the checkpoints, a query's vector
L⁻¹ φ(z') times what a rise of its output helps it; a rotation of both makes
their entries alike in size. There is no other projection than TRAK's own. The
kernels are files beside the rows: they stay those of the training examples that
the index was built from.

Synopsis:

    recipe = kernel_rows(engine, checkpoints, kernels, fit, settings,
                         more=more, projection=None, keep=keep)
    projection = kernel_side(identity, directory, kt.TensorSketch(2048))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_tracin.engine.engine import Engine
from keras_tracin.engine.identity import More
from keras_tracin.engine.identity import identity as identity_of
from keras_tracin.engine.visits import Weights
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import Factors
from keras_tracin.losses.model_outputs import HELP, PULL
from keras_tracin.methods.index_rows import describe_checkpoints
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.methods.trak_kernels import Kernels
from keras_tracin.projection import Projection, project
from keras_tracin.projection.mapped import at_position, rotation
from keras_tracin.storage import files
from keras_tracin.storage.arrays import load_arrays, save_arrays

_REMEDY = "Delete the index and build it anew."


def kernel_rows(
    engine: Engine,
    checkpoints: Weights,
    kernels: Kernels,
    fit: Callable[[], None],
    settings: dict[str, Any],
    *,
    more: More,
    projection: Projection | None,
    keep: Keep,
) -> RowRecipe:
    """Rows of TRAK.

    Args:
        engine: the model with its training data, and the output f.
        checkpoints: the checkpoints whose mean is scored.
        kernels: the kernels at the checkpoints.
        fit: fits them.
        settings: options of the method, as JSON.
        more: makes numbers that tell outputs apart.
        projection: None, or the method's own.
        keep: keeps the kernels.

    Raises:
        ValueError: if another projection is given.
    """
    own = engine.projection
    assert own is not None
    if projection not in (None, own):
        raise ValueError(
            "The rows of TRAK are made of its own projection. Received: "
            f"projection={projection!r} for a TRAK with {own!r}. Leave it out "
            "here, and give it to `TRAK`."
        )

    def save(path: Path, position: int) -> None:
        fit()
        roots = [
            rotation(len(root)) @ root
            for root in kernels.inverse_roots(position)
        ]
        save_arrays(path, {f"{at}": root for at, root in enumerate(roots)})

    kept = [
        keep(
            _file(at),
            functools.partial(save, position=at),
            engine.execution.strategy,
        )
        for at in range(len(checkpoints))
    ]
    identity = {
        **identity_of(engine),
        "method": "TRAK",
        **settings,
        **describe_checkpoints(checkpoints),
        "files": {path.name: files.digest(path) for path in kept},
    }
    side = kernel_side(identity, kept[0].parent, own)
    return RowRecipe(
        engine,
        checkpoints,
        side,
        side,
        identity,
        columns=(PULL, HELP),
        projection=own,
        more=more,
    )


def kernel_side(
    identity: dict[str, Any], directory: Path, projection: Projection
) -> Projection:
    """What makes both rows and vectors, from the files of an index.

    Args:
        identity: identity of the index.
        directory: its directory.
        projection: TRAK's own.
    """
    roots = []
    for name in map(_file, range(len(identity["checkpoints"]))):
        arrays = load_arrays(directory / name, _REMEDY)
        roots.append(
            [tf.constant(arrays[f"{at}"]) for at in range(len(arrays))]
        )
    return _Whitened(projection, roots)


@dataclasses.dataclass(frozen=True, eq=False)
class _Whitened:
    """L⁻¹ φ of each group that has a kernel, one after another.

    Attributes:
        projection: makes φ.
        roots: L⁻¹ of each group at each checkpoint, `[d, d]`, rotated.
    """

    projection: Projection
    roots: Sequence[Sequence[tf.Tensor]]

    @property
    def dim(self) -> int:
        """Length of all together."""
        return sum(len(root) for root in self.roots[0])

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """The vectors `[n, dim]` of `n` examples' gradients.

        Args:
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """
        groups = [
            flat.rows((group,))
            for group in project(self.projection, factors, position)
        ]

        def solved(roots: Sequence[tf.Tensor]) -> tf.Tensor:
            parts = [
                tf.matmul(tf.cast(group, root.dtype), root, transpose_b=True)
                for group, root in zip(groups, roots, strict=True)
            ]
            return tf.cast(tf.concat(parts, axis=1), groups[0].dtype)

        return at_position(self.roots, position, solved)


def _file(position: int) -> str:
    return f"kernel-{position:03d}.npz"
