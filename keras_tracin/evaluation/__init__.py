"""Whether scores tell what happens, and what they are good for."""

from keras_tracin.evaluation.leaving_out import LeaveOneOut, leave_one_out
from keras_tracin.evaluation.mislabels import (
    MislabelDetection,
    flip_labels,
    mislabel_detection,
)

__all__ = [
    "LeaveOneOut",
    "MislabelDetection",
    "flip_labels",
    "leave_one_out",
    "mislabel_detection",
]
