"""A part of the trained model that is recorded alone.

Synopsis:

    check_part(model, part)
    locate(model, part, [0, 3])     # (1,): the part's second weight is updated
"""

from __future__ import annotations

from collections.abc import Iterable

import keras


def check_part(model: keras.Model, part: keras.Model) -> None:
    """Raises ValueError unless the trained model has the part's weights."""
    known = {id(weight) for weight in model.weights}
    if any(id(weight) not in known for weight in part.weights):
        raise ValueError(
            "`model` should be a part of the model that fit trains, which "
            "holds it as an attribute. Received a model with weights that "
            f"{model.name!r} does not have: {part.name!r}."
        )


def locate(
    model: keras.Model, part: keras.Model, positions: Iterable[int]
) -> tuple[int, ...]:
    """Positions in the part's weights, of positions in the model's.

    Those of weights that the part does not have are left out.
    """
    if part is model:
        return tuple(positions)
    weights = model.weights
    places = {id(weight): i for i, weight in enumerate(part.weights)}
    known = [places.get(id(weights[position])) for position in positions]
    return tuple(sorted(place for place in known if place is not None))


def layers_in(part: keras.Model, names: Iterable[str]) -> list[str]:
    """Those names of layers, or their paths, that are in the part."""
    known = {layer.path or layer.name for layer in part._flatten_layers()}
    return [name for name in names if name in known]
