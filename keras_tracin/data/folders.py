"""Folders of files as Keras reads them, with the names of files as ids.

`keras.utils.image_dataset_from_directory` and its like shuffle at each reading.
Which file an example comes from, the pipeline itself tells: it begins with the
names, and all that follows keeps their order but for the shuffling. So the same
pipeline without that gives the examples in the order of the names.

Synopsis:

    data = keras.utils.image_dataset_from_directory("photos")
    folder = read_folder(data)
    if folder is not None:
        folder.names                 # ids, in reading order
        folder.in_order()            # a dataset with ids that does not shuffle
        folder.shuffled()            # one that does, for `fit`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.provenance import made_of

Node: TypeAlias = Any  # mypy has no types of the messages
Graph: TypeAlias = Any

# Transformations that give an element for each of theirs, in their order.
_MAPS = frozenset({"MapDataset", "ParallelMapDataset", "ParallelMapDatasetV2"})
_SHUFFLES = frozenset(
    {"ShuffleDataset", "ShuffleDatasetV2", "ShuffleDatasetV3"}
)
_LEFT_OUT = _SHUFFLES | {"CacheDataset", "CacheDatasetV2", "OptionsDataset"}
_BATCHES = frozenset({"BatchDatasetV2", "PaddedBatchDatasetV2"})
_PASSED_ON = frozenset({"PrefetchDataset", "AssertCardinalityDataset"})
_SOURCE = "TensorSliceDataset"


_TRANSFORMED = (
    "Ids should be attached to a folder before its batches are transformed. "
    "Received: a dataset that was made of that of a folder. Call "
    "`kt.with_ids(folder)` on what Keras returned, and the other methods on "
    "the result: `kt.with_ids(folder).map(...)`."
)


class _UnknownError(Exception):
    """Which example comes from which file is not known."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A dataset that reads files one by one.

    Attributes:
        names: the names of the files, in their order in the dataset.
        nodes: the transformations from the last one back to the names.
        sources: the names of the constants that are cut into files, labels
            and the like.
    """

    _dataset: tf.data.Dataset
    _graph: Graph
    names: np.ndarray
    nodes: list[Node]
    sources: list[str]

    @property
    def shuffles(self) -> bool:
        """Whether each reading gives examples in another order."""
        return any(
            node.op in _SHUFFLES and node.attr["reshuffle_each_iteration"].b
            for node in self.nodes
        )

    @property
    def size(self) -> int:
        """The number of examples."""
        batch = self._batch
        if batch is None or not batch.drop_remainder:
            return len(self.names)
        return len(self.names) // batch.size * batch.size

    def in_order(self) -> DatasetWithIds:
        """The examples with their ids in one order.

        That of the dataset; of one that shuffles, whose own order depends on
        a seed, the order of the alphabet.
        """
        order = np.arange(len(self.names))
        if self.shuffles:
            order = np.argsort(self.names, kind="stable")
        names = tf.data.Dataset.from_tensor_slices(self.names[order])
        if self._batch is not None:
            names = names.batch(self._batch.size, self._batch.drop_remainder)
        elements = self._rebuild(
            self.nodes[0], self._dataset.element_spec, order
        )
        return DatasetWithIds(tf.data.Dataset.zip(names, elements))

    def read(self, order: np.ndarray, elements: int) -> list[list[np.ndarray]]:
        """The leaves of the first elements, of the files in an order.

        Args:
            order: positions of the files.
            elements: number of elements, as the dataset has them.
        """
        spec = self._dataset.element_spec
        data = self._rebuild(self.nodes[0], spec, order).take(elements)
        return [list(map(np.asarray, tf.nest.flatten(e))) for e in data]

    def shuffled(self) -> DatasetWithIds:
        """The dataset with ids that shuffles and batches as the folder does.

        Raises:
            ValueError: if batches were transformed.
        """
        batch, names = self._batch, self.names
        files = tf.data.Dataset.from_tensor_slices(names)
        if batch is None:
            start, spec = self.nodes[0], self._dataset.element_spec
        else:
            at = [node.op in _BATCHES for node in self.nodes].index(True)
            if self.maps_batches:
                raise ValueError(_TRANSFORMED)
            start, spec = (
                self.nodes[at + 1],
                _of_one(self._dataset.element_spec),
            )
        elements = self._rebuild(start, spec)
        data = DatasetWithIds(tf.data.Dataset.zip(files, elements))
        for node in reversed(self.nodes):
            if node.op in _SHUFFLES:
                buffer, _, seed = map(self._constant, node.input[1:4])
                data = data.shuffle(int(buffer), seed=int(seed))
                break
        if batch is not None:
            cut = data.padded_batch if batch.pads else data.batch
            data = cut(batch.size, drop_remainder=batch.drop_remainder)
        return data.prefetch(tf.data.AUTOTUNE)

    @property
    def is_batched(self) -> bool:
        """Whether examples are batched."""
        return self._batch is not None

    @property
    def batch_size(self) -> int:
        """Examples in an element."""
        return 1 if self._batch is None else self._batch.size

    @property
    def _batch(self) -> _Batching | None:
        """How examples are batched, None where they are not."""
        for node in self.nodes:
            if node.op in _BATCHES:
                pads = node.op == "PaddedBatchDatasetV2"
                size, drop = node.input[1], node.input[-1 if pads else 2]
                return _Batching(
                    int(self._constant(size)), bool(self._constant(drop)), pads
                )
        return None

    @property
    def maps_batches(self) -> bool:
        """Whether something is mapped that was batched before."""
        kinds = [node.op for node in self.nodes]
        if not self.is_batched:
            return False
        at = [kind in _BATCHES for kind in kinds].index(True)
        return any(kind in _MAPS for kind in kinds[:at])

    def _constant(self, name: str) -> Any:
        return _constant(_by_name(self._graph), name)

    def _rebuild(
        self, last: Node, spec: Any, order: np.ndarray | None = None
    ) -> tf.data.Dataset:
        """The dataset up to a transformation, without shuffling."""
        graph = graph_pb2.GraphDef()
        graph.CopyFrom(self._graph)
        nodes = _by_name(graph)
        left_out = {n.name: n.input[0] for n in self.nodes if n.op in _LEFT_OUT}

        def before(name: str) -> str:
            while name in left_out:
                name = left_out[name]
            return name

        for name in () if order is None else self.sources:
            values = _constant(nodes, name)[order]
            nodes[name].attr["value"].tensor.CopyFrom(
                tf.make_tensor_proto(values)
            )
        for node in nodes.values():
            if node.op == "_Retval":
                node.input[0] = last.name
            node.input[:] = [before(name) for name in node.input]
            if "deterministic" in node.attr:
                node.attr["deterministic"].s = b"true"
        variant = tf.raw_ops.DatasetFromGraph(
            graph_def=graph.SerializeToString()
        )
        return tf.data.experimental.from_variant(variant, spec)


@dataclasses.dataclass(frozen=True)
class _Batching:
    size: int
    drop_remainder: bool
    pads: bool


def read_folder(dataset: tf.data.Dataset) -> Folder | None:
    """The files that a dataset reads one by one.

    Args:
        dataset: what a utility of Keras made of a folder, or any other that
            shuffles a list of file names and reads these, and what maps,
            caches, batches and shuffles that make of them.

    Returns:
        The folder; None for any other dataset, or one that does not tell which
        of its examples come from which files.
    """
    chain = list(_chain(dataset))
    if not any(map(_reads_files, chain)):
        return None
    try:
        folder = _read_graph(dataset)
    except (_UnknownError, tf.errors.OpError):
        return None
    # Where nothing shuffles, positions name the examples of other datasets.
    return folder if folder.shuffles or is_of_folder(dataset) else None


def folder_with_ids(dataset: tf.data.Dataset) -> DatasetWithIds | None:
    """A folder that shuffles as before, with ids; None for other datasets.

    Raises:
        ValueError: if its batches were transformed.
    """
    folder = read_folder(dataset)
    if folder is not None:
        return folder.shuffled()
    leaves = tf.nest.flatten(dataset.element_spec)
    if is_of_folder(dataset) and all(leaf.shape.rank for leaf in leaves):
        raise ValueError(_TRANSFORMED)
    return None


def is_of_folder(dataset: tf.data.Dataset) -> bool:
    """Whether it was made of a dataset that Keras made of a folder."""
    return any(hasattr(part, "class_names") for part in _chain(dataset))


def _chain(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """The dataset, the one that it was made of, and so on."""
    inputs = [dataset]
    while len(inputs) == 1:
        if isinstance(inputs[0], DatasetWithIds):
            return
        yield inputs[0]
        inputs, _ = made_of(inputs[0])


def _reads_files(dataset: tf.data.Dataset) -> bool:
    """Whether a dataset maps elements by a function that reads files."""
    _, functions = made_of(dataset)
    graphs = [
        getattr(wrapper.function, "graph", None)  # None in tf.data's debug mode
        for wrapper in functions
    ]
    return any(
        operation.type == "ReadFile"
        for graph in graphs
        if graph is not None
        for operation in graph.get_operations()
    )


def _read_graph(dataset: tf.data.Dataset) -> Folder:
    """The names and transformations of a dataset that reads files."""
    serialized = tf.raw_ops.DatasetToGraphV2(
        input_dataset=tf.data.experimental.to_variant(dataset),
        external_state_policy=1,  # what it refers to stays as it is
        strip_device_assignment=True,
    )
    graph = graph_pb2.GraphDef.FromString(serialized.numpy())
    nodes, passed = _by_name(graph), []
    (end,) = [node for node in graph.node if node.op == "_Retval"]
    node = nodes[end.input[0]]
    while node.op in _MAPS | _LEFT_OUT | _BATCHES | _PASSED_ON:
        passed.append(node)
        node = nodes[node.input[0]]
    if sum(node.op in _BATCHES for node in passed) > 1 or not passed:
        raise _UnknownError
    parts = [node]
    if node.op == "ZipDataset":
        parts = [nodes[name] for name in node.input]
    sources: list[str] = []
    for part in parts:
        while part.op in _MAPS and sources:  # of labels, not of names
            part = nodes[part.input[0]]
        if part.op != _SOURCE:
            raise _UnknownError
        sources += part.input
    names, *others = (_constant(nodes, source) for source in sources)
    if names.dtype != object or names.ndim != 1:
        raise _UnknownError
    if len(set(names.tolist())) < len(names):
        raise _UnknownError
    if any(len(other) != len(names) for other in others):
        raise _UnknownError
    return Folder(dataset, graph, names, passed, sources)


def _constant(nodes: dict[str, Node], name: str) -> np.ndarray:
    if nodes[name].op != "Const":
        raise _UnknownError
    value = nodes[name].attr["value"].tensor
    return tf.io.parse_tensor(value.SerializeToString(), value.dtype).numpy()


def _by_name(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.node}


def _of_one(spec: Any) -> Any:
    """The type of an example, from that of a batch."""
    return tf.nest.map_structure(
        lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), spec
    )
