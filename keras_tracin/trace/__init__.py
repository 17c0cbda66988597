"""Observes training step by step: TracInIdeal, and sketches of gradients."""

from keras_tracin.trace.plain import record_training
from keras_tracin.trace.result import StepTable, TrainingTrace
from keras_tracin.trace.sketches import TrainingSketches
from keras_tracin.trace.sketching import sketch_training
from keras_tracin.trace.tracing import trace_training

__all__ = [
    "StepTable",
    "TrainingSketches",
    "TrainingTrace",
    "record_training",
    "sketch_training",
    "trace_training",
]
