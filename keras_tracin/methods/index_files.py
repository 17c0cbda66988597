"""What the files of an index say about the vectors of its queries.

Synopsis:

    kept_files(identity)                # names and SHA-256
    projection = query_projection(identity, directory, None)
    projection.sketch(captured.factors, position=0)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras_tracin.curvature.solvers import InverseSketch
from keras_tracin.methods.index_rows import INVERSE, inverse_sides
from keras_tracin.methods.kernel_rows import kernel_side
from keras_tracin.methods.whitened_rows import sides
from keras_tracin.projection import (
    FactoredProjection,
    GaussianProjection,
    Projection,
    TensorSketch,
)

_KNOWN: dict[str, Any] = {
    kind.__name__: kind
    for kind in (TensorSketch, GaussianProjection, FactoredProjection)
}


def kept_files(identity: dict[str, Any]) -> dict[str, str]:
    """Files beside the rows that vectors are made with, and their SHA-256.

    Args:
        identity: identity of an index.
    """
    if "inverse" in identity:
        return {INVERSE: identity["inverse"]}
    return identity.get("files", {})


def described_projection(identity: dict[str, Any]) -> Projection | None:
    """The projection that an identity describes; None if a file holds it.

    Args:
        identity: identity of an index.

    Raises:
        ValueError: if it is of a class of the user's own.
    """
    if "projection" not in identity:
        return None
    fields = dict(identity["projection"])
    kind = _KNOWN.get(fields.pop("class"))
    if kind is None:
        raise ValueError(
            "The index was built with a projection of the user's own, "
            f"{identity['projection']}, which files do not hold. Pass it as "
            "`projection=`."
        )
    return kind(**fields)


def query_projection(
    identity: dict[str, Any], directory: Path, projection: Projection | None
) -> Projection:
    """The projection that makes queries' vectors, from the files of an index.

    Args:
        identity: identity of the index.
        directory: directory of the index.
        projection: the one it was built with, where its class is the user's
            own.

    Raises:
        ValueError: if such a one was not given.
    """
    if "inverse" in identity:
        _, of_query = inverse_sides(InverseSketch.load(directory / INVERSE))
        return of_query
    if projection is None:
        projection = described_projection(identity)
    assert projection is not None
    if "output" in identity:
        return kernel_side(identity, directory, projection)
    if "files" in identity:
        return sides(identity, directory, projection)[1]
    return projection
