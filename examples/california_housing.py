"""Maps the block groups that influence a house price (figure 10).

    python -m examples.california_housing --output_dir=out/california_housing

Trains a network that predicts the median price of houses in a Californian block
group from the census of 1990, and computes the influence of every training
block group on 11 test block groups in Palo Alto, summed. Draws

- figure10a.png: the training examples of the strongest influence, and all
  others in yellow; figure10a_bay.png: the same around Palo Alto;
- figure10b.png: self-influence over the state;

as in figure 10 of Pruthi et al. (2020). Prints the distances of influential
examples from Palo Alto, and the correlation of self-influence with the density
of the data.
"""

import itertools

import keras
import numpy as np
from absl import app
from scipy.spatial import cKDTree
from scipy.stats import spearmanr
from sklearn.datasets import fetch_california_housing

from examples import _common, _methods
from keras_tracin import plots

_OUTPUT_DIR = _common.output_dir("out/california_housing")
_DATA_DIR = _common.data_dir("Data directory of scikit-learn")
_SEED = _common.seed()
_STRATEGY = _common.strategy()
_NUM_TRAIN = _common.num_train(16_512)
_NUM_QUERIES = _common.num_queries(11)
_EPOCHS = _common.epochs(20)
_K = _common.k(100)
_METHODS = _methods.define_flags(checkpoints=5, methods=["tracin"])

PALO_ALTO = (-122.143, 37.442)  # longitude and latitude of the city
BAY = (-123.2, -121.2, 36.8, 38.4)  # west, east, south and north end
DEGREE = 111.2  # kilometres per degree of latitude
NEAR = 5.0  # kilometres


def main(_):
    strategy = _common.create_strategy(_STRATEGY.value)
    keras.utils.set_random_seed(_SEED.value)
    train, test, places, test_places = load()
    model = _common.build_under(strategy, build_model)
    run = _common.fit(model, train, f"{_OUTPUT_DIR.value}/run", _EPOCHS.value)
    print(f"R² on the test block groups: {r_squared(model, test):.3f}")

    near = np.argsort(distance(test_places, PALO_ALTO), kind="stable")
    nearest = near[: _NUM_QUERIES.value]
    queries = tuple(part[nearest] for part in test)
    for name, method in _METHODS.make(model, train, run, strategy).items():
        print(f"\n{name}")
        scores = method.influence(queries, verbose=0).scores.sum(axis=0)
        print_nearness(scores, places)
        draw_influence(scores, places, test_places[nearest], name)
        self_influence = method.self_influence(verbose=0).scores
        print_density(self_influence, places)
        draw_self_influence(self_influence, places, name)


def load():
    """Loads standardised features, prices and places.

    Returns:
        `(x, y)` of training and of test examples, and their longitudes and
        latitudes, `[n, 2]`.
    """
    data = fetch_california_housing(
        data_home=_DATA_DIR.value or _common.offline("california_housing")
    )
    places = data.data[:, [7, 6]]
    x = data.data.astype("float32")
    x[:, 2:6] = np.log(x[:, 2:6])  # rooms and people have outliers
    y = data.target.astype("float32")[:, np.newaxis]
    order = np.random.default_rng(_SEED.value).permutation(len(x))
    cut = len(x) - len(x) // 5
    rows = order[:cut][: _NUM_TRAIN.value]
    x = (x - x[rows].mean(axis=0)) / x[rows].std(axis=0)
    y = (y - y[rows].mean()) / y[rows].std()
    test = order[cut:]
    return (x[rows], y[rows]), (x[test], y[test]), places[rows], places[test]


def build_model():
    """An 8-128-64-1 network with ReLU, compiled for the squared error."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.02), "mean_squared_error")
    return model


def r_squared(model, data):
    """Share of the prices' variance that is explained."""
    x, y = data
    residuals = y - model.predict(x, batch_size=512, verbose=0)
    return 1 - residuals.var() / y.var()


def distance(places, centre):
    """Kilometres from places `[n, 2]` to a centre, on the plane."""
    return np.linalg.norm(
        on_plane(places) - on_plane(np.array(centre)), axis=-1
    )


def on_plane(places):
    """Kilometres east and north, approximately."""
    return places * DEGREE * [np.cos(np.deg2rad(37.0)), 1]


def print_nearness(scores, places):
    """Prints the distances of the strongest block groups from Palo Alto."""
    away = distance(places, PALO_ALTO)
    order = np.argsort(scores, kind="stable")
    groups = {
        f"the {_K.value} strongest proponents": order[::-1][: _K.value],
        f"the {_K.value} strongest opponents": order[: _K.value],
        "all training examples": order,
    }
    print("Distance from Palo Alto             median   within 50 km")
    for name, rows in groups.items():
        share = (away[rows] < 50).mean()
        print(f"  {name:<30}{np.median(away[rows]):7.0f} km{share:12.1%}")


def print_density(self_influence, places):
    """Prints the correlation of self-influence with the density of examples."""
    tree = cKDTree(on_plane(places))
    near = tree.query_ball_point(tree.data, NEAR, return_length=True)
    correlation = spearmanr(self_influence, near).statistic
    print(f"Rank correlation of self-influence and density: {correlation:+.3f}")
    print(f"  examples within {NEAR:g} km    median self-influence")
    edges = np.quantile(near, [0, 0.25, 0.5, 0.75, 1]).astype(int)
    for low, high in itertools.pairwise(edges):
        inside = (near >= low) & (near <= high)
        median = np.median(self_influence[inside])
        print(f"  {low:5} to {high:5} {median:26.3g}")


def draw_influence(scores, places, queries, name):
    """Draws figure 10a, of the state and of the bay."""
    for file, extent in (("figure10a", None), ("figure10a_bay", BAY)):
        figure = plots.score_map(
            *places.T,
            scores,
            queries=tuple(queries.T),
            most=_K.value,
            extent=extent,
            name=f"{name}: influence on {len(queries)} test examples",
        )
        _common.save(figure, _OUTPUT_DIR.value, f"{file}{suffix(name)}.png")


def draw_self_influence(scores, places, name):
    """Draws figure 10b; the lowest scores are clipped for the colour bar."""
    figure = plots.score_map(
        *places.T,
        np.maximum(scores, np.quantile(scores, 0.05)),
        name=f"{name}: self-influence",
        log=True,
    )
    _common.save(figure, _OUTPUT_DIR.value, f"figure10b{suffix(name)}.png")


def suffix(name):
    """Suffix of file names of a method other than TracIn."""
    return "" if name == "TracIn" else "_" + name.split()[0].lower()


if __name__ == "__main__":
    app.run(main)
