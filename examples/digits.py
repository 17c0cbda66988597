"""Explains predictions on handwritten digits, and finds wrong labels.

    python examples/digits.py --output_dir=out/digits

Trains a small network on scikit-learn's digits, some of whose labels are
wrong, and records the run. Then prints, and draws in the output directory:

- proponents.png: the training digits that helped and hurt a few test digits;
- recall.png: the recall of wrong labels when the training digits are inspected
  in the order of self-influence, or of their loss.
"""

import pathlib

import keras
import numpy as np
from absl import app, flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_tracin as kt
from keras_tracin import evaluation, plots

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "out/digits", "Directory for the run and the figures."
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 15, "Number of training epochs.", lower_bound=1
)
_FLIP_SHARE = flags.DEFINE_float(
    "flip_share",
    0.1,
    "Share of the training labels to make wrong.",
    lower_bound=0.01,
    upper_bound=0.9,
)
_NUM_QUERIES = flags.DEFINE_integer(
    "num_queries", 4, "Number of test digits to explain.", lower_bound=1
)
_K = flags.DEFINE_integer(
    "k", 5, "Number of proponents and opponents of each.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.")


def main(_):
    output = pathlib.Path(_OUTPUT_DIR.value)
    keras.utils.set_random_seed(_SEED.value)
    x_train, true_labels, x_test, y_test = load_images()
    y_train = evaluation.flip_labels(
        true_labels, _FLIP_SHARE.value, seed=_SEED.value
    )
    is_flipped = y_train != true_labels

    model = build_model()
    checkpoints = kt.TracInCheckpoint(output / "run", overwrite=True)
    model.fit(
        x_train,
        y_train,
        epochs=_EPOCHS.value,
        callbacks=[checkpoints],
        verbose=0,
    )
    accuracy = model.evaluate(x_test, y_test, verbose=0)[1]
    print(f"{is_flipped.sum()} of {len(y_train)} training labels are wrong.")
    print(f"Accuracy on the test digits: {accuracy:.1%}\n")

    tracin = kt.TracIn(model, (x_train, y_train), output / "run")

    hardest = np.argsort(-losses(model, x_test, y_test))[: _NUM_QUERIES.value]
    x_query, y_query = x_test[hardest], y_test[hardest]
    top = tracin.top_k((x_query, y_query), k=_K.value)
    predicted = model.predict(x_query, verbose=0).argmax(axis=1)
    query_names = name_all("{} (taken for {})", y_query, predicted)
    train_names = name_all("{} (is {})", y_train, true_labels)
    print_top(top, query_names, train_names)
    plots.proponents_and_opponents(
        top,
        x_query,
        x_train,
        query_labels=query_names,
        train_labels=train_names,
        is_mislabeled=is_flipped,
    ).savefig(output / "proponents.png")

    suspicion = {
        "self-influence": tracin.self_influence().scores,
        "loss": losses(model, x_train, y_train),
    }
    print_recall(suspicion, is_flipped)
    plots.recall_curve(suspicion, is_flipped).savefig(output / "recall.png")
    print(f"\nFigures and the recorded run are in {output}.")


def load_images():
    """Digits `[n, 8, 8, 1]` from 0 to 1 with labels, 1,297 and 500 of them."""
    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=500, random_state=_SEED.value
    )
    return x_train, y_train, x_test, y_test


def build_model():
    """A small convolutional network, compiled."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def losses(model, x, y):
    """Losses of examples at the end of training, `[n]`."""
    logits = model.predict(x, verbose=0)
    loss = keras.losses.sparse_categorical_crossentropy(
        y, logits, from_logits=True
    )
    return np.asarray(loss)


def name_all(template, labels, others):
    """Names of labels, with the other label if the two differ."""
    return [
        str(label) if label == other else template.format(label, other)
        for label, other in zip(labels, others, strict=True)
    ]


def print_top(top, query_names, train_names):
    """Prints labels and scores of each query's proponents and opponents."""
    sides = {"proponents": top.proponents, "opponents": top.opponents}
    for row, name in enumerate(query_names):
        print(f"Test digit {name}")
        for side, ranking in sides.items():
            pairs = zip(ranking.ids[row], ranking.scores[row], strict=True)
            words = [f"{train_names[i]} {score:+.3g}" for i, score in pairs]
            print(f"  {side:<10}  {', '.join(words)}")


def print_recall(suspicion, is_flipped):
    """Prints the recall of wrong labels among the most suspicious digits."""
    print("\nWrong labels found in the top   10%    20%    30%     AUC")
    for name, scores in suspicion.items():
        detection = evaluation.mislabel_detection(scores, is_flipped)
        recalls = [
            f"{detection.recall_at(share):5.1%}" for share in (0.1, 0.2, 0.3)
        ]
        print(f"  by {name:<25}{'  '.join(recalls)}   {detection.auc:.3f}")


if __name__ == "__main__":
    app.run(main)
