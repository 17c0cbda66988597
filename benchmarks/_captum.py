"""The same scores by captum's `TracInCP`, on a PyTorch twin of the network.

Needs `pip install torch captum`, which nothing else here does.
"""

import copy
from collections.abc import Callable

import keras
import numpy as np
import torch
from captum.influence import TracInCP
from torch import nn

from benchmarks import _models, _torch


def influence(
    model: keras.Model,
    train: _models.Arrays,
    test: _models.Arrays,
    batch_size: int,
) -> Callable[[], np.ndarray]:
    """A call for captum's scores [num_test, num_train], learning rate 1.

    captum takes the gradients of a whole batch at once, which is the fastest
    of its exact ways and wants a loss that is summed over the batch.

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
