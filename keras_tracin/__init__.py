"""Which training examples made a Keras model behave as it does.

    import keras_tracin as kt

    model.fit(train, epochs=10, callbacks=[kt.TracInCheckpoint("runs/digits")])
    tracin = kt.TracIn(model, train, "runs/digits")
    tracin.top_k(test, k=10)       # proponents and opponents of each query
    tracin.self_influence()        # large for mislabelled examples

Positive scores are proponents: training on the example lowered the query's
loss.
"""

import importlib as _importlib
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

import keras as _keras

if _keras.config.backend() != "tensorflow":
    raise ImportError(
        "keras_tracin needs Keras on TensorFlow. Received the backend "
        f"'{_keras.config.backend()}'; set KERAS_BACKEND=tensorflow before "
        "importing keras."
    )

from keras_tracin._version import __version__
from keras_tracin.callbacks import TracInCheckpoint
from keras_tracin.check import CheckReport, Finding, check
from keras_tracin.curvature.solvers import (
    CG,
    EKFAC,
    Arnoldi,
    Exact,
    InverseSketch,
    LiSSA,
    RandomizedSketch,
)
from keras_tracin.data.with_ids import with_ids
from keras_tracin.methods import representer, unrolled
from keras_tracin.methods.dropout_ensemble import DropoutEnsemble
from keras_tracin.methods.ensemble import Ensemble
from keras_tracin.methods.influence import InfluenceFunctions
from keras_tracin.methods.representer import (
    Faithfulness,
    L2Sweep,
    RepresenterPoints,
    sweep_l2,
)
from keras_tracin.methods.source import SOURCE
from keras_tracin.methods.tracin import TracIn
from keras_tracin.methods.trak import TRAK
from keras_tracin.methods.unrolled import UnrolledInfluence
from keras_tracin.projection import (
    FactoredProjection,
    GaussianProjection,
    TensorSketch,
)
from keras_tracin.results import (
    Attribution,
    Ranking,
    SelfInfluence,
    TokenInfluence,
    TopK,
)
from keras_tracin.runs import (
    Checkpoint,
    TrainingRun,
    WhenLossDrops,
    select_checkpoints,
)

if _TYPE_CHECKING:
    from keras_tracin import evaluation, plots, report, tensorboard
    from keras_tracin.index import InfluenceIndex
    from keras_tracin.labels import (
        LabelIssues,
        TrainingDynamics,
        find_label_issues,
        training_dynamics,
    )
    from keras_tracin.selection import Selection, select_examples
    from keras_tracin.trace import (
        StepTable,
        TrainingSketches,
        TrainingTrace,
        record_training,
        sketch_training,
        trace_training,
    )
else:
    # A training and its first scores do not need these. They are imported when
    # they are first used, since they take as long to import as the rest.
    _LATER = {
        "evaluation": (),
        "index": ("InfluenceIndex",),
        "labels": (
            "LabelIssues",
            "TrainingDynamics",
            "find_label_issues",
            "training_dynamics",
        ),
        "plots": (),
        "report": (),
        "selection": ("Selection", "select_examples"),
        "tensorboard": (),
        "trace": (
            "StepTable",
            "TrainingSketches",
            "TrainingTrace",
            "record_training",
            "sketch_training",
            "trace_training",
        ),
    }

    def __getattr__(name):
        for package, names in _LATER.items():
            if name == package or name in names:
                module = _importlib.import_module(f"{__name__}.{package}")
                value = module if name == package else getattr(module, name)
                return globals().setdefault(name, value)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *_LATER, *__all__})


# Users import these, and what is in them, without naming `methods`.
for _package in (representer, unrolled):
    for _name in [
        n for n in _sys.modules if f"{n}.".startswith(f"{_package.__name__}.")
    ]:
        _sys.modules[_name.replace(".methods.", ".", 1)] = _sys.modules[_name]

__all__ = [
    "CG",
    "EKFAC",
    "SOURCE",
    "TRAK",
    "Arnoldi",
    "Attribution",
    "CheckReport",
    "Checkpoint",
    "DropoutEnsemble",
    "Ensemble",
    "Exact",
    "FactoredProjection",
    "Faithfulness",
    "Finding",
    "GaussianProjection",
    "InfluenceFunctions",
    "InfluenceIndex",
    "InverseSketch",
    "L2Sweep",
    "LabelIssues",
    "LiSSA",
    "RandomizedSketch",
    "Ranking",
    "RepresenterPoints",
    "Selection",
    "SelfInfluence",
    "StepTable",
    "TensorSketch",
    "TokenInfluence",
    "TopK",
    "TracIn",
    "TracInCheckpoint",
    "TrainingDynamics",
    "TrainingRun",
    "TrainingSketches",
    "TrainingTrace",
    "UnrolledInfluence",
    "WhenLossDrops",
    "__version__",
    "check",
    "evaluation",
    "find_label_issues",
    "plots",
    "record_training",
    "report",
    "select_checkpoints",
    "select_examples",
    "sketch_training",
    "sweep_l2",
    "tensorboard",
    "trace_training",
    "training_dynamics",
    "with_ids",
]
