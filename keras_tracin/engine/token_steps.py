"""Passes that score training examples position by position.

Synopsis:

    tokens = num_tokens(engine.train_steps.spec[0])
    by_token(products_pass("TracIn", queries, weights), tokens)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.data.tokens import is_companion
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.steps import RATE, GradientFunctions
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import Factors

SEQUENCES = ("encoder", "decoder")


def by_token(work: Pass, tokens: int) -> Pass:
    """The same pass, with scores `[m, tokens + 1, n]`.

    The last row of each query is the share of layers that have no position for
    each token.

    Args:
        work: a pass of products with the queries' factors, or with directions.
        tokens: number of positions.

    Raises:
        ValueError: if it is of sketches, which have no positions.
    """
    assert work.queries is not None
    steps = work.queries.steps.train
    if work.by_token is not None and not steps.projects:
        return dataclasses.replace(work, step=work.by_token(tokens))
    if steps.projects:
        raise ValueError(
            "Scores by token are of whole gradients. Received a method with a "
            "`projection=`, whose sketches have no positions. Leave it out, "
            "or use `influence`."
        )
    along = work.step is steps.along

    def make():
        return _token_products(steps, along, tokens)

    step = steps.kept(("by token", tokens, along), make)
    return dataclasses.replace(work, step=step)


def _token_products(functions: GradientFunctions, along: bool, tokens: int):
    """A step `(data, queries, rate) -> rate · [m, tokens + 1, n]`."""
    capturing = functions.capturing
    specs = functions.direction_specs if along else functions.query_specs

    def step(data, queries, rate):
        terms = capturing.factors_by_position(data, equal=along)
        own = capturing.compact(tuple(map(algebra.summed, terms)))
        shares = shares_by_token(terms, own, queries, tokens)
        return tf.cast(rate, shares.dtype) * shares

    return functions.traced(step, specs, RATE, axis=-1)


def shares_by_token(
    terms: Sequence[Factors],
    compact: Sequence[Factors],
    queries: Sequence[Factors],
    tokens: int,
) -> tf.Tensor:
    """Products by the positions of training examples, `[m, tokens + 1, n]`.

    Args:
        terms: factors of `n` training examples, with the terms of sums over
            positions.
        compact: the same in compact form.
        queries: factors of `m` queries in compact form, or directions.
        tokens: number of positions. What has another number is in the last
            row of the result.
    """
    placed, rest = [], []
    for own, whole, query in zip(terms, compact, queries, strict=True):
        calls = algebra.inner_by_position(own, query)  # [n, m, t] each
        if not calls:
            rest.append(algebra.inner(query, whole)[:, tf.newaxis])
        for call in calls:
            shares = tf.transpose(call, [1, 2, 0])
            if shares.shape[1] == tokens:
                placed.append(shares)
            else:
                rest.append(tf.reduce_sum(shares, axis=1, keepdims=True))
    like = (placed or rest)[0]
    count, size = tf.shape(like)[0], tf.shape(like)[2]
    nothing = tf.zeros([count, tokens, size], like.dtype)
    placed, rest = placed or [nothing], rest or [nothing[:, :1]]
    return tf.concat([tf.add_n(placed), tf.add_n(rest)], axis=1)


def num_tokens(x: Any, sequence: str | None = None) -> int:
    """The length of the token input.

    Masks, segments, types and positions, by their names, belong to the tokens
    of another input.

    Args:
        x: the types of the model's inputs, `[None, ...]`.
        sequence: "encoder" or "decoder", which the names of its inputs
            hold, where there are tokens of both.

    Raises:
        ValueError: if there is none, if its length is not fixed, or if inputs
            of several lengths leave open which is meant.
    """
    if sequence not in (None, *SEQUENCES):
        raise ValueError(
            "`sequence` should be 'encoder' or 'decoder', or left out. "
            f"Received: {sequence!r}."
        )
    lengths: dict[str, int | None] = {}
    for path, spec in keras.tree.flatten_with_path(x):
        if spec.shape.rank == 2 and (
            spec.dtype.is_integer or spec.dtype.is_bool
        ):
            lengths[".".join(map(str, path)) or "x"] = spec.shape[1]
    asked = {
        length
        for name, length in lengths.items()
        if sequence is None or sequence in name
    }
    tokens = asked.pop() if asked else None
    if tokens is None or None in asked:
        raise ValueError(
            "Scores by token need an input of token ids `[n, tokens]`, whole "
            f"numbers of one length{_named(sequence)}. Received inputs of "
            f"these: {lengths}. Tokenize and pad before the model, or use "
            "`influence`."
        )
    others = [
        length
        for name, length in lengths.items()
        if sequence is not None and sequence not in name
    ]
    texts = [
        name
        for name in lengths
        if (sequence is None or sequence in name) and not is_companion(name)
    ]
    if asked or tokens in others or len(texts) > 1:
        raise ValueError(
            "Layers are told apart by the length of their sequences, so the "
            "encoder and the decoder need different ones, and "
            "`sequence='encoder'` or 'decoder' says which is meant. Received "
            f"inputs of these lengths: {lengths}; sequence={sequence!r}. Pad "
            "one of them by a token more where they are alike; of other "
            "inputs of tokens, more than one is not told apart."
        )
    return tokens


def _named(sequence: str | None) -> str:
    return "" if sequence is None else f", with {sequence!r} in its name"
