"""Ensembles of one training: a method under several fixed masks of Dropout.

A network that was trained with Dropout is many: each mask of its units leaves
another one, which was trained along with the rest. The mean of a method's
scores over a few of them needs no further training (Deng et al. 2024,
"Efficient Ensembles Improve Training Data Attribution").

Synopsis:

    def member(network, number):
        projection = kt.TensorSketch(2048, seed=number)
        return kt.TRAK(network, train, run, projection=projection)

    ensemble = kt.DropoutEnsemble(member, model, num_masks=10)
    ensemble.influence(test)       # Attribution [num_test, num_train]
"""

from __future__ import annotations

import numbers
from collections.abc import Callable

import keras

from keras_tracin.methods.attributor import Attributor
from keras_tracin.methods.ensemble import Ensemble
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.models.subnetworks import subnetwork


class DropoutEnsemble(Ensemble):
    """The mean of a method's scores over sub-networks of one trained network.

    Example:
    ```python
    def member(network, number):
        projection = kt.TensorSketch(2048, seed=number)
        return kt.TRAK(network, train, run, projection=projection)

    kt.DropoutEnsemble(member, model, num_masks=10).top_k(test, k=10)
    ```

    Each member has a copy of the model, in which a fixed mask stands in place
    of each `Dropout` or `SpatialDropout` layer: units are left out with the
    layer's rate, the same for all examples, and the others are multiplied by
    1 / (1 - rate), as in training. The model itself is not changed. Weights
    of a run's checkpoints fit the copies. All other noise stays off, as
    everywhere: Dropout inside of other layers (attention, recurrent layers,
    subclassed models), `GaussianDropout`, `AlphaDropout`, and layers that you
    derive from `Dropout`. A layer that is used twice has one mask for both.

    Scores take as long as those of as many methods, and the copies as much
    memory as as many models. Where a method has random numbers, give each
    member a seed of its own: these average out as well.

    Args:
        member: `(network, number) -> method`: makes the method of one
            sub-network, numbered from 0.
        model: the trained model: functional or sequential, with `Dropout`.
        num_masks: the number of sub-networks.
        rate: the share of the units to leave out, in place of that of each
            layer.
        seed: of the masks. More masks have the first ones in common.
        scale: as in `Ensemble`.
        memory_limit: as in `Ensemble`.

    Attributes:
        attributors: the members.
        scale: None or `"query"`.

    Raises:
        TypeError: if `member` makes something else than methods.
        ValueError: if the model has no such layer, is not functional or
            cannot be copied by its layers' `get_config`, if `member` makes a
            method of the model itself, or if `num_masks` or `rate` cannot be;
            and as `Ensemble`.
    """

    title = "Dropout ensemble"

    @exclusive_access
    def __init__(
        self,
        member: Callable[[keras.Model, int], Attributor],
        model: keras.Model,
        num_masks: int = 10,
        *,
        rate: float | None = None,
        seed: int = 0,
        scale: str | None = None,
        memory_limit: int | None = None,
    ):
        check_is_model(model)
        is_whole = isinstance(num_masks, numbers.Integral)
        if not is_whole or num_masks < 1:
            raise ValueError(
                "`num_masks` should be a whole number of 1 or more. Received: "
                f"{num_masks!r}."
            )
        if rate is not None and not 0 < rate < 1:
            raise ValueError(
                "`rate` should be a share above 0 and below 1, or None for the "
                f"rates of the layers. Received: {rate!r}."
            )
        members = []
        for number in range(num_masks):
            network = subnetwork(model, number, seed, rate)
            members.append(member(network, number))
            if getattr(members[-1], "model", None) is model:
                raise ValueError(
                    "`member` should make the method of the network that it is "
                    "given, in which units are left out. Received a method of "
                    "the model itself: `member=lambda network, number: "
                    "kt.TracIn(network, train, run)`, for example."
                )
        super().__init__(members, scale=scale, memory_limit=memory_limit)
