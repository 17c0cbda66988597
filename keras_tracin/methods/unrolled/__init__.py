"""Influence by differentiating the recorded training itself."""

from keras_tracin.methods.unrolled.influence import UnrolledInfluence

__all__ = ["UnrolledInfluence"]
