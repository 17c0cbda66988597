"""What a training says of its labels: its dynamics, and wrong ones."""

from keras_tracin.labels.dynamics import TrainingDynamics
from keras_tracin.labels.finding import find_label_issues
from keras_tracin.labels.issues import LabelIssues
from keras_tracin.labels.measuring import training_dynamics

__all__ = [
    "LabelIssues",
    "TrainingDynamics",
    "find_label_issues",
    "training_dynamics",
]
