"""Explains a cat and a misclassified automobile by three methods.

    python -m examples.cifar10 --output_dir=out/cifar10

Trains a small residual network on the first 10,000 images of CIFAR-10, and
explains the first test cat that it classifies right and the first automobile
that it classifies wrong. Draws their proponents and opponents by TracIn,
influence functions (of the last layer) and representer points, as in Pruthi et
al. (2020):

- figure5.png: the cat;
- figure6.png: the automobile;

and prints the classes of the first 50 of each.
"""

import collections

import keras
import numpy as np
from absl import app

from examples import _common, _methods, _networks
from keras_tracin import plots

_OUTPUT_DIR = _common.output_dir("out/cifar10")
_DATA_DIR = _common.data_dir()
_SEED = _common.seed()
_STRATEGY = _common.strategy()
_NUM_TRAIN = _common.num_train(10_000)
_EPOCHS = _common.epochs(12)
_K = _common.k(5)
_METHODS = _methods.define_flags(checkpoints=5)

CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
COUNTED = 50


def main(_):
    strategy = _common.create_strategy(_STRATEGY.value)
    keras.utils.set_random_seed(_SEED.value)
    train = _common.load_images(
        "cifar10", f"train[:{_NUM_TRAIN.value}]", _DATA_DIR.value
    )
    test = _common.load_images("cifar10", "test", _DATA_DIR.value)
    model = _networks.compile_with_decay(
        _networks.small_resnet, 0.1, len(train[0]), _EPOCHS.value, strategy
    )
    run = _common.fit(model, train, f"{_OUTPUT_DIR.value}/run", _EPOCHS.value)
    predicted = _common.predictions(model, test[0])
    print(f"{(predicted == test[1]).mean():.1%} of the test images are right.")

    figures = {
        "figure5.png": find_first(test[1], predicted, "cat", right=True),
        "figure6.png": find_first(
            test[1], predicted, "automobile", right=False
        ),
    }
    indices = list(figures.values())
    queries = tuple(part[indices] for part in test)
    tops = {}
    for name, method in _METHODS.make(
        model, train, run, strategy, head_only=True
    ).items():
        count = min(COUNTED, len(train[0]))
        tops[name] = method.top_k(queries, k=count, verbose=0)
    for row, (file, index) in enumerate(figures.items()):
        title = f"{CLASSES[test[1][index]]} ({CLASSES[predicted[index]]})"
        print(f"\nTest image {index}: {title}")
        print_classes(tops, row, train[1])
        _common.save(
            draw(tops, row, title, test[0][index], train),
            _OUTPUT_DIR.value,
            file,
        )


def find_first(labels, predicted, name, right):
    """Index of the first image of a class that is classified right, or wrong.

    Without any, the first image of the class.
    """
    is_class = labels == CLASSES.index(name)
    matches = is_class & ((predicted == labels) == right)
    return int(np.argmax(matches if matches.any() else is_class))


def print_classes(tops, row, labels):
    """Prints how often classes occur among the first 50 on both sides."""
    for name, top in tops.items():
        print(f" {name}")
        for side in ("proponents", "opponents"):
            ids = getattr(top, side).ids[row]
            counts = collections.Counter(
                CLASSES[label] for label in labels[ids]
            )
            words = [f"{word} {n}" for word, n in counts.most_common(4)]
            print(f"  first {len(ids)} {side:<10}  {', '.join(words)}")


def draw(tops, row, title, image, train):
    """Draws one image, with a row for each method."""
    cut = [_methods.cut(top, _K.value, row) for top in tops.values()]
    return plots.proponents_and_opponents(
        _methods.interleave(cut),
        np.stack([image] * len(tops)),
        train[0],
        query_labels=[f"{title}\n{name}" for name in tops],
        train_labels=[CLASSES[label] for label in train[1]],
    )


if __name__ == "__main__":
    app.run(main)
