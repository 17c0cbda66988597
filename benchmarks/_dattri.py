"""Scores by dattri, on PyTorch copies of the networks.

Only this module needs `pip install torch dattri`.
"""

from collections.abc import Callable

# TensorFlow first: loaded after PyTorch, the two can clash over OpenMP.
import keras
import numpy as np
import tensorflow as tf  # noqa: F401
import torch
from dattri.algorithm.influence_function import IFAttributorCG
from dattri.algorithm.rps import RPSAttributor
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import keras_tracin as kt
from benchmarks import _models, _torch


class Representer:
    """dattri's representer points on given representations.

    Its labels are the network's own probabilities before retuning.

    Args:
        weights: weights `[f, k]` of the last layer before retuning.
        features: features `[n, f]` of the training examples.
        l2: L2 regularisation λ.
    """

    def __init__(self, weights: np.ndarray, features: np.ndarray, l2: float):
        self._start, self._l2 = weights, l2
        # The labels beside them are not read.
        labels = np.zeros(len(features))
        self._loader = _loader(*_torch.tensors((features, labels)))
        self._attributor = self._new()

    def _new(self) -> RPSAttributor:
        network = nn.Sequential()
        network.add_module("head", nn.Linear(*self._start.shape, bias=False))
        start = torch.tensor(self._start.T, dtype=torch.float32)
        task = AttributionTask(
            nn.functional.cross_entropy, network, {"head.weight": start}
        )
        return RPSAttributor(task, "head", l2_strength=self._l2)

    @property
    def weights(self) -> np.ndarray:
        """Weights of the retuned layer, `[f, k]`."""
        return self._attributor.finetuned_theta.numpy().T

    def retuned(self) -> "Representer":
        """Retunes from the initial weights; returns itself."""
        self._attributor = self._new()
        self._attributor.cache(self._loader)
        return self

    def with_weights(self, weights: np.ndarray) -> "Representer":
        """Uses weights that were retuned elsewhere; returns itself."""
        self._attributor.finetuned_theta = torch.tensor(
            weights.T, dtype=torch.float32
        )
        return self

    def scores(self, queries: _models.Arrays) -> np.ndarray:
        """Scores for the queries' labels, `[m, n]`; queries are features."""
        asked = _loader(*_torch.tensors(queries))
        return self._attributor.attribute(self._loader, asked).numpy().T


def conjugate_gradients(
    model: keras.Model,
    train: _models.Arrays,
    test: _models.Arrays,
    damping: float,
    steps: int,
) -> Callable[[], np.ndarray]:
    """A call for dattri's influence functions by CG, `[m, n]`.

    Args:
        model: Keras model whose layers and weights are copied.
        train: Training examples.
        test: Queries.
        damping: damping λ.
        steps: number of CG steps of each query; there is no tolerance.
    """
    network = _torch.twin(model).eval()

    def loss(parameters, data):
        x, y = data
        logits = torch.func.functional_call(network, parameters, (x,))
        return nn.functional.cross_entropy(logits, y)

    task = AttributionTask(loss, network, network.state_dict())
    attributor = IFAttributorCG(task, max_iter=steps, regularization=damping)
    # In one batch each: it solves again for every batch of training examples,
    # and adds up the solutions for those that the curvature is made of.
    loaders = [_loader(*_torch.tensors(part)) for part in (train, test)]

    def scores() -> np.ndarray:
        attributor.cache(loaders[0])
        return attributor.attribute(*loaders).detach().numpy().T

    return scores


def tracin(
    model: keras.Model,
    run: kt.TrainingRun,
    train: _models.Arrays,
    test: _models.Arrays,
) -> np.ndarray:
    """TracIn by dattri over a run's checkpoints, not projected, `[m, n]`."""
    network = _torch.twin(model).eval()

    def loss(parameters, example):
        return nn.functional.cross_entropy(
            *_alone(network, parameters, example)
        )

    attributor = TracInAttributor(
        AttributionTask(loss, network, _torch.states(model, run)),
        torch.tensor([checkpoint.learning_rate for checkpoint in run]),
        normalized_grad=False,
    )
    attributor.projector_kwargs = None  # it projects unless told otherwise
    loaders = [
        DataLoader(TensorDataset(*_torch.tensors(part)), batch_size=250)
        for part in (train, test)
    ]
    return attributor.attribute(*loaders).numpy().T


def trak(
    model: keras.Model,
    run: kt.TrainingRun,
    train: _models.Arrays,
    test: _models.Arrays,
    dim: int,
) -> np.ndarray:
    """TRAK by dattri over a run's checkpoints, without λ, `[m, n]`."""
    network = _torch.twin(model).eval()

    def chance(parameters, example):
        return torch.exp(
            -nn.functional.cross_entropy(*_alone(network, parameters, example))
        )

    def margin(parameters, example):
        p = chance(parameters, example)
        return torch.log(p / (1 - p))

    task = AttributionTask(margin, network, _torch.states(model, run))
    attributor = TRAKAttributor(
        task,
        chance,
        projector_kwargs={"proj_dim": dim, "proj_max_batch_size": 32},
    )
    loaders = [
        DataLoader(TensorDataset(*_torch.tensors(part)), batch_size=250)
        for part in (train, test)
    ]
    attributor.cache(loaders[0])
    return attributor.attribute(loaders[1]).detach().numpy().T


def _alone(network: nn.Module, parameters, example) -> tuple:
    """Logits and label of one example, as a batch of one."""
    x, y = (part.unsqueeze(0) for part in example)
    return torch.func.functional_call(network, parameters, (x,)), y


def _loader(x: torch.Tensor, y: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=len(x))
