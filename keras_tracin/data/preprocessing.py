"""Data as a model's own `fit` sees them.

A task of KerasHub carries a preprocessor, and its `fit` trains on what this
makes of the data: scaled images, the tokens of texts. An example's gradient is
then that of the preprocessed example.

Synopsis:

    examples = open_for_model(classifier, (images, labels), "train")
    announce(classifier, examples)     # a line, the first time
    for batch in examples.batches(128): ...     # scaled, as `fit` does it
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.asked import AskedExamples, AskedTokens
from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.examples import is_read_batchwise, open_examples
from keras_tracin.data.frames import read_index
from keras_tracin.data.held import HeldExamples
from keras_tracin.models.errors import brief

_TRIED = 32  # examples that are preprocessed twice, to see if they change

_announced: weakref.WeakKeyDictionary[keras.Model, set[str]] = (
    weakref.WeakKeyDictionary()
)


def open_for_model(
    model: keras.Model | None, data: Any, name: str = "train"
) -> Examples:
    """The examples that `model.fit(data)` would train on.

    Args:
        model: the model, or None. If its `fit` preprocesses data, as that of a
            task of KerasHub with a preprocessor does, so does this.
        data: data that its `fit` takes: see `open_examples`; where `fit`
            preprocesses, data that the preprocessor takes, `x` alone included
            if it makes the labels. Data that the preprocessor refuses and
            that fit the model's inputs are preprocessed already, and taken as
            they are.
        name: name of the data, for errors.

    Returns:
        The examples; their `note` says what was done to them.

    Raises:
        ValueError: as `open_examples`; or if the preprocessor refuses the
            data, or makes something else of the same data each time.
        TypeError: as `open_examples`.
    """
    if isinstance(data, AskedTokens):
        return AskedExamples(
            open_for_model(model, data.data, name), data.tokens
        )
    preprocessor = None if model is None else preprocessor_of(model)
    if model is None or preprocessor is None:
        return open_examples(data, name)
    index = None
    if not is_read_batchwise(data):
        index = read_index(data, name)
        data = raw_arrays(data, name)
    raw = _with_index(open_examples(data, name, labels=False), index)
    pipeline = Pipeline(model, _spec_of(data, raw))
    refusal = pipeline.try_on(raw.first(_TRIED).data, name)
    if refusal is None:
        examples: Examples = _PreprocessedExamples(raw, pipeline)
        examples.note = (
            f"`{name}` is preprocessed by {preprocessor}, as "
            f"{type(model).__name__}.fit does. For data that are preprocessed "
            "already, set `model.preprocessor = None`, as for `fit`."
        )
        return examples
    if not _are_inputs(model, pipeline.input_spec[0]):
        raise _unfit(model, pipeline.input_spec, name, refusal)
    examples = _with_index(open_examples(data, name), index)
    examples.note = (
        f"`{name}` is taken as preprocessed already: it fits the model's "
        f"inputs, and {preprocessor} does not take it."
    )
    return examples


def _with_index(examples: Examples, ids: np.ndarray | None) -> Examples:
    if isinstance(examples, HeldExamples):
        return examples.with_ids(ids)
    return examples


class _PreprocessedExamples(Examples):
    """Examples that a pipeline preprocesses as they are read."""

    def __init__(self, raw: Examples, pipeline: Pipeline):
        self._raw, self._pipeline = raw, pipeline
        self.name, self.size = raw.name, raw.size
        self.estimate = raw.estimate
        self.carries_ids = raw.carries_ids
        first = self.first(1)
        self.bytes_read_per_example = first.nbytes // len(first)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for batch in self._raw.batches(batch_size):
            element = self._pipeline.preprocess(batch.data)
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(element)
            if y is None:
                raise ValueError(
                    f"`{self.name}` holds no labels: received x alone, and the "
                    "model's preprocessor makes no labels of it. Pass (x, y)."
                )
            yield Batch(batch.ids, x, y, sample_weight)


def announce(model: keras.Model, examples: Examples) -> None:
    """Prints what was done to the examples, once for each model."""
    notes = _announced.setdefault(model, set())
    if examples.note and examples.note not in notes:
        notes.add(examples.note)
        print(examples.note, flush=True)


def preprocessor_of(model: keras.Model) -> str | None:
    """The name of what the model's `fit` preprocesses data by, if it does."""
    if _pipeline_class(model) is None:
        return None
    preprocessor = getattr(model, "preprocessor", model)
    if preprocessor is None:
        return None
    if preprocessor is model:  # its class says what is done
        return f"{type(model).__name__}.preprocess_samples"
    return getattr(preprocessor, "__name__", type(preprocessor).__name__)


def has_unknown_fit(model: keras.Model) -> bool:
    """Whether the model has a `fit` of its own, which may train on anything."""
    known = _pipeline_class(model) or keras.Model
    return type(model).fit is not known.fit


def _pipeline_class(model: keras.Model) -> Any:
    """KerasHub's class of models that preprocess, if this is one of them."""
    for base in type(model).__mro__:
        is_hub = base.__module__.startswith(("keras_hub.", "keras_nlp."))
        if is_hub and base.__name__ == "PipelineModel":
            return base
    return None


class Pipeline:
    """The preprocessing of a model, compiled as its `fit` does in `tf.data`.

    Args:
        model: one that has a preprocessor.
        element_spec: the type of a batch, as `fit` would read it.

    Attributes:
        input_spec: the type of the parts of a batch, of any size.
    """

    def __init__(self, model: keras.Model, element_spec: Any):
        # Made anew for each data set: the preprocessor may have changed.
        self._name = preprocessor_of(model)
        self.input_spec = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype),
            _parts(element_spec),
        )
        self._function = tf.function(
            model.preprocess_samples, input_signature=self.input_spec
        )

    @property
    def output_spec(self) -> Any:
        """The type of a preprocessed batch."""
        return tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype),
            self._function.get_concrete_function().structured_outputs,
        )

    def preprocess(self, element: Any) -> Any:
        """Preprocesses a batch: x, `(x, y)` or `(x, y, sample_weight)`."""
        return self._function(*_parts(element))

    def try_on(self, element: Any, name: str) -> Exception | None:
        """The error by which the preprocessor refuses a batch, if it does.

        Args:
            element: the batch.
            name: name of the data, for errors.

        Raises:
            ValueError: if it draws random numbers, or if what it makes of an
                example depends on the others.
        """
        try:
            draws = self._draws()
            first, second = (self.preprocess(element) for _ in range(2))
            alone = self.preprocess(
                tf.nest.map_structure(lambda a: a[:1], element)
            )
        except Exception as error:  # a preprocessor may raise anything
            return error
        if draws or not _same(first, second):
            raise ValueError(
                f"{self._name} draws random numbers: it makes something else "
                f"of `{name}` each time, and training saw something else in "
                "each epoch. Expected examples that stay the same. "
                "Preprocess them once, `fixed = list(data.map(model."
                "preprocessor))`, set `model.preprocessor = None`, and train "
                "and score on these."
            )
        if not _same(tf.nest.map_structure(lambda a: a[:1], first), alone):
            raise ValueError(
                f"{self._name} makes something else of an example of `{name}` "
                "where it is alone than where it is among others. Expected "
                "the same: give it a fixed length or size to pad to, such as "
                "`sequence_length=`, before training."
            )
        return None

    def _draws(self) -> bool:
        graph = self._function.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node]
        for function in graph.library.function:
            nodes += function.node_def
        return any(node.op.startswith("Random") for node in nodes)


def _parts(element: Any) -> tuple[Any, ...]:
    """The arguments of a function that is mapped over such elements."""
    return element if isinstance(element, tuple) else (element,)


def _same(first: Any, second: Any) -> bool:
    """Whether two structures of arrays are alike, but for rounding."""
    leaves = zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True)
    return all(
        a.shape == b.shape
        and (
            np.allclose(a, b, 1e-4, 1e-5, equal_nan=True)
            if a.dtype.is_floating
            else np.array_equal(a, b)
        )
        for a, b in leaves
    )


def _spec_of(data: Any, raw: Examples) -> Any:
    """The type of a batch of a dataset, or of other data as they are read."""
    if isinstance(data, tf.data.Dataset):
        return data.element_spec
    return tf.nest.map_structure(
        lambda leaf: tf.TensorSpec.from_tensor(tf.convert_to_tensor(leaf)),
        raw.first(1).data,
    )


def raw_arrays(data: Any, name: str = "train") -> Any:
    """Arrays as `fit` packs them: x, `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        ValueError: if they differ in length.
        TypeError: if there are more of them, or none.
    """
    parts = data if isinstance(data, tuple) else (data,)
    if not 1 <= len(parts) <= 3 or parts[0] is None:
        raise TypeError(
            f"`{name}` should be a batched `tf.data.Dataset`, or x, (x,), "
            "(x, y) or (x, y, sample_weight). Received: "
            + (f"a tuple of length {len(parts)}." if parts else "nothing.")
        )
    arrays = tuple(map(_as_arrays, parts))
    leaves = [leaf for leaf in tf.nest.flatten(arrays) if leaf is not None]
    lengths = {leaf.shape[0] if leaf.shape.rank else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"All arrays of `{name}` should have one row per example. Received "
            f"arrays of shapes {[tuple(leaf.shape) for leaf in leaves]}."
        )
    return keras.utils.pack_x_y_sample_weight(*arrays)


def _as_arrays(part: Any) -> Any:
    """Makes arrays of lists, as KerasHub does; other structure stays."""
    if part is None or tf.is_tensor(part):
        return part
    if isinstance(part, tuple):
        return tuple(map(_as_arrays, part))
    if isinstance(part, dict):
        return {key: _as_arrays(value) for key, value in part.items()}
    if hasattr(part, "__array__"):
        part = np.asarray(part)
    return tf.convert_to_tensor(part)


def _are_inputs(model: keras.Model, x: Any) -> bool:
    """Whether x, a spec, has the form of what the model itself takes."""
    inputs: Any = getattr(model, "input", None)
    if isinstance(x, dict) != isinstance(inputs, dict):
        return False
    if isinstance(x, dict) and x.keys() != inputs.keys():
        return False
    given, taken = tf.nest.flatten(x), tf.nest.flatten(inputs)
    return len(given) == len(taken) and all(
        leaf.dtype != tf.string and leaf.shape.rank == len(expected.shape)
        for leaf, expected in zip(given, taken, strict=True)
    )


def _unfit(
    model: keras.Model, spec: Any, name: str, refusal: Exception
) -> ValueError:
    form = tf.nest.map_structure(
        lambda leaf: f"{leaf.dtype.name} {leaf.shape}", spec
    )
    inputs = getattr(model, "input", None)
    names = f" {list(inputs)}" if isinstance(inputs, dict) else ""
    error = ValueError(
        f"{preprocessor_of(model)} does not take `{name}`. Received batches "
        f"of {form}, expected what {type(model).__name__}.fit takes, or "
        f"preprocessed data that fit the model's inputs{names}: "
        f"{brief(refusal)}"
    )
    error.__cause__ = refusal
    return error
