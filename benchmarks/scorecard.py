"""One table of several methods by `evaluation.scorecard`.

    python -m benchmarks.scorecard --settings=mnist_mlp --cache_dir=quality

Settings, recorded trainings and outcomes of retraining are those of
`benchmarks.quality`, which explains them. Methods score five checkpoints of one
training, as they are used by default.
"""

import os
import pathlib
import warnings

import numpy as np
from absl import app, flags

import keras_tracin as kt
from benchmarks import _quality_methods as _methods
from benchmarks import _quality_outcomes as _outcomes
from benchmarks._quality_settings import QUERIES, SETTINGS

_SETTINGS = flags.DEFINE_list(
    "settings", ["mnist_logistic", "mnist_mlp"], "What to measure."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "quality", "Directory of recorded trainings."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/, dbpedia/ and california_housing/.",
)
_OUTCOMES = pathlib.Path(__file__).with_name("quality_results")
_SUBSETS = 50


def _card(name: str) -> kt.evaluation.Scorecard:
    folder = pathlib.Path(_CACHE_DIR.value, name)
    setting = SETTINGS[name].prepared(_DATA_DIR.value, folder)
    train, everyone = setting.load(_DATA_DIR.value)
    test = tuple(part[:QUERIES] for part in everyone)
    described = _outcomes.describe(setting.describe(), train, everyone)
    path = _OUTCOMES / f"{name}.npz"
    outcomes = _outcomes.load(path, described, len(train[0]), _SUBSETS)
    if outcomes is None:
        raise FileNotFoundError(f"{path}: run benchmarks.quality first.")
    retrained = kt.evaluation.Retrained(
        outcomes.masks,
        outcomes.each[:, :, :QUERIES],
        outcomes.train_ids,
        np.arange(QUERIES),
    )
    trained = _methods.Problem(setting, train, test, folder).trained()
    model = trained.model
    is_classifier = test[1].dtype.kind in "iu"
    methods = {
        "TracIn": lambda run: kt.TracIn(model, train, run),
        "TracIn, unit lengths": lambda run: kt.TracIn(
            model, train, run, normalize="train"
        ),
        "EK-FAC": lambda run: kt.InfluenceFunctions(model, train, run=run),
        "EK-FAC, RelatIF": lambda run: kt.InfluenceFunctions(
            model, train, run=run[-1:], relative="loss"
        ),
        "TRAK": lambda run: kt.TRAK(model, train, run),
        "SOURCE": lambda run: kt.SOURCE(model, train, run, segments=2),
        "embeddings": lambda run: kt.evaluation.EmbeddingSimilarity(
            model, train
        ),
        "inputs": lambda run: kt.evaluation.EmbeddingSimilarity(
            None, train, encoder=lambda x: x
        ),
    }
    return kt.evaluation.scorecard(
        methods,
        model,
        train,
        test,
        run=_methods.five(trained.run),
        retrained=retrained,
        relevant=test[1][:, None] == train[1] if is_classifier else None,
        learning_rate=0.01,
        verbose=0,
    )


def main(_) -> None:
    """Prints a table for each setting."""
    warnings.simplefilter("ignore")
    for name in _SETTINGS.value:
        print(f"{name}\n\n{_card(name)}\n", flush=True)


if __name__ == "__main__":
    app.run(main)
