"""Evaluates scores by real trainings, planted truths and plain baselines."""

from keras_tracin.evaluation.baselines import (
    BM25,
    TFIDF,
    EmbeddingSimilarity,
)
from keras_tracin.evaluation.brittle import Brittleness, brittleness
from keras_tracin.evaluation.curves import RetrainingCurves
from keras_tracin.evaluation.datamodels import LDS, lds
from keras_tracin.evaluation.leaving_out import LeaveOneOut, leave_one_out
from keras_tracin.evaluation.mislabels import (
    MislabelDetection,
    flip_labels,
    mislabel_detection,
)
from keras_tracin.evaluation.randomization import (
    ModelRandomization,
    model_randomization,
)
from keras_tracin.evaluation.removing import removal_curve, selection_curve
from keras_tracin.evaluation.retrievals import Retrieval, retrieval
from keras_tracin.evaluation.scorecards import Scorecard, scorecard
from keras_tracin.evaluation.subsets import Retrained, retrain_on_subsets
from keras_tracin.evaluation.tail_patches import TailPatch, tail_patch

__all__ = [
    "BM25",
    "LDS",
    "TFIDF",
    "Brittleness",
    "EmbeddingSimilarity",
    "LeaveOneOut",
    "MislabelDetection",
    "ModelRandomization",
    "Retrained",
    "RetrainingCurves",
    "Retrieval",
    "Scorecard",
    "TailPatch",
    "brittleness",
    "flip_labels",
    "lds",
    "leave_one_out",
    "mislabel_detection",
    "model_randomization",
    "removal_curve",
    "retrain_on_subsets",
    "retrieval",
    "scorecard",
    "selection_curve",
    "tail_patch",
]
