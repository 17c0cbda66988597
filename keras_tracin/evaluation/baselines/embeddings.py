"""Cosines of what a model makes of examples.

Synopsis:

    similarity = kt.evaluation.EmbeddingSimilarity(model, (x, y))
    similarity.top_k((x_test, y_test), k=10).proponents.ids
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.kinds import named_arrays
from keras_tracin.data.preprocessing import open_for_model, preprocessor_of
from keras_tracin.data.tokens import padding_mask, token_inputs
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.evaluation.baselines.last_input import LastInput
from keras_tracin.evaluation.baselines.similarity import Similarity
from keras_tracin.evaluation.baselines.words import open_texts
from keras_tracin.models.descriptions import describe
from keras_tracin.models.kinds import check_is_model

_BATCH = 64  # examples that are encoded at a time
_ALIKE = 1e-3  # of the largest entry: embeddings before and after padding

Encoder = Callable[[Any], Any]  # a Keras model is one


class EmbeddingSimilarity(Similarity):
    """Cosines of embeddings: of what the last layer receives, by default.

    Example:
    ```python
    similarity = kt.evaluation.EmbeddingSimilarity(model, (x, y))
    scores = similarity.influence((x_test, y_test))     # from -1 to 1
    ```

    Sequences are averaged over their positions: over those whose weight is not
    zero where there are weights `[n, tokens]`, as of the words that a query
    asks about; else over those that a mask of padding beside the tokens
    leaves; else over all. Images are averaged over their pixels.

    Args:
        model: the trained model, in inference mode; None where an `encoder` of
            the inputs as they are takes its place.
        train: the training examples, as `fit` takes them, or inputs alone.
        encoder: a Keras model or a function in place of what the last layer
            receives: from inputs of some examples to `[n, d]`, or to
            `[n, tokens, d]`, of which the average is taken. Inputs are
            preprocessed first if `fit` of `model` does so.
        layer: the layer whose inputs are taken, by name, path or object; by
            default the last one with weights that is called.
        memory_limit: bytes for scores; half of what is free by default.

    Raises:
        TypeError: if `model` is no model and there is no encoder.
        ValueError: if data and model do not fit one another, or no layer
            receives numbers of each example.
    """

    title = "Cosines of embeddings"

    def __init__(
        self,
        model: keras.Model | None,
        train: Any,
        *,
        encoder: Encoder | None = None,
        layer: str | keras.Layer | None = None,
        memory_limit: int | None = None,
    ):
        if model is not None or encoder is None:
            check_is_model(model)
        if encoder is not None and not callable(encoder):
            raise TypeError(
                "`encoder` should be a Keras model or a function of inputs. "
                f"Received: {encoder!r}."
            )
        self._source = model
        self._encode: Any = encoder
        if encoder is None:
            assert model is not None
            first = self._read(train, "train").first(1)
            check_fits(model, first, "train")
            # Twice, so that one row for all examples is no row for each.
            twice = first.take(np.zeros(2, int))
            self._encode = LastInput(model, twice.x, layer)
        elif isinstance(encoder, keras.Model):
            self._encode = _InferenceMode(encoder)
        super().__init__(train, memory_limit)
        if self.model is not None:
            self.remember_weights()

    @property
    def model(self) -> Any:
        """The model whose weights embeddings depend on; None if unknown."""
        if isinstance(self._encode, _InferenceMode):
            return self._encode.model
        return self._source if isinstance(self._encode, LastInput) else None

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        if isinstance(self._encode, LastInput):
            layers = self.model._flatten_layers()
            return {"layer": layers.index(self._encode.layer)}
        if isinstance(self._encode, _InferenceMode):
            return {"encoder": type(self.model).__name__}
        return {"encoder": describe(self._encode)}

    def open(self, data: Any, name: str) -> Examples:
        """The examples that the model's `fit` would train on."""
        examples = self._read(data, name)
        examples.pad(self._check_padding)
        if isinstance(self._encode, LastInput):
            check_fits(self.model, examples.first(1), name)
        return examples

    def _read(self, data: Any, name: str) -> Examples:
        """The examples as they are, also where they differ in length."""
        if self._source is not None and preprocessor_of(self._source):
            return open_for_model(self._source, data, name)
        return open_texts(data, name, pad=False)

    def represent_train(self, batches: Iterable[Batch]) -> np.ndarray:
        """The embeddings of all training examples, of length 1."""
        return np.concatenate([self._embed(batch) for batch in batches])

    def represent_queries(self, batch: Batch) -> np.ndarray:
        """The embeddings of queries, of length 1.

        Args:
            batch: the queries.

        Raises:
            ValueError: if one has no words that count, or is NaN.
        """
        embedded = self._embed(batch)
        empty = batch.ids[~embedded.any(axis=1)].tolist()
        if empty:
            raise ValueError(
                "Each query should have an embedding to compare. Received one "
                f"of length zero for the ids {empty[:5]}: all of their weights "
                "may be zero."
            )
        return embedded

    def _embed(self, batch: Batch) -> np.ndarray:
        """Embeddings of length 1, float32 `[n, d]`."""
        parts = [
            self._pooled(batch.take(np.arange(start, stop)))
            for start in range(0, len(batch), _BATCH)
            for stop in [min(start + _BATCH, len(batch))]
        ]
        pooled = np.concatenate(parts)
        bad = batch.ids[~np.isfinite(pooled).all(axis=1)].tolist()
        if bad:
            raise ValueError(
                f"The embeddings of the examples with ids {bad[:5]} are NaN or "
                "infinite. Look for NaN in their inputs and in the weights."
            )
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
        return (pooled / np.where(lengths, lengths, 1)).astype(np.float32)

    def _pooled(self, batch: Batch) -> np.ndarray:
        """Embeddings averaged over positions, float64 `[n, d]`."""
        states = np.asarray(self._encode(batch.x)).astype(np.float64)
        if states.ndim < 2 or len(states) != len(batch):
            raise ValueError(
                "An embedding should be `[n, d]` or `[n, tokens, d]`. Received "
                f"an array of shape {states.shape} for {len(batch)} examples."
            )
        counts = self._counts(batch, states.shape[:2])
        if states.ndim == 3 and counts is not None:
            total = np.einsum("ntd,nt->nd", states, counts)
            return total / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return states.mean(axis=tuple(range(1, states.ndim - 1)))

    def _counts(
        self, batch: Batch, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        """The positions of sequences that count, `[n, t]` of 0 and 1."""
        weight = batch.sample_weight
        if weight is not None and np.shape(weight) == shape:
            return (np.asarray(weight) != 0).astype(np.float64)
        for name, ids in token_inputs(batch.x):
            if ids.shape == shape:
                mask = padding_mask(batch.x, name, shape)
                return mask.astype(np.float64)
        return None

    def _check_padding(self, short: Batch, padded: Batch) -> bool:
        before, after = self._pooled(short), self._pooled(padded)
        largest = np.abs(before).max(initial=0)
        if np.abs(before - after).max(initial=0) <= _ALIKE * largest:
            return True
        shapes = [array.shape[1:] for _, array in named_arrays(padded.x)]
        raise ValueError(
            "Examples have several lengths, and their embeddings are others "
            f"once they are padded to {shapes}. Give them weights `[n, "
            "tokens]` that are zero where they are padded, or pad all to one "
            "length."
        )


class _InferenceMode:
    """A model as an encoder."""

    def __init__(self, model: keras.Model):
        self.model = model

    def __call__(self, x: Any) -> Any:
        return self.model(x, training=False)
