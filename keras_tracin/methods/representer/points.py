"""Representer points: a prediction as a sum over training examples.

    φ_c(z') = Σ_z α_c(z) f(z)·f(z'),  α(z) = −1/(2λn) ∂ℓ/∂φ(z)

f is the input of the model's last layer, φ the logits that the layer computes
once its weights w2 minimise (1/n) Σ ℓ + λ‖w2‖² (Pruthi et al. 2020, appendix
A.2; Yeh et al. 2018). Equation 4 of the appendix differentiates at the query
z'; the sum is only right with the gradient at the *training* example z, as it
is here.

Positive scores push the query's logit towards the target class. They explain
the prediction, not its loss, and through the last layer alone.

Synopsis:

    points = kt.RepresenterPoints(model, train, l2=1e-3)
    print(points.faithfulness())
    points.influence(test)                          # Attribution
    points.top_k(test, k=10, target="predicted")    # TopK
    points.self_influence()                         # SelfInfluence
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_tracin.engine import collecting
from keras_tracin.engine.chunks import check_there
from keras_tracin.engine.descriptions import loss_names
from keras_tracin.engine.distribution import Strategy
from keras_tracin.methods.attributor import Directory, GroupsOfIds
from keras_tracin.methods.representer.decomposition import check_hessian_fits
from keras_tracin.methods.representer.faithfulness import Faithfulness, compare
from keras_tracin.methods.representer.fit import LastLayerMethod
from keras_tracin.methods.representer.head import RetunedModel
from keras_tracin.methods.representer.problem import Problem, validate_l2
from keras_tracin.methods.representer.scoring import LARGEST_BLOCK, filling
from keras_tracin.methods.representer.targets import Target
from keras_tracin.models.descriptions import describe_loss
from keras_tracin.models.kinds import check_is_model
from keras_tracin.results import Attribution, TopK


class RepresenterPoints(LastLayerMethod):
    """Influence of training examples by representer points.

    Example:
    ```python
    model.fit(train, epochs=10)
    points = kt.RepresenterPoints(model, train, l2=1e-3)
    top = points.top_k(test, k=5, target="predicted")
    top.proponents.ids          # [num_test, 5]
    ```

    The first call represents the training examples and retunes the last Dense
    layer on these representations. The model keeps its weights, and every call
    expects the weights that it had when the object was made. Bias and kernel
    are regularised alike, as one matrix whose last input is a constant 1. The
    layer's own weight regularisers play no part: λ stands in for them. The
    model runs in inference mode, and the loss is the compiled one, times each
    example's sample weight. Memory grows with the number of training examples
    times the width of the representation.

    With `directory=`, calls keep what is finished and go on from it, and
    processes of one cluster (`TF_CONFIG`) share the scores. Retuning is not
    shared: each process reads all training examples and retunes by itself,
    which is deterministic, before it scores its part of them.

    `self_influence` is the global importance of each training example: the
    length of its representer values over the outputs, ‖α(z)‖. It is large
    where the retuned layer does not fit the label, so for mislabelled and
    unusual examples. It is not the example's score on itself, and never
    negative. With `method="lje"` it is the length of the example's scores on
    itself, as in Sui et al. 2021.

    Args:
        model: the trained model, compiled with its loss. It ends in a Dense
            layer that reads one vector per example, with no more than a known
            activation after it.
        train: the data that `model.fit` took: a batched `tf.data.Dataset` or
            a tuple of arrays, `(x, y)` or `(x, y, sample_weight)`.
        l2: λ. The smaller, the closer the retuned layer fits the labels; the
            larger, the smaller its weights. `kt.sweep_l2` shows how faithful
            it stays to the model. With `method="lje"`, 2λ damps the Hessian.
        layer: the Dense layer that makes the logits, by name or object; by
            default the one that is called last.
        method: `"l2"`, or `"lje"` for Local Jacobian Expansion (Sui et al.
            2021), which decomposes the last layer as it is and retunes
            nothing; see `keras_tracin.methods.representer.decomposition`.
        loss: used in place of the compiled loss; anything `compile` takes.
        strategy: a `tf.distribute.Strategy` under which the model was built,
            to spread the pass over the data over.
        memory_limit: bytes the computation may use, beside the data and the
            representations; half of what is free by default.
        verbose: 0 for silence; else representing the training examples has a
            progress bar where it takes more than two seconds.

    Raises:
        ValueError: if λ is not above zero, if the model has no such layer, if
            the loss has no gradient at the logits, if data and model do not
            fit one another, or if the model was not built under `strategy`. A
            layer that retuning leaves short of a stationary point is a
            warning of the first call.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        l2: float = 1e-3,
        layer: str | keras.Layer | None = None,
        method: str = "l2",
        loss: Any = None,
        strategy: Strategy | None = None,
        memory_limit: int | None = None,
        verbose: int = 1,
    ):
        check_is_model(model)
        if method not in ("l2", "lje"):
            raise ValueError(
                f"`method` should be 'l2' or 'lje'. Received: {method!r}."
            )
        l2 = validate_l2(l2)
        problem = Problem(
            model,
            train,
            layer=layer,
            loss=loss,
            strategy=strategy,
            memory_limit=memory_limit,
            verbose=verbose,
        )
        if method == "lje":
            size = problem.head.weights.size
            check_hessian_fits(size, problem.execution.memory)
        losses = {
            "loss": loss_names("compiled" if loss is None else loss),
            "objective": describe_loss(model, loss),
        }
        super().__init__(problem, l2, method, losses, verbose)

    @property
    def train_ids(self) -> np.ndarray:
        """The training examples' ids, `[num_train]`."""
        return self._select(self.fitted().train.ids)

    @property
    def weights(self) -> np.ndarray:
        """The explained layer's weights `[f, k]`, its bias as last row.

        They are retuned, or those of the model with `method="lje"`.
        """
        return self.fitted().weights

    @property
    def values(self) -> np.ndarray:
        """The representer values α, `[num_train, num_outputs]`.

        They are in reading order. With `method="lje"` they score each example
        on itself, and on others approximately.
        """
        return self._select(self.fitted().points.values)

    @property
    def retuned_model(self) -> keras.Model:
        """The model with the retuned layer in the place of its own.

        Its other layers are the user's, not copies.

        Raises:
            ValueError: with `method="lje"`, which retunes nothing.
        """
        if self._kind == "lje":
            raise ValueError(
                "`method='lje'` explains the model as it is and retunes "
                "nothing. Use `method='l2'` for a retuned model."
            )
        return RetunedModel(self.model, self._problem.head, self.weights)

    def influence(
        self,
        test: Any,
        *,
        groups: GroupsOfIds | None = None,
        contrast: Any = None,
        query_tokens: Any = None,
        target: Target = "label",
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query's target.

        Args:
            test: the queries, in the same form as `train`.
            groups: as in `TracIn.influence`.
            contrast: as in `TracIn.influence`, of the targets of both.
            query_tokens: has no meaning here, and is refused.
            target: the class that scores push towards: `"label"`, the query's
                own; `"predicted"`, the one the user's model predicts; or a
                class index for all queries. For a single sigmoid, classes 0
                and 1 are its sides. In a regression positive scores raise the
                output, whose index may be given.
            directory: where finished parts are kept, as in `TracIn`: a call
                that was killed goes on from them, processes that share it
                share the work, and the scores are mapped from a file there.
            verbose: 0 for silence.

        Returns:
            An `Attribution` with `scores [num_test, num_train]`, float32; a
            row adds up to the target's logit (for class 0 of a single sigmoid
            to its negative).

        Raises:
            ValueError: if the queries have no such target, if the model has
                other weights than it had, if `directory` holds parts of
                another call, or if several processes have the strategy in
                common and no directory.
        """
        _check_no_tokens(query_tokens)
        self._problem.meaning.check(target)
        return self._influence(
            test, contrast, groups, directory, verbose, target=target
        )

    def top_k(
        self,
        test: Any,
        k: int = 10,
        *,
        query_tokens: Any = None,
        target: Target = "label",
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The `k` strongest proponents and opponents of every query's target.

        The same as `influence(test).top_k(k)` without ever holding all the
        scores.

        Args:
            test: the queries, in the same form as `train`.
            k: number of training examples on each side.
            query_tokens: has no meaning here, and is refused.
            target: as in `influence`.
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        _check_no_tokens(query_tokens)
        self._problem.meaning.check(target)
        return self._top_k(test, k, directory, verbose, target=target)

    def class_scores(
        self,
        test: Any,
        *,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> np.ndarray:
        """The scores for every output, `[num_test, num_train, num_outputs]`.

        Positive scores raise the output's logit, and add up to it. All are
        held, in float32, unless there is a directory: for many queries, use
        `top_k`.

        Args:
            test: the queries, in the same form as `train`.
            directory: as in `influence`.
            verbose: 0 for silence.
        """
        call = self.start("class_scores", test, directory, verbose)
        blocks = self.blocks(test, call)

        def stream(queries, sink):
            self.stream(queries, sink, call)

        if call.parts is not None:
            scores = collecting.mapped(blocks, stream, call.parts)["scores"]
            return self._select(scores, axis=1)
        shape = (len(self.fitted().train), self.weights.shape[1])
        filled = []
        for queries in blocks:
            scores = np.empty((len(queries), *shape), np.float32)
            stream(queries, filling(scores))
            filled.append(self._select(scores, axis=1))
        return filled[0] if len(filled) == 1 else np.concatenate(filled)

    def logits(self, test: Any, *, verbose: int = 1) -> np.ndarray:
        """The sums of the scores over the training examples, `[m, k]`.

        They are computed without the scores: the points are summed first.

        Args:
            test: the queries, in the same form as `train`.
            verbose: 0 for silence.
        """
        self.check_weights()
        total = self.fitted(verbose).points.total
        blocks = self._problem.blocks(test, LARGEST_BLOCK, verbose)
        return np.concatenate([queries.features @ total for queries in blocks])

    def faithfulness(
        self, data: Any = None, *, verbose: int = 1
    ) -> Faithfulness:
        """The agreement of the points with their sum and with the model.

        Args:
            data: examples to compare logits on; the training examples by
                default.
            verbose: 0 for silence.
        """
        fit, problem = self.fitted(verbose), self._problem
        examples = fit.train
        if data is not None:
            self.check_weights()
            examples = problem.reader.read(problem.open(data, "data"), verbose)
        retuned = fit.retuned
        return compare(
            examples.features,
            original=problem.head.weights,
            explained=fit.weights,
            points=fit.points.total,
            gradient_ratio=None if retuned is None else retuned.gradient_ratio,
        )

    def _select(self, array: np.ndarray, axis: int = 0) -> np.ndarray:
        """The entries of an array for the training examples of `among`."""
        if self.selected_ids is None:
            return array
        ids = self.fitted().train.ids
        if self._required_ids is not None:
            check_there(self._required_ids, set(ids.tolist()))
        selected = np.isin(ids, self.selected_ids)
        return np.take(array, np.flatnonzero(selected), axis=axis)


def _check_no_tokens(query_tokens: Any) -> None:
    if query_tokens is not None:
        raise ValueError(
            "Representer points score the output of an example, which has no "
            "tokens. Received `query_tokens`; leave it out, or use another "
            "method."
        )
