"""Representer points: logits as sums over training examples."""

from keras_tracin.methods.representer.faithfulness import (
    Faithfulness,
    L2Sweep,
    sweep_l2,
)
from keras_tracin.methods.representer.points import RepresenterPoints

__all__ = ["Faithfulness", "L2Sweep", "RepresenterPoints", "sweep_l2"]
