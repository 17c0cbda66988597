"""Training runs: their checkpoints, on the disk and put into a model."""

from keras_tracin.runs.checkpoint import Checkpoint
from keras_tracin.runs.onlooker import Onlooker
from keras_tracin.runs.optimizer_state import (
    RecordedState,
    initial_optimizer,
    recorded_state,
)
from keras_tracin.runs.rewriting import changed_weights
from keras_tracin.runs.run import TrainingRun
from keras_tracin.runs.segments import Segment, Segments, cut_run
from keras_tracin.runs.selection import WhenLossDrops, select_checkpoints
from keras_tracin.runs.weights import check_checkpoint, run_weights
from keras_tracin.runs.writer import RunWriter

__all__ = [
    "Checkpoint",
    "Onlooker",
    "RecordedState",
    "RunWriter",
    "Segment",
    "Segments",
    "TrainingRun",
    "WhenLossDrops",
    "changed_weights",
    "check_checkpoint",
    "cut_run",
    "initial_optimizer",
    "recorded_state",
    "run_weights",
    "select_checkpoints",
]
