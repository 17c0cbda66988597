"""Figures of proponents and opponents, wrong labels, maps and trainings.

They need the `plots` extra. Each function returns a new
`matplotlib.figure.Figure`, which needs no display and does not touch pyplot.

Synopsis:
```python
top = tracin.top_k((x_test, y_test), k=5)
plots.proponents_and_opponents(top, x_test, x_train)    # images
plots.text_table(top, test_texts, train_texts)
plots.score_map(longitude, latitude, scores.scores[0])

suspicion = {"self-influence": tracin.self_influence().scores}
plots.recall_curve(suspicion, is_mislabeled).savefig("recall.png")
plots.score_distribution(suspicion["self-influence"], is_mislabeled)
```
"""

from keras_tracin.plots.images import proponents_and_opponents
from keras_tracin.plots.maps import score_map
from keras_tracin.plots.mislabels import (
    mislabeled_by_class,
    recall_curve,
    score_distribution,
)
from keras_tracin.plots.texts import text_table
from keras_tracin.plots.training import loss_changes, loss_curve

__all__ = [
    "loss_changes",
    "loss_curve",
    "mislabeled_by_class",
    "proponents_and_opponents",
    "recall_curve",
    "score_distribution",
    "score_map",
    "text_table",
]
