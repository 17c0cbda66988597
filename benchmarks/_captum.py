"""The same scores by captum's `TracInCP`, on a PyTorch twin of the network.

Needs `pip install torch captum`, which nothing else here does.
"""

import copy
from collections.abc import Callable

# TensorFlow first: loaded after PyTorch, the two can clash over OpenMP.
import keras
import numpy as np
import tensorflow as tf  # noqa: F401
import torch
from captum.influence import TracInCP
from torch import nn

from benchmarks import _models


def twin(model: keras.Model) -> nn.Sequential:
    """A PyTorch network with the layers and the weights of a Sequential one.

    It reads channels first, as PyTorch does. The input of the layer after
    Flatten is put in that order too.
    """
    modules: list[nn.Module] = []
    flattened: tuple[int, ...] | None = None
    for layer in model.layers:
        if isinstance(layer, keras.layers.Flatten):
            flattened = layer.input.shape[1:]
            modules.append(nn.Flatten())
        elif isinstance(layer, keras.layers.MaxPooling2D):
            modules.append(nn.MaxPool2d(layer.pool_size, layer.strides))
        elif isinstance(layer, keras.layers.Conv2D):
            modules.append(_convolution(layer))
        elif isinstance(layer, keras.layers.Dense):
            modules.append(_linear(layer, flattened))
            flattened = None
        else:
            raise TypeError(
                "Expected Dense, Conv2D, MaxPooling2D or Flatten. "
                f"Received: layer={layer}"
            )
        if getattr(layer, "activation", None) is keras.activations.relu:
            modules.append(nn.ReLU())
    return nn.Sequential(*modules)


def _convolution(layer: keras.layers.Conv2D) -> nn.Conv2d:
    kernel, bias = layer.get_weights()  # kernel: [height, width, in, out]
    module = nn.Conv2d(
        kernel.shape[2], kernel.shape[3], kernel.shape[:2], layer.strides
    )
    _assign(module, kernel.transpose(3, 2, 0, 1), bias)
    return module


def _linear(
    layer: keras.layers.Dense, flattened: tuple[int, ...] | None
) -> nn.Linear:
    kernel, bias = layer.get_weights()  # kernel: [in, out]
    if flattened is not None:
        # From rows of (height, width, channel) to (channel, height, width).
        kernel = kernel.reshape(*flattened, -1).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    module = nn.Linear(*kernel.shape)
    _assign(module, kernel.T, bias)
    return module


def _assign(module: nn.Module, weight: np.ndarray, bias: np.ndarray) -> None:
    module.load_state_dict(
        {
            "weight": torch.from_numpy(np.ascontiguousarray(weight)),
            "bias": torch.from_numpy(bias),
        }
    )


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
    network = twin(model).eval()
    tracin = TracInCP(
        network,
        torch.utils.data.TensorDataset(*_tensors(train)),
        checkpoints=[copy.deepcopy(network.state_dict())],
        checkpoints_load_func=_load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=batch_size,
        sample_wise_grads_per_batch=True,
    )
    queries = _tensors(test)
    return lambda: tracin.influence(queries).numpy()


def _load(network: nn.Module, checkpoint: dict[str, torch.Tensor]) -> float:
    network.load_state_dict(checkpoint)
    return 1.0


def _tensors(examples: _models.Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = examples
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
