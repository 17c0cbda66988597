"""Sketches on disk and the search among them (section C)."""

from keras_tracin.index.index import InfluenceIndex

__all__ = ["InfluenceIndex"]
