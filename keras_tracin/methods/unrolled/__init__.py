"""Influence by differentiating the recorded training itself."""

from keras_tracin.methods.unrolled.influence import UnrolledInfluence
from keras_tracin.methods.unrolled.smoothness import Smoothness

__all__ = ["Smoothness", "UnrolledInfluence"]
