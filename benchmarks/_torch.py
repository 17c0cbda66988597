"""PyTorch copies of networks and of data, for other libraries.

Only these comparisons need `pip install torch`.
"""

import copy
import sys

# TensorFlow first: loaded after PyTorch, the two can clash over OpenMP.
import keras
import numpy as np
import tensorflow as tf  # noqa: F401
import torch
from torch import nn

import keras_tracin as kt
from benchmarks import _models
from keras_tracin.runs import run_weights

_ACTIVATIONS = {
    keras.activations.relu: nn.ReLU,
    keras.activations.tanh: nn.Tanh,
}


def hide_triton() -> None:
    """Keeps PyTorch from loading triton; call it before importing peers.

    Its LLVM conflicts with that of TensorFlow and crashes. On a CPU, triton is
    not needed.
    """
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


def twin(model: keras.Model) -> nn.Sequential:
    """A PyTorch network with the layers and the weights of a Sequential one.

    It has channels first, as usual in PyTorch. The input of the layer after
    Flatten is reordered accordingly.
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
        elif isinstance(layer, keras.layers.Dropout):
            continue  # for a network that is evaluated
        else:
            raise TypeError(
                "Expected Dense, Conv2D, MaxPooling2D, Dropout or Flatten. "
                f"Received: layer={layer}"
            )
        activation = _ACTIVATIONS.get(getattr(layer, "activation", None))
        if activation is not None:
            modules.append(activation())
    return nn.Sequential(*modules)


def states(
    model: keras.Model, run: kt.TrainingRun
) -> list[dict[str, torch.Tensor]]:
    """The weights of a run's checkpoints, for the model's twin."""
    weights_by_checkpoint = []
    with run_weights(model) as load:
        for checkpoint in run:
            load(checkpoint)
            weights_by_checkpoint.append(
                copy.deepcopy(twin(model).state_dict())
            )
    return weights_by_checkpoint


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


def tensors(examples: _models.Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, channels first, and labels."""
    x, y = examples
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
