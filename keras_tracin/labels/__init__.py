"""What a training says of its labels: its dynamics, and wrong ones."""

from keras_tracin.labels.dynamics import TrainingDynamics
from keras_tracin.labels.measuring import training_dynamics

__all__ = ["TrainingDynamics", "training_dynamics"]
