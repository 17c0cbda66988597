"""Influence by differentiating the recorded training itself."""

from keras_tracin.unrolled.influence import UnrolledInfluence

__all__ = ["UnrolledInfluence"]
