# %% [markdown]
# # A table with `FeatureSpace`: which rows, which wrong entries?
#
# **Description:** Predict prices of houses from a table of numbers and words,
# find the rows behind a wrong prediction, and the rows whose price was entered
# wrongly.
#
# Install from a clone: `pip install ".[examples]"`.
#
# `keras.utils.FeatureSpace` turns the columns of a table into numbers for a
# network. Attribution takes the same encoded rows as `fit`, and names them by
# the index of the table.

# %%
import os
import pathlib
import warnings

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.datasets import fetch_california_housing

import keras_tracin as kt

# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight","dpi":72}
# Keras says so whenever it trains on a `tf.data.Dataset`.
warnings.filterwarnings("ignore", message="`shuffle=True` was passed")

keras.utils.set_random_seed(0)

# %% [markdown]
# ## The table
#
# California housing has a row for each block of houses. scikit-learn downloads
# it the first time. We add a column of words, the nearest large city, take a
# part of the rows, and name them.

# %%
data = os.environ.get("KERAS_TRACIN_DATA")
blocks = fetch_california_housing(
    as_frame=True, data_home=data and pathlib.Path(data, "california_housing")
).frame
blocks = blocks.sample(6_000, random_state=0).reset_index(drop=True)
blocks.index = "block " + blocks.index.astype(str)

cities = pd.DataFrame(
    {
        "Los Angeles": (34.05, -118.24),
        "San Francisco": (37.77, -122.42),
        "San Diego": (32.72, -117.16),
        "Sacramento": (38.58, -121.49),
        "Fresno": (36.74, -119.79),
    },
    index=["Latitude", "Longitude"],
)
distances = pd.DataFrame(
    {
        city: np.hypot(
            blocks.Latitude - place.Latitude,
            (blocks.Longitude - place.Longitude) * 0.8,  # at 37° north
        )
        for city, place in cities.items()
    }
)
blocks["City"] = distances.idxmin(axis=1)
blocks["Distance"] = distances.min(axis=1) * 111  # km
columns = ["MedInc", "HouseAge", "AveRooms", "City", "Distance"]
blocks[[*columns, "MedHouseVal"]].head()

# %% [markdown]
# Prices are in 100,000 dollars. In some rows we move the decimal point, as
# happens when people type. The network learns the logarithm of the price, so
# that an error of a tenth counts the same for all houses.

# %%
train_rows, test_rows = blocks[:5_000], blocks[5_000:]
rng = np.random.default_rng(0)
mistyped = rng.choice(train_rows.index, size=100, replace=False)
prices = train_rows.MedHouseVal.copy()
prices[mistyped] /= 10
y_train, y_test = np.log(prices), np.log(test_rows.MedHouseVal)
print(f"{len(mistyped)} of {len(prices)} prices are a tenth of the true one.")

# %% [markdown]
# ## Features
#
# As in Keras's own examples: the space adapts to the table, then encodes each
# row.

# %%
space = keras.utils.FeatureSpace(
    features={
        "MedInc": "float_normalized",
        "HouseAge": "float_normalized",
        "AveRooms": "float_normalized",
        "City": "string_categorical",
        "Distance": keras.utils.FeatureSpace.float_discretized(num_bins=8),
    },
    crosses=[
        keras.utils.FeatureSpace.cross(("City", "Distance"), crossing_dim=32)
    ],
    output_mode="concat",
)


def as_columns(rows):
    return {name: rows[name].to_numpy() for name in columns}


table = tf.data.Dataset.from_tensor_slices(as_columns(train_rows))
space.adapt(table)

# %% [markdown]
# `kt.with_ids` attaches the index of the table, before rows are shuffled and
# encoded.

# %%
named = kt.with_ids((as_columns(train_rows), y_train.to_numpy()), y_train.index)
train = (
    named.shuffle(5_000)
    .batch(64)
    .map(lambda row, price: (space(row), price))
    .prefetch(tf.data.AUTOTUNE)
)

# %% [markdown]
# ## Train, and record
#
# The network takes encoded rows, as in Keras's example of `FeatureSpace`. One
# callback is added.

# %%
encoded = space.get_encoded_features()
hidden = keras.layers.Dense(64, activation="relu")(encoded)
hidden = keras.layers.Dense(32, activation="relu")(hidden)
model = keras.Model(encoded, keras.layers.Dense(1, name="price")(hidden))
model.compile(keras.optimizers.Adam(2e-3), "mse", metrics=["mae"])
model.fit(
    train,
    epochs=20,
    callbacks=[kt.TracInCheckpoint("runs/houses", overwrite=True)],
    verbose=0,
)
x_test = space(as_columns(test_rows)).numpy()
error = model.evaluate(x_test, y_test, verbose=0)[1]
print(f"Mean error on test rows: {np.expm1(error):.0%} of the price")

# %% [markdown]
# ## Which rows are behind a wrong prediction?
#
# Three test rows that the network gets wrong by most.

# %%
predicted = model.predict(x_test, verbose=0)[:, 0]
worst = np.argsort(-np.abs(predicted - y_test.to_numpy()))[:3]
asked = test_rows.iloc[worst]
asked[[*columns, "MedHouseVal"]].assign(predicted=np.exp(predicted[worst]))

# %%
queries = kt.with_ids((x_test[worst], y_test.to_numpy()[worst]), asked.index)
tracin = kt.TracIn(model, train, "runs/houses")
scores = tracin.influence(queries.batch(3), verbose=0)
top = scores.top_k(3)
shown = train_rows[columns].assign(price=prices)
strongest = top.to_dataframe().join(shown, on="train_id")
strongest.drop(columns="rank").head(6).round(2)

# %% [markdown]
# Proponents, with positive scores, lowered the loss of the query: rows with the
# same kind of price. The first query is cheap for its place, and what agrees
# with that are mistyped prices. Opponents raised the loss. The index of the
# table says which rows these are, and where. On a map, with the query as a
# cross:

# %%
places = train_rows.loc[scores.train_ids]
query = asked.iloc[:1]
kt.plots.score_map(
    places.Longitude.to_numpy(),
    places.Latitude.to_numpy(),
    scores.scores[0],
    queries=(query.Longitude, query.Latitude),
    most=50,
)

# %% [markdown]
# ## Which prices are wrong?
#
# For numbers, an example is suspicious if its residual was large through the
# training.

# %%
issues = kt.find_label_issues(model, train, "runs/houses", verbose=0)
found = np.isin(issues.issue_ids, mistyped)
print(f"{issues.num_issues} prices are suspected, {found.mean():.0%} rightly.")
for count in (50, 100, 200):
    share = np.isin(issues.ids[:count], mistyped).sum() / len(mistyped)
    print(f"The first {count} have {share:.0%} of the mistyped prices.")

# %%
issues.to_dataframe().join(shown).head()

# %% [markdown]
# ## A page to decide on
#
# The report shows rows as they are in the table, with the labels of the
# training, logarithms of prices. Decisions are exported as CSV, with the names
# of the rows.

# %%
kt.report.write_html(
    "houses.html",
    train=(train_rows[columns], y_train),
    test=(asked[columns], y_test.iloc[worst]),
    top_k=top,
    label_issues=issues,
    overwrite=True,
)
