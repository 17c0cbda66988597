"""Explains the predicted class of a text by training texts (table 2).

    python -m examples.dbpedia --output_dir=out/dbpedia

Trains a network of word embeddings on the 14 classes of the DBpedia ontology,
and finds the proponents and opponents of the first test texts of a class that
it classifies right. Prints them as a table and draws it:

- table2.png: the query, its proponents and its opponents, as in table 2 of
  Pruthi et al. (2020).

`--data_dir` must have train.csv, test.csv (or .csv.gz) and classes.txt, without
a header and with the columns class (from 1), title and text. By default it is
`dbpedia` in the directory KERAS_TRACIN_DATA; without that, fast.ai's copy is
downloaded.
"""

import csv
import gzip
import os
import pathlib
import textwrap

import keras
import numpy as np
from absl import app, flags

from examples import _common, _methods
from keras_tracin import plots

_CLASS = flags.DEFINE_string(
    "class", "OfficeHolder", "Class of the test texts to explain."
)
_OUTPUT_DIR = _common.output_dir("out/dbpedia")
_DATA_DIR = _common.data_dir("Directory of the CSV files")
_SEED = _common.seed()
_STRATEGY = _common.strategy()
_NUM_TRAIN = _common.num_train(5_000)
_NUM_QUERIES = _common.num_queries(1)
_EPOCHS = _common.epochs(15)
_K = _common.k(3)
_METHODS = _methods.define_flags(checkpoints=5, methods=["tracin"])

SOURCE = "https://s3.amazonaws.com/fast-ai-nlp/dbpedia_csv.tgz"
WORDS = 10_000
LENGTH = 100  # words of a text


def main(_):
    strategy = _common.create_strategy(_STRATEGY.value)
    keras.utils.set_random_seed(_SEED.value)
    folder = find_folder()
    classes = (folder / "classes.txt").read_text().split()
    texts, labels = read(folder, "train", _NUM_TRAIN.value)
    test_texts, test_labels = read(folder, "test", 5_000)

    words = keras.layers.TextVectorization(WORDS, output_sequence_length=LENGTH)
    words.adapt(texts)
    train = np.asarray(words(texts)), labels
    test = np.asarray(words(test_texts)), test_labels
    model = _common.build_under(strategy, lambda: build_model(len(classes)))
    run = _common.fit(model, train, f"{_OUTPUT_DIR.value}/run", _EPOCHS.value)
    predicted = _common.predictions(model, test[0])
    right = predicted == test_labels
    print(f"{right.mean():.1%} of the test texts are right.")

    matches = right & (test_labels == classes.index(_CLASS.value))
    rows = np.flatnonzero(matches)[: _NUM_QUERIES.value]
    if not len(rows):
        raise SystemExit(f"No test text of {_CLASS.value} is right.")
    queries = tuple(part[rows] for part in test)
    names = [classes[label] for label in labels]
    for name, method in _METHODS.make(model, train, run, strategy).items():
        top = method.top_k(queries, k=_K.value, verbose=0)
        query_texts = [test_texts[at] for at in rows]
        print(f"\n{name}")
        print_table(top, query_texts, texts, names)
        figure = plots.text_table(
            top,
            query_texts,
            texts,
            query_labels=[_CLASS.value] * len(rows),
            train_labels=names,
        )
        mark = "" if name == "TracIn" else "_" + name.split()[0].lower()
        _common.save(figure, _OUTPUT_DIR.value, f"table2{mark}.png")


def find_folder():
    """The directory of the CSV files, which are downloaded if needed."""
    folder = _DATA_DIR.value or _common.offline("dbpedia")
    if folder is None:
        path = keras.utils.get_file(origin=SOURCE, extract=True)
        folder = next(pathlib.Path(path).rglob("train.csv")).parent
    return pathlib.Path(folder)


def read(folder, part, most):
    """Reads texts with titles, if there are any, and classes from 0.

    Rows are selected at random, since the published files are sorted.
    """
    path = folder / f"{part}.csv"
    zipped = path.with_name(path.name + ".gz")
    open_file = gzip.open if zipped.exists() else open
    source = zipped if zipped.exists() else path
    with open_file(os.fspath(source), "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    order = np.random.default_rng(_SEED.value).permutation(len(rows))[:most]
    texts = [f"{rows[at][1]} {rows[at][2]}".strip() for at in order]
    return texts, np.array([int(rows[at][0]) - 1 for at in order], "int32")


def build_model(num_classes):
    """A network of mean word embeddings and two dense layers, compiled."""
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            keras.layers.Embedding(WORDS, 64, mask_zero=True),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(num_classes),
        ]
    )
    return _common.compile_classifier(model, keras.optimizers.Adam(1e-3))


def print_table(top, queries, texts, names):
    """Prints scores, labels and the beginnings of texts."""
    for row, query in enumerate(queries):
        print(f"Query        {_CLASS.value:<24}{opening(query)}")
        for side in ("proponents", "opponents"):
            ranking = getattr(top, side)
            pairs = zip(ranking.ids[row], ranking.scores[row], strict=True)
            for at, score in pairs:
                print(
                    f"{side[:-1]:<11}{score:+10.3g}  {names[at]:<24}"
                    f"{opening(texts[at])}"
                )


def opening(text):
    """The beginning of a text, for one line."""
    return textwrap.shorten(text, 70, placeholder=" …")


if __name__ == "__main__":
    app.run(main)
