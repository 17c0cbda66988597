"""Figures of proponents and opponents, wrong labels, maps and trainings.

They need the `plots` extra, and take results as methods return them, and data
as `fit` takes them. Each function returns a new
`matplotlib.figure.Figure`, which needs no display and does not touch pyplot.

Synopsis:
```python
train, test = (x_train, y_train), (x_test, y_test)
top = tracin.top_k(test, k=5)
plots.proponents_and_opponents(top, test, train, queries=4)    # images
plots.text_table(top, test_texts, train_texts, queries=4)
plots.score_map(longitude, latitude, tracin.influence(test))

own = tracin.self_influence()
plots.recall_curve(own, is_mislabeled).savefig("recall.png")
plots.score_distribution(own, is_mislabeled)
plots.data_map(kt.training_dynamics(model, train, run, verbose=0))
```
"""

from keras_tracin.plots.curves import retraining_curves
from keras_tracin.plots.dynamics import data_map
from keras_tracin.plots.images import proponents_and_opponents
from keras_tracin.plots.maps import score_map
from keras_tracin.plots.mislabels import (
    mislabeled_by_class,
    recall_curve,
    score_distribution,
)
from keras_tracin.plots.texts import text_table
from keras_tracin.plots.tokens import token_table
from keras_tracin.plots.training import loss_changes, loss_curve

__all__ = [
    "data_map",
    "loss_changes",
    "loss_curve",
    "mislabeled_by_class",
    "proponents_and_opponents",
    "recall_curve",
    "retraining_curves",
    "score_distribution",
    "score_map",
    "text_table",
    "token_table",
]
