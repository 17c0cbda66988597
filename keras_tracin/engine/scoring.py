"""What every method does with a model, its training data and its queries.

A `Scorer` holds the model and the data, makes the compiled steps, cuts queries
into blocks that fit memory, sweeps training examples and weights, and names
what went wrong. The methods say which step to run and what it is to be given.

Synopsis:

    scorer = Scorer(model, train, loss=None, layers=None)

    for queries in scorer.blocks(test):
        step = queries.steps.train.products
        scorer.sweep(step, rates, sink, queries=queries, prepare=...)
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.examples import select
from keras_tracin.data.preprocessing import announce, open_for_model
from keras_tracin.engine import underflow
from keras_tracin.engine.diagnosis import (
    Suspect,
    check_fits,
    explaining,
    not_finite,
)
from keras_tracin.engine.distribution import (
    Strategy,
    check_alone,
    check_built_under,
    worker_of,
)
from keras_tracin.engine.fingerprint import (
    examples_with,
    first_examples,
    identify,
    spread_examples,
    tolerance,
)
from keras_tracin.engine.first_look import EXAMPLES, FirstLook
from keras_tracin.engine.footprint import footprint
from keras_tracin.engine.measures import Numbers, measure
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.progress import Progress
from keras_tracin.engine.spot_checks import SpotChecks
from keras_tracin.engine.steps import GradientFunctions, batch_spec, kind_of
from keras_tracin.engine.sweep import (
    Plan,
    Sink,
    default_memory_limit,
    in_chunks,
    make_plan,
    sweep,
)
from keras_tracin.engine.updated import UpdatedVariables
from keras_tracin.gradients import compiling
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.dry_run import Objective, run_with_loss
from keras_tracin.gradients.flat import nbytes
from keras_tracin.gradients.sites import find_sites, site_variables
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.per_example import PerExampleLoss, per_example_loss
from keras_tracin.losses.query_losses import query_value
from keras_tracin.models.descriptions import describe, describe_loss
from keras_tracin.models.exclusive import exclusively
from keras_tracin.models.state import value_of
from keras_tracin.projection import Projection, check_projection
from keras_tracin.runs import Checkpoint, run_weights
from keras_tracin.runs.manifest import architecture

_QUERY_BATCH = 128  # queries captured in one step

Rates = Mapping[Checkpoint | None, float]

# What a method without checkpoints sweeps: the weights the model has, once.
PRESENT_WEIGHTS: Rates = {None: 1.0}


def _evenly(count: int | None, most: int) -> int:
    """The size of as few equal parts as have no more than `most` each."""
    most = max(1, most)
    if not count:
        return most
    return math.ceil(count / math.ceil(count / most))


def nothing(checkpoint: Checkpoint | None, *position) -> None:
    """What a step wants to know that needs none but the data."""


def as_it_is(scores: Any) -> Any:
    """What makes scores of what a step returns, where these are scores."""
    return scores


@dataclasses.dataclass(frozen=True)
class Steps:
    """Compiled steps for training examples, and for one kind of queries."""

    train: GradientFunctions
    query: GradientFunctions


@dataclasses.dataclass(frozen=True)
class Queries:
    """A block of queries, and the steps that take them.

    Attributes:
        batches: the queries.
        steps: what takes them.
        held: bytes that are held of one, if it is not its factors.
    """

    batches: tuple[Batch, ...]
    steps: Steps
    held: int | None = None

    @property
    def ids(self) -> np.ndarray:
        """The queries' ids, in reading order."""
        return np.concatenate([batch.ids for batch in self.batches])

    def factors(self, checkpoint: Checkpoint | None, *position) -> tuple:
        """The compact factors of all the queries, layer by layer.

        Args:
            checkpoint: the one whose weights the model has.
            *position: the checkpoint's, where there is a projection.
        """
        step = self.steps.query.query_factors
        return algebra.concat([step(b.data, *position) for b in self.batches])


class Scorer:
    """A model with its training data and losses.

    Args:
        model: a Keras model; built here if it is not yet.
        train: what `model.fit` took.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: what a query's influence is measured on, as in `TracIn`.
        class_weight: the `class_weight` given to `fit`.
        layers: names or layers to restrict the gradients to.
        memory_limit: bytes the computation may use, beside the data; half of
            what is free by default.
        strategy: a `tf.distribute.Strategy` to spread each step over.
        projection: scores sketches in place of gradients.
        jit_compile: as in `TracIn`.
        output: differentiated in place of the losses, of training examples
            and queries alike: `(y, y_pred, sample_weight) -> [n]`.
        checkpoints: those whose steps are what counts: variables that they
            updated, each at its own rate. By default what is trainable now.

    Attributes:
        model: the model.
        train: the opened training examples.
        loss: the per-example loss of training, or `output`.
        strategy: what each step is spread over.
        jit_compile: whether XLA compiles the steps.
        projection: what makes the sketches, or None.
        layers: what the gradients are restricted to.
        parts: what is kept on disk of a call, or None.
        variables: those that the gradients are by.
        weighted: whether training examples have weights.

    Raises:
        ValueError: if the model is not compiled and no `loss` is given, if
            `layers` names no layer with weights, or if the data does not fit.
    """

    @exclusively
    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        loss: Any = None,
        query_loss: Any = None,
        class_weight: Mapping[int, float] | None = None,
        layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
        memory_limit: int | None = None,
        strategy: Strategy | None = None,
        projection: Projection | None = None,
        jit_compile: bool | str = "auto",
        output: PerExampleLoss | None = None,
        checkpoints: Iterable[Checkpoint | None] = (),
    ):
        self.model = model
        if projection is not None:
            check_projection(projection)
        self.projection = projection
        self.strategy = strategy
        self.jit_compile = compiling.wanted(jit_compile)
        self.train = open_for_model(model, train, "train")
        self.layers = layers
        self._memory_limit = memory_limit
        self._strict = loss is None
        self._names = {
            "loss": loss_names("compiled" if loss is None else loss),
            "query_loss": loss_names(query_loss or "loss"),
            "class_weight": {
                str(label): float(weight)
                for label, weight in (class_weight or {}).items()
            },
            "objective": {
                **describe_loss(model, loss),
                "query_loss": describe(query_loss or "loss"),
            },
        }
        self.parts: Parts | None = None
        self.loss = per_example_loss(model, loss, class_weight)
        self._same_loss = query_loss in (None, "loss") and not class_weight
        self._like = self.train.first(EXAMPLES)
        has_weights = self._like.sample_weight is not None
        self.weighted = has_weights or bool(class_weight)
        self._steps: dict[tuple[str, bool], Steps] = {}
        self._looked: set[str] = set()  # shared with `among`, `keeping`
        self._warned = False
        check_fits(model, self._like, "train")
        check_built_under(strategy, model)
        if output is not None:
            self.loss = self._query_value = output
            self._same_loss = True
        else:
            x = None
            if isinstance(query_loss, str) and query_loss != "loss":
                x = self.train.first(SAMPLE).x
            query_loss = query_loss or "loss"
            self._query_value = query_value(model, query_loss, loss, x)
        self._updated = UpdatedVariables(model, checkpoints, strategy)
        with self._updated.trainable():
            # Refuses bad `layers=` before long work.
            self.variables = site_variables(find_sites(model, layers))

    @property
    def memory_limit(self) -> int:
        """Bytes that may be used now."""
        return self._memory_limit or default_memory_limit()

    @property
    def train_steps(self) -> GradientFunctions:
        """The compiled steps for training examples."""
        return self.steps_like(self._like).train

    def blocks(
        self, test: Any, bytes_per_query: int | None = None
    ) -> Iterator[Queries]:
        """Queries in blocks of one size that take no more than their share.

        Args:
            test: the queries.
            bytes_per_query: what is held of one; by default its factors.
        """
        examples, steps = self._open_queries(test)
        held = bytes_per_query
        if bytes_per_query is None:
            steps = self._steps_for(examples, steps)
            bytes_per_query = steps.query.factor_bytes
        block_size = _evenly(examples.size, self._room(bytes_per_query))
        if self.parts is not None:
            block_size = self.parts.agreed("block", block_size)
        batches = examples.batches(_evenly(block_size, _QUERY_BATCH))
        for block in in_chunks(batches, block_size):
            yield Queries(tuple(block), steps, held)

    def _steps_for(self, examples: Examples, steps: Steps) -> Steps:
        """Those that hold queries in the form that costs least in all.

        The smallest form makes fewer blocks, for each of which all gradients
        of training examples are computed anew; the other multiplies faster.
        """
        count = examples.size
        if count is None or self.projection is not None:
            return steps

        def multiplications(sparing: bool) -> int:
            """For each training example, over all queries."""
            work = steps.query.work(sparing)
            block = max(1, self._room(work.held))
            return count * work.pairing - (-count // block) * work.making

        sparing = multiplications(True) < multiplications(False)
        if self.parts is not None:
            sparing = self.parts.agreed("sparing", sparing)
        return self.steps_like(examples.first(1), True) if sparing else steps

    def _room(self, bytes_per_query: int) -> int:
        """How many queries a block may have."""
        # Twice the factors exist for a moment, while batches are joined.
        return self.memory_limit // (8 * max(1, bytes_per_query))

    def all_queries(self, test: Any) -> Queries:
        """All queries as one block, for methods that reduce them batch-wise."""
        examples, steps = self._open_queries(test)
        return Queries(tuple(examples.batches(_QUERY_BATCH)), steps)

    def _open_queries(self, test: Any) -> tuple[Examples, Steps]:
        examples = open_for_model(self.model, test, "test")
        like = examples.first(1)
        if (kind_of(like.data), False) not in self._steps:
            check_fits(self.model, like, "test")
        return examples, self.steps_like(like)

    @exclusively
    def sweep(
        self,
        function: Callable,
        rates: Rates,
        sink: Sink,
        *,
        title: str,
        queries: Queries | None = None,
        prepare: Callable[..., Any] = nothing,
        finish: Callable[[Any], Any] = as_it_is,
        verbose: int = 1,
        held: int = 0,
    ) -> None:
        """Sums a compiled step over weights, for all training examples.

        Args:
            function: `(data, [prepared,] rate[, position]) -> [..., n]`, the
                last where there is a projection.
            rates: the checkpoints to visit, and what each counts;
                `PRESENT_WEIGHTS` for the model as it is.
            sink: takes ids `[c]` and sums `[..., c]`, chunk by chunk.
            title: the method's name, for the line that announces long work.
            queries: those that are scored, if any.
            prepare: called once the weights are in the model, with their
                checkpoint and, where there is a projection, its position; what
                it returns is given to `function`, unless it is None.
            finish: makes `[..., n]` of what the step returns for a batch,
                which is then `[n, ...]`.
            verbose: 0 for silence.
            held: bytes that `prepare` returns beside what is of the queries.

        Raises:
            ValueError: if a score is NaN or infinite, naming the weights, the
                layer and the ids.
        """
        if verbose:
            announce(self.model, self.train)
        plan = self.plan(function, rates, queries, held)
        self._warn_of_weights(plan)
        watch = self._underflow_watch(queries)
        # XLA compiles for each size: the last batch is made like the others.
        size = min(plan.batch_size, plan.num_train or plan.batch_size)
        places = {each: np.int32(at) for at, each in enumerate(rates)}

        first = next(iter(rates), None)
        spots = SpotChecks(self.model, self.loss, self.jit_compile)
        numbers = itertools.count()  # of a chunk's batches

        def position(checkpoint: Checkpoint | None) -> tuple:
            return () if self.projection is None else (places[checkpoint],)

        def filled(data):
            return _padded(data, size) if self.jit_compile else data

        def seen(raw) -> np.ndarray:
            """What a step returned, the examples along the last axis."""
            if finish is as_it_is:
                return raw.numpy()
            return np.linalg.norm(raw.numpy(), axis=-1)

        def step(checkpoint: Checkpoint | None, batch: Batch, prepared):
            extra = () if prepared is None else (prepared,)
            rate = np.float32(rates[checkpoint])
            suspects = self._suspects(queries, batch)
            data = filled(batch.data)
            more = (*extra, rate, *position(checkpoint))
            with explaining(suspects):
                raw = function(data, *more)
                found = finish(raw).numpy()[..., : len(batch)]
            if not np.isfinite(found).all():
                raise not_finite(self.model, suspects, name_of(checkpoint))
            with explaining(suspects):
                watch(found, batch, float(rate))
            if checkpoint == first:
                spots.look(
                    next(numbers),
                    batch,
                    seen(raw)[..., : len(batch)],
                    lambda alone: seen(function(filled(alone), *more)),
                )
            return found

        def checked(checkpoint: Checkpoint | None):
            nonlocal numbers
            numbers = itertools.count()
            self.first_look(queries, size if self.jit_compile else None)
            self._updated.visit(checkpoint)
            with self.explaining(queries, self._like):
                return prepare(checkpoint, *position(checkpoint))

        try:
            sweep(
                self.model,
                list(rates),
                self.train,
                plan,
                prepare=checked,
                step=step,
                sink=sink,
                progress=Progress(plan, verbose, title),
            )
        finally:
            self._updated.leave()

    @contextlib.contextmanager
    def visiting(self, checkpoint: Checkpoint | None) -> Iterator[None]:
        """Within it, steps run with this checkpoint's weights."""
        self._updated.visit(checkpoint)
        try:
            yield
        finally:
            self._updated.leave()

    def covering(self) -> contextlib.AbstractContextManager:
        """Within it, what the gradients are by is what is trainable."""
        return self._updated.trainable()

    def moved(self, checkpoint: Checkpoint | None) -> bool:
        """Whether a checkpoint's steps moved what the gradients are by."""
        return self._updated.moved(checkpoint, self.variables)

    @property
    def has_own_loss(self) -> bool:
        """Whether a loss was given in place of the compiled one."""
        return not self._strict

    def depends_on(self, variables: Sequence[Any]) -> list[bool]:
        """Whether the training losses depend on each of these variables."""
        if not variables:
            return []
        x, y, *weight = batch_spec(self._like.data)
        objective = Objective(x, y, weight[0] if weight else None, self.loss)
        run = run_with_loss(self.model, objective)
        return [
            not run.knows_loss or run.depends_on(value_of(variable))
            for variable in variables
        ]

    def shares(self) -> list | None:
        """What each variable counts at each checkpoint; None if all one."""
        return self._updated.describe(self.variables)

    def plan(
        self,
        function: Callable,
        rates: Rates,
        queries: Queries | None = None,
        held: int = 0,
    ) -> Plan:
        """What `sweep` will do with these, and what it will need."""
        weights, loading = self._bytes_of_loans(rates)
        num_queries = bytes_per_query = query_batch = 0
        sparing = False
        if queries is not None:
            num_queries = len(queries.ids)
            if queries.held is None:
                bytes_per_query = queries.steps.query.factor_bytes
            else:
                bytes_per_query = queries.held // 2  # of all its copies
            query_batch = max(map(len, queries.batches))
            sparing = queries.steps.query.sparing
        plan = make_plan(
            self.train,
            num_queries=num_queries,
            num_checkpoints=len(rates),
            footprint=footprint(function, num_queries),
            bytes_per_query=bytes_per_query,
            memory_limit=self.memory_limit,
            query_batch=query_batch,
            weights=weights,
            loading=loading,
            prepared=held,
        )
        plan = dataclasses.replace(plan, sparing=sparing)
        return plan if self.parts is None else self.parts.cut(plan)

    def _bytes_of_loans(self, rates: Rates) -> tuple[int, int]:
        """What is held of weights in a sweep, and more while it loads some."""
        if all(checkpoint is None for checkpoint in rates):
            return 0, 0
        sizes = [nbytes(v.value) for v in self.model.variables]
        # An array of a file is held twice as it becomes a tensor.
        return sum(sizes), 2 * max(sizes)

    def _warn_of_weights(self, plan: Plan) -> None:
        """Says, once, that copies of the weights exceed the limit."""
        limit = self._memory_limit
        if limit is None or plan.weights <= limit or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"Received memory_limit={limit:,} bytes, but "
            f"{plan.weights:,} are needed for weights alone, whatever the "
            "limit: the model's own, while it is lent those of checkpoints, "
            "and with `optimizer_aware=True` the state of its optimizer. In "
            f"all this takes about {plan.memory / 2**20:,.0f} MB; `layers=` "
            "makes it no less.",
            stacklevel=2,
        )

    def steps_like(self, batch: Batch, sparing: bool = False) -> Steps:
        """The compiled steps for queries of the same kind as `batch`.

        Args:
            batch: one or more queries.
            sparing: whether their factors are in the smallest form.
        """
        kind = kind_of(batch.data)
        if (kind, sparing) not in self._steps:

            def functions(loss, like, queries=None):
                return GradientFunctions(
                    self.model,
                    loss,
                    like.data,
                    self.layers,
                    queries=queries,
                    strict=self._strict,
                    strategy=self.strategy,
                    projection=self.projection,
                    jit_compile=self.jit_compile,
                    sparing=sparing,
                    updated=self._updated,
                )

            query = functions(self._query_value, batch)
            same = self._same_loss and kind == kind_of(self._like.data)
            train = query if same else functions(self.loss, self._like, query)
            self._steps[kind, sparing] = Steps(train, query)
        return self._steps[kind, sparing]

    def raise_not_finite(self, queries: Queries) -> NoReturn:
        """Raises ValueError naming the layer and ids of a bad query."""
        suspects = self._suspects(queries, queries.batches[0])
        raise not_finite(self.model, suspects, name_of(None))

    def raise_bad_training(
        self, batch: Batch, checkpoint: Checkpoint | None
    ) -> NoReturn:
        """Raises ValueError naming the layer and ids of bad examples."""
        suspects = self._suspects(None, batch)
        raise not_finite(self.model, suspects, name_of(checkpoint))

    def among(self, ids: np.ndarray) -> Scorer:
        """The same with only those training examples that have these ids."""
        found = copy.copy(self)
        found.train = select(self.train, ids)
        return found

    def identity(self) -> dict[str, Any]:
        """What scores depend on, beside data, weights and options, as JSON."""
        known = self.model._flatten_layers()
        with self._updated.trainable():
            sites = find_sites(self.model, self.layers)
        weights = architecture(self.model)["weights"]
        return {
            # Numbered, not named: Keras counts layers anew in each process.
            "model": [
                [f"weight {at}", shape, dtype]
                for at, (_, shape, dtype) in enumerate(weights)
            ],
            "layers": [
                next(i for i, layer in enumerate(known) if layer is site.layer)
                for site in sites
            ],
            **self._names,
        }

    def keeping(
        self,
        directory: str | os.PathLike | None,
        job: Callable[[], dict[str, Any]],
        rates: Rates,
        test: Any = None,
        more: Callable[[Batch, Numbers], Numbers] = lambda *_: {},
    ) -> Scorer:
        """The same, but what is finished is kept, and found again.

        Args:
            directory: where; processes of one cluster share it. None keeps
                nothing.
            job: returns what else the scores depend on, as JSON.
            rates: the checkpoints that the scores are of.
            test: the queries, if there are any.
            more: makes more numbers that the scores depend on, of a few
                training examples and their numbers.

        Raises:
            ValueError: if parts of another call are there, or if several
                processes have the work in common, and no directory.
        """
        if directory is None:
            check_alone(self.strategy)
            return self
        found = copy.copy(self)
        found.parts = Parts.open(
            directory, {**self.identity(), **job()}, worker_of(self.strategy)
        )
        numbers = self.numbers(rates, test, more)
        found.parts.made_of(numbers, tolerance(self.model))
        return found

    def numbers(
        self,
        rates: Rates,
        test: Any = None,
        more: Callable[[Batch, Numbers], Numbers] = lambda *_: {},
        *,
        projection: Projection | None = None,
        ids: np.ndarray | None = None,
        as_queries: bool = False,
    ) -> Numbers:
        """What the scores are made of, as numbers of a few examples.

        At the last checkpoint; see `keras_tracin.engine.fingerprint`. Training
        examples stand for queries where these have the same form.

        Args:
            rates: the checkpoints that the scores are of.
            test: the queries, if there are any.
            more: as in `keeping`.
            projection: what makes sketches, in place of the scorer's own.
            ids: of the training examples; by default they are chosen.
            as_queries: whether there will be queries like training examples.

        Raises:
            ValueError: if there are no training examples of such ids.
        """
        checkpoint, position = list(rates)[-1], len(rates) - 1
        like = (projection or self.projection, position)
        if ids is None:
            batch = spread_examples(self.train)
        else:
            batch = examples_with(self.train, ids)
        steps, queries, both = self.train_steps, None, None
        if as_queries and not self._same_loss:
            both, queries = self.steps_like(self._like), batch
        if test is not None:
            examples, both = self._open_queries(test)
            queries = first_examples(examples)
            if kind_of(queries.data) == kind_of(self._like.data):
                queries = None if self._same_loss else batch
        with run_weights(self.model) as load:
            if checkpoint is not None:
                load(checkpoint)
            with explaining([Suspect("training", batch, steps)]):
                numbers = measure(self.model, self.loss, steps, batch, *like)
                numbers.update(more(batch, numbers))
            numbers.update(identify(batch))
            if queries is None or both is None:
                return numbers
            steps, value = both.query, self._query_value
            with explaining([Suspect("query", queries, steps)]):
                own = measure(self.model, value, steps, queries, *like)
            own.update(identify(queries))
        return numbers | {f"query {name}": own[name] for name in own}

    def explaining(
        self, queries: Queries | None, batch: Batch
    ) -> contextlib.AbstractContextManager:
        """Within it, what fails is explained by the data that it fails on."""
        return explaining(self._suspects(queries, batch))

    def _underflow_watch(
        self, queries: Queries | None
    ) -> Callable[[np.ndarray, Batch, float], None]:
        """Warns, once, of scores that float32 is too coarse for."""
        looked = warned = False

        def vanish(row: int, batch: Batch, rate: float) -> bool:
            own = (self.loss, _one_of(batch, 0))
            other = own
            if queries is not None:
                at = row
                for block in queries.batches:
                    if at < len(block):
                        break
                    at -= len(block)
                other = (self._query_value, _one_of(block, at))
            groups = self.train_steps.variables
            variables = [v for group in groups for v in group]
            return underflow.vanishes(self.model, variables, (own, other), rate)

        def watch(scores: np.ndarray, batch: Batch, rate: float) -> None:
            nonlocal looked, warned
            if warned:
                return
            warned = underflow.nearly_zero(scores)
            rows = scores.reshape(-1, scores.shape[-1])
            zero = np.flatnonzero(~rows.any(axis=1))
            if len(zero) and not looked and self.projection is None:
                looked = True
                warned = warned or vanish(int(zero[0]), batch, rate)
            if warned:
                warnings.warn(underflow.MESSAGE, stacklevel=2)

        return watch

    def _suspects(self, queries: Queries | None, batch: Batch) -> list[Suspect]:
        """The batches to look into when something fails, queries first."""
        suspects = [Suspect("training", batch, self.train_steps)]
        if queries is not None:
            suspects = [
                Suspect("query", block, queries.steps.query)
                for block in queries.batches
            ] + [Suspect("training", batch, queries.steps.train)]
        return suspects

    def first_look(
        self, queries: Queries | None = None, size: int | None = None
    ) -> None:
        """Looks, once, whether gradients are what plain TensorFlow computes.

        It is to be called with the weights of a checkpoint in the model.

        Args:
            queries: those that are scored, if any; with a loss or in a form
                of their own, they are looked at as well.
            size: of all batches, where XLA compiles for each.

        Raises:
            ValueError: if they are not, or examples of a batch interact,
                naming the layer. One that is random in inference mode is only
                warned of.
        """
        steps = (
            self.steps_like(self._like) if queries is None else queries.steps
        )
        if "training" not in self._looked:
            self._look_at(steps.train, self.train.sample(EXAMPLES), size)
            self._looked.add("training")
        if queries is None or steps.query is steps.train:
            return
        batch = queries.batches[0]
        kind = kind_of(batch.data)
        if kind not in self._looked:
            largest = len(batch) if self.jit_compile else None
            self._look_at(steps.query, batch, largest, "query")
            if not self.jit_compile and len(batch) > EXAMPLES:
                self._look_at_whole(steps.query, batch)
            self._looked.add(kind)

    def _look_at_whole(
        self, functions: GradientFunctions, batch: Batch
    ) -> None:
        """Compares queries of a batch of full size with themselves alone."""
        position = () if self.projection is None else (np.int32(0),)

        def lengths_of(data: Any) -> np.ndarray:
            factors = functions.query_factors(data, *position)
            squares = tf.add_n(list(map(algebra.squared_norm, factors)))
            return np.sqrt(squares.numpy())

        spots = SpotChecks(self.model, functions.loss, role="query")
        spots.look(0, batch, lengths_of(batch.data), lengths_of)

    def _look_at(
        self,
        functions: GradientFunctions,
        batch: Batch,
        size: int | None,
        role: str = "training",
    ) -> None:
        suspects = [Suspect(role, batch, functions)]
        with explaining(suspects):
            complaint = FirstLook(functions, batch, size, role).complaint()
        if complaint is not None:
            raise ValueError(complaint)


def _one_of(batch: Batch, row: int) -> Any:
    """The data of one example of a batch."""
    return tf.nest.map_structure(lambda leaf: leaf[row : row + 1], batch.data)


def _padded(data: Any, size: int) -> Any:
    """A batch's data with its last example repeated, `[size, ...]`."""
    missing = max(0, size - len(tf.nest.flatten(data)[0]))
    return tf.nest.map_structure(
        lambda leaf: np.concatenate(
            [np.asarray(leaf), np.repeat(np.asarray(leaf)[-1:], missing, 0)]
        ),
        data,
    )


def loss_names(losses: Any) -> str:
    """Names of losses: the same in every process, unlike their `repr`."""

    def name(loss: Any) -> str:
        if isinstance(loss, str):
            return loss
        for attribute in ("name", "__qualname__"):
            if getattr(loss, attribute, None):
                # Keras numbers losses of the same class anew in each process.
                return re.sub(r"_\d+$", "", str(getattr(loss, attribute)))
        return type(loss).__name__

    return str(tf.nest.map_structure(name, losses))


def name_of(checkpoint: Checkpoint | None) -> str:
    """A checkpoint in words; None are the weights that the model has."""
    if checkpoint is None:
        return "the model's present weights"
    return f"checkpoint '{checkpoint.path}' (epoch {checkpoint.epoch})"
