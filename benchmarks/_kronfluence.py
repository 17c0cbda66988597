"""Scores by kronfluence's EK-FAC, on a PyTorch copy of the network.

Only this module needs `pip install torch kronfluence`.
"""

import logging
import tempfile
from collections.abc import Callable

# TensorFlow first: loaded after PyTorch, the two can clash over OpenMP.
import keras
import numpy as np
import tensorflow as tf  # noqa: F401
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import _models, _torch


class _Classification(Task):
    """The cross-entropy of logits, summed, for both sides."""

    def compute_train_loss(self, batch, model, sample=False):
        x, labels = batch
        logits = model(x)
        if sample:
            likely = logits.detach().softmax(dim=-1)
            labels = torch.multinomial(likely, 1).flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def ekfac(
    model: keras.Model,
    train: _models.Arrays,
    test: _models.Arrays,
    damping: float,
    batch_size: int,
) -> Callable[[], np.ndarray]:
    """A call for kronfluence's scores `[m, n]`, its factors fitted anew.

    Args:
        model: Keras model whose layers and weights are copied.
        train: Training examples.
        test: Queries, taken in one batch.
        damping: damping λ.
        batch_size: Number of training examples that it takes at a time.
    """
    task = _Classification()
    network = prepare_model(_torch.twin(model).eval(), task)
    data, queries = (TensorDataset(*_torch.tensors(p)) for p in (train, test))

    def scores() -> np.ndarray:
        with tempfile.TemporaryDirectory() as directory:
            analyzer = Analyzer(
                "benchmark",
                network,
                task,
                cpu=True,
                disable_tqdm=True,
                log_level=logging.ERROR,
                output_dir=directory,
            )
            analyzer.fit_all_factors(
                "factors",
                data,
                per_device_batch_size=batch_size,
                factor_args=FactorArguments(strategy="ekfac"),
            )
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                queries,
                data,
                per_device_query_batch_size=len(queries),
                per_device_train_batch_size=batch_size,
                score_args=ScoreArguments(damping_factor=damping),
            )
            scores = analyzer.load_pairwise_scores("scores")
            return scores["all_modules"].numpy()

    return scores
