"""Scores by captum's classes, on a PyTorch copy of the network.

Only this module needs `pip install torch captum`, and annoy for nearest
neighbours.
"""

import copy
from collections.abc import Callable

import keras
import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFastRandProj
from torch import nn

import keras_tracin as kt
from benchmarks import _models, _torch


def influence(
    model: keras.Model,
    train: _models.Arrays,
    test: _models.Arrays,
    batch_size: int,
) -> Callable[[], np.ndarray]:
    """A call for captum's scores [num_test, num_train], learning rate 1.

    captum computes the gradients of a whole batch at once, which is its fastest
    exact mode and needs a loss that is summed over the batch.

    Args:
        model: Keras model whose layers and weights are copied.
        train: Training examples.
        test: Queries.
        batch_size: Number of training examples that captum takes at a time.
    """
    network = _torch.twin(model).eval()
    tracin = TracInCP(
        network,
        torch.utils.data.TensorDataset(*_torch.tensors(train)),
        checkpoints=[copy.deepcopy(network.state_dict())],
        checkpoints_load_func=_load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=batch_size,
        sample_wise_grads_per_batch=True,
    )
    queries = _torch.tensors(test)
    return lambda: tracin.influence(queries).numpy()


def _load(network: nn.Module, checkpoint: dict[str, torch.Tensor]) -> float:
    network.load_state_dict(checkpoint)
    return 1.0


def fast_random_projection(
    model: keras.Model, run: kt.TrainingRun, train: _models.Arrays
) -> Callable[[_models.Arrays, int], np.ndarray]:
    """Neighbours in captum, by the last layer's gradients at all checkpoints.

    Args:
        model: Keras model whose layers are copied.
        run: the checkpoints, whose weights and learning rates are copied.
        train: Training examples.

    Returns:
        `(examples, k) -> ids [m, k]` of proponents, positions in `train`.
    """
    checkpoints = _with_rates(model, run)
    network = _torch.twin(model).eval()
    tracin = TracInCPFastRandProj(
        network,
        network[-1],
        torch.utils.data.TensorDataset(*_torch.tensors(train)),
        checkpoints=checkpoints,
        checkpoints_load_func=_load_with_rate,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=1024,
        vectorize=True,
    )

    def proponents(examples: _models.Arrays, k: int) -> np.ndarray:
        neighbours = tracin.influence(_torch.tensors(examples), k=k)
        return neighbours.indices.numpy()

    return proponents


def over_checkpoints(
    model: keras.Model,
    run: kt.TrainingRun,
    train: _models.Arrays,
    test: _models.Arrays,
) -> np.ndarray:
    """TracIn by captum over a run's checkpoints, `[num_test, num_train]`."""
    tracin = TracInCP(
        _torch.twin(model).eval(),
        torch.utils.data.TensorDataset(*_torch.tensors(train)),
        checkpoints=_with_rates(model, run),
        checkpoints_load_func=_load_with_rate,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=512,
        sample_wise_grads_per_batch=True,
    )
    return tracin.influence(_torch.tensors(test)).numpy()


def _with_rates(model: keras.Model, run: kt.TrainingRun) -> list[tuple]:
    """Yields weights and learning rate of each checkpoint."""
    rates = [checkpoint.learning_rate for checkpoint in run]
    return list(zip(_torch.states(model, run), rates, strict=True))


def _load_with_rate(
    network: nn.Module, checkpoint: tuple[dict[str, torch.Tensor], float]
) -> float:
    state, rate = checkpoint
    network.load_state_dict(state)
    return rate
