"""Which training examples to keep, by scores, dynamics and sketches."""

from keras_tracin.selection.selecting import select_examples
from keras_tracin.selection.selection import Selection

__all__ = ["Selection", "select_examples"]
