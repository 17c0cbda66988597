"""Sketches on disk and a search among them (Pruthi et al. 2020, section C)."""

from keras_tracin.index.index import InfluenceIndex

__all__ = ["InfluenceIndex"]
