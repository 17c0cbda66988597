"""An estimate of the share of wrong labels, from confident predictions.

A model is seldom wrong where it is most confident, so that where it disagrees
with the label there, the label is wrong: examples of which a class is certain
tell how labels are corrupted (anchor points, Liu & Tao 2016). Examples are
ordered by confidence, whatever their label, and the share of disagreement is
fitted as

    r(u) = ε + (1 - ε) min(a u^γ, 1)

over the more confident half, u from 0 to 1/2: ε of wrong labels, and errors of
the model that grow from none, fast at first (γ below 1) by a model that is
often wrong. The estimate is the mean of ε given the data, all ε, log a and the
exponents γ being equally likely before.

It takes labels to be wrong independently of how confident the model is. Those
that are wrong because the example is ambiguous are missed; and so are those
that the model has learnt by heart, so probabilities should be of early
checkpoints.

Synopsis:

    share = share_of_wrong_labels(labels, dynamics.early_probabilities)
    round(share * len(labels))
"""

from __future__ import annotations

import numpy as np
import scipy

_CONFIDENT = 0.5  # share of the examples that are looked at
_BINS = 25
_SHARES = np.arange(0, 0.9, 0.0025)
_SLOPES = np.geomspace(0.01, 1, 30)
_EXPONENTS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12)


def share_of_wrong_labels(
    labels: np.ndarray, probabilities: np.ndarray
) -> float:
    """Estimates the share of labels that are wrong.

    Args:
        labels: class indices `[n]`.
        probabilities: `[n, classes]`.
    """
    confidence = probabilities.max(axis=1)
    count = max(1, round(_CONFIDENT * len(labels)))
    # Of equals, as many are 1 to the last digit, none comes first.
    drawn = np.random.default_rng(0).permutation(len(labels))
    order = np.lexsort((drawn, -confidence))[:count]
    disagrees = probabilities.argmax(axis=1)[order] != labels[order]
    bins = np.arange(count) * min(_BINS, count) // count
    sizes = np.bincount(bins)
    wrong = np.bincount(bins, disagrees)
    places = np.bincount(bins, np.arange(count) + 0.5) / sizes / len(labels)
    slopes, exponents = np.meshgrid(_SLOPES, _EXPONENTS)
    errors = slopes.reshape(-1, 1) * places ** exponents.reshape(-1, 1)
    shares = _SHARES[:, np.newaxis, np.newaxis]
    rates = shares + (1 - shares) * np.minimum(errors, 1)  # [ε, a and γ, bin]
    rates = np.clip(rates, 1e-6, 1 - 1e-6)
    fits = np.log(rates) @ wrong + np.log1p(-rates) @ (sizes - wrong)
    weights = scipy.special.softmax(scipy.special.logsumexp(fits, axis=1))
    return float(weights @ _SHARES)
