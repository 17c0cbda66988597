"""Recording of the updates that a model's optimizers make, in the step itself.

The rate of an update is known for sure only in the step: a schedule may read
variables that other callbacks assign, and have another value a moment later. So
the update itself writes its rate and its variables into a small variable on the
device, which is not read before it is full.

Synopsis:

    noted = NotedUpdates(model)
    noted.begin()                   # before the train step is traced
    ...                             # train
    sources, rates = noted.take()   # of the updates since the last call
    noted.end()                     # the optimizers are as they were
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.runs.optimizers import (
    optimizers_in,
    optimizers_of,
    read_count,
)

_CAPACITY = 512  # updates that are noted between two reads
# The method by which every optimizer of Keras updates.
_HOOK = "_backend_update_step"


class NotedUpdates:
    """The updates that a model's optimizers make, noted in the steps.

    Between `begin` and `end`, what is traced of an optimizer's update also
    writes down the rate that this update used. Functions traced at other times
    do not. Updates that are made at once, not traced, are noted in `inside`
    only, and warned of at other times.

    Args:
        model: a compiled model. Its optimizers are those that it or a layer of
            it holds as attributes, and those in them.
        steps_per_call: number of steps that a call of the train function makes.

    Attributes:
        capacity: number of updates that fit between two reads.
        steps_per_call: number of steps that a call makes.
        sources: the positions in `model.weights` of the variables that an
            update was of, for each kind of update.
        num_traced: number of updates that were traced.
        num_made: number of updates made eagerly since the last read.
        num_cut: number of calls since then that ended as the data did. An
            optimizer may have counted them, though it made no update.
    """

    def __init__(self, model: keras.Model, steps_per_call: int = 1):
        self._model = model
        self._weights: list[int] = []  # as they were when it was traced
        self.steps_per_call = steps_per_call
        self.capacity = max(_CAPACITY, 8 * steps_per_call)
        self.sources: list[tuple[int, ...]] = []
        self._makers: list[Any] = []  # the optimizer of each source
        self.num_traced = self.num_made = self.num_cut = 0
        self._is_inside = False
        self._hooked: list[_Hooked] = []
        with model.distribute_strategy.scope():
            # The newest update stands last.
            self._rows = _per_replica(tf.zeros([self.capacity, 2], tf.float64))
            self._count = _per_replica(tf.zeros([], tf.int64))
        self._taken = 0

    def fits(self) -> bool:
        """Whether the model still has the weights that were traced."""
        return not self._weights or self._weights == self._ids()

    def _ids(self) -> list[int]:
        return [id(weight) for weight in self._model.weights]

    def begin(self) -> None:
        """Makes the optimizers note their updates, and forgets earlier ones."""
        self.join()
        for hooked in self._hooked:
            hooked.count = read_count(hooked.optimizer)
            hooked.num_outside = 0
        self._taken = self._read_count()
        self.num_made = self.num_cut = 0

    def join(self) -> None:
        """Makes optimizers that the model got meanwhile note their updates."""
        for optimizer in self._unknown():
            self._hook(optimizer)

    def _unknown(self) -> list[Any]:
        known = {id(hooked.optimizer) for hooked in self._hooked}
        return [o for o in optimizers_of(self._model) if id(o) not in known]

    def end(self) -> None:
        """Takes off what `begin` put on the optimizers."""
        while self._hooked:
            self._hooked.pop().take_off()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Marks the time in which the train function runs."""
        self._is_inside = True
        try:
            yield
        except tf.errors.OutOfRangeError:
            self.num_cut += 1
            raise
        finally:
            self._is_inside = False

    def take(self, is_first: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The updates since the last call, or since `begin`.

        Args:
            is_first: whether the train function ran once, and nothing else
                happened since.

        Returns:
            int64 `[n]`, indices into `sources`, and float64 `[n]`, the rates.

        Raises:
            ValueError: if there were more than fit, or an optimizer made some
                without noting them.
        """
        count = self._read_count()
        number, self._taken = count - self._taken, count
        if number > self.capacity:
            raise ValueError(
                f"The model's optimizers made {number} updates between two "
                f"moments at which their learning rates could be read, and "
                f"{self.capacity} are kept. Make fewer in one train_step; and "
                "list TracInCheckpoint after callbacks that compile the model "
                "or make its train function anew."
            )
        rows = np.empty([0, 2])
        if number:
            rows = tf.convert_to_tensor(self._rows).numpy()[-number:]
        sources = rows[:, 0].astype(np.int64)
        of_source = np.bincount(sources, minlength=len(self.sources))
        for hooked in self._hooked:
            kinds = zip(self._makers, of_source, strict=True)
            of_it = [n for maker, n in kinds if maker is hooked.optimizer]
            hooked.check(int(sum(of_it)), is_first, self.num_cut)
        for optimizer in self._unknown() if is_first else ():
            _Hooked(optimizer).check(0, is_first)
        self.num_made = self.num_cut = 0
        return sources, rows[:, 1]

    def _read_count(self) -> int:
        return int(tf.convert_to_tensor(self._count).numpy())

    def _hook(self, optimizer: Any) -> None:
        original = getattr(optimizer, _HOOK)

        def update(grads, trainable_variables, learning_rate):
            if hooked in self._hooked:
                self._note(hooked, grads, trainable_variables, learning_rate)
            return original(grads, trainable_variables, learning_rate)

        hooked = _Hooked(optimizer)
        hooked.put_on(update)
        self._hooked.append(hooked)

    def _note(
        self, hooked: _Hooked, grads: Any, variables: Any, rate: Any
    ) -> None:
        """Records an update, as part of the step or at once."""
        positions = self._positions(variables)
        if not positions:
            return  # It is of another model.
        if not tf.executing_eagerly():
            self.num_traced += 1
        elif self._is_inside:
            self.num_made += 1
        else:
            hooked.warn_of_outside()
            return
        source = self._source(hooked.optimizer, positions)
        row = tf.stack([tf.constant(source, tf.float64), _as_float64(rate)])
        # Where the data end, TensorFlow runs what does not need them all the
        # same. An update needs the gradients, so its note waits for them.
        with tf.control_dependencies(list(grads)):
            rows = tf.convert_to_tensor(self._rows)
            self._rows.assign(tf.concat([rows[1:], row[tf.newaxis]], axis=0))
            self._count.assign_add(1)

    def _source(self, optimizer: Any, positions: tuple[int, ...]) -> int:
        kinds = zip(self._makers, self.sources, strict=True)
        for source, (maker, known) in enumerate(kinds):
            if maker is optimizer and known == positions:
                return source
        self._makers.append(optimizer)
        self.sources.append(positions)
        return len(self.sources) - 1

    def _positions(self, variables: Iterable[Any]) -> tuple[int, ...]:
        self._weights = self._ids()
        places: dict[int, int] = {}
        for place, weight in enumerate(self._model.weights):
            places[id(weight)] = places[id(weight._value)] = place
        known = {places[id(v)] for v in variables if id(v) in places}
        return tuple(sorted(known))


@dataclasses.dataclass(eq=False)
class _Hooked:
    """An optimizer that notes its updates.

    Attributes:
        optimizer: the optimizer.
        count: its counter at the last read, of batches.
        num_outside: updates since then that were not steps of training.
    """

    optimizer: Any
    count: int = 0
    num_outside: int = 0
    _hook: Any = None
    _before: Any = None

    def put_on(self, hook: Callable) -> None:
        """Puts `hook` in place of the method that updates variables."""
        own = vars(self.optimizer)
        self._hook, self._before = hook, own.get(_HOOK)
        own[_HOOK] = hook

    def take_off(self) -> None:
        """Gives the optimizer back as it was."""
        own = vars(self.optimizer)
        if own.get(_HOOK) is self._hook:
            del own[_HOOK]
            if self._before is not None:
                own[_HOOK] = self._before

    def warn_of_outside(self) -> None:
        """Says that an update is not a step of training."""
        self.num_outside += 1
        count = read_count(self.optimizer)
        _warn_of_outside(count, count + 1)

    def check(self, num_noted: int, is_first: bool, num_cut: int = 0) -> None:
        """Compares what it counted with what it noted since the last read."""
        start, self.count = self.count, read_count(self.optimizer)
        every = self.optimizer.gradient_accumulation_steps or 1
        num_counted = self.count // every - start // every
        num_noted, self.num_outside = num_noted + self.num_outside, 0
        if 0 <= num_counted <= num_noted + num_cut:
            return
        if optimizers_in(vars(self.optimizer)):
            return  # It counts, but others in it make the updates.
        if is_first and not num_noted and num_counted > 0:
            raise ValueError(
                f"The rates that {type(self.optimizer).__name__} "
                f"'{self.optimizer.name}' applies cannot be recorded: it "
                f"counted {num_counted} updates in the first call of the train "
                f"function, of which none went through {_HOOK}, as those of "
                "keras.Optimizer.apply do. Received an optimizer with an "
                "`apply` of its own, or that was made in the train step, or "
                "a train function that was traced before; expected one of "
                "Keras's that the model has before model.fit."
            )
        _warn_of_outside(start, self.count)


def _warn_of_outside(start: int, stop: int) -> None:
    warnings.warn(
        f"Between two batches the optimizer's counter went from {start} to "
        f"{stop}. Updates made outside of model.train_step are not in the "
        "recorded run.",
        stacklevel=2,
    )


def _per_replica(value: tf.Tensor) -> tf.Variable:
    """A variable that each replica has its own copy of."""
    return tf.Variable(
        value,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _as_float64(rate: Any) -> tf.Tensor:
    if isinstance(rate, keras.Variable):
        rate = rate.value
    if not tf.is_tensor(rate) and not isinstance(rate, tf.Variable):
        return tf.constant(float(rate), tf.float64)
    return tf.cast(tf.convert_to_tensor(rate), tf.float64)
