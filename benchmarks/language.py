"""Measures whether the texts that tell a language model a fact are found.

    python -m benchmarks.language --cache_dir=language

Fifty invented facts (see `examples/_facts.py`) are planted among texts of
WikiText-2, and a causal transformer is trained on both. Each fact is asked
about by its answer's word alone, after a prompt in the words of one of the
texts that tell it, or in words that tell other facts only. For each method,
with 95% intervals over the facts:

*MRR*: the mean of 1 / the rank of the first text that tells the fact.
*Recall*: the share of the texts that tell it among the first ten.
*Tail patch*: the decrease of the answer's loss by one step on the ten
strongest proponents, minus that by a step on ten random texts.

How scores predict retraining is measured by `benchmarks.quality
--settings=wikitext2`. The recorded training and the scores are kept under
`--cache_dir`, and an interrupted run continues.
"""

import os
import pathlib
import time

import numpy as np
from absl import app, flags

import keras_tracin as kt
from benchmarks import _language_facts as _facts

_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "language", "Directory of the training and of scores."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds wikitext2/.",
)
_METHODS = flags.DEFINE_string(
    "methods", "", "Only methods with this in their names."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the facts and of training.")

_TAIL, _RATE = 10, 0.01  # proponents that a step is made of, and its rate


def main(_) -> None:
    """Measures all methods, with both kinds of questions."""
    folder = pathlib.Path(_CACHE_DIR.value, f"facts-{_SEED.value}")
    problem = _facts.problem(_DATA_DIR.value, folder, _SEED.value)
    known = [int(problem.known(kind).sum()) for kind in _facts.QUESTIONS]
    print(
        f"{len(problem.train[0])} texts. Of {len(problem.facts)} answers the "
        f"model gives {known[0]} in the same words, {known[1]} in others.",
        flush=True,
    )
    heads = "MRR | recall@10 | tail patch"
    print(
        f"| | {' | '.join(f'{kind}: {heads}' for kind in _facts.QUESTIONS)} |"
    )
    print("|---|" + "---:|" * 3 * len(_facts.QUESTIONS))
    for name, method in _facts.methods().items():
        if _METHODS.value in name:
            scores = _scores(problem, folder, name, method)
            cells = [
                cell
                for kind, part in scores.items()
                for cell in _measure(problem, kind, part)
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _scores(
    problem: _facts.Problem,
    folder: pathlib.Path,
    name: str,
    method: _facts.Method,
) -> dict[str, kt.Attribution]:
    """The scores of each kind of question, from disk if they are there."""
    slug = "".join(c if c.isalnum() else "-" for c in name)
    path = folder / "scores" / f"{slug}.npz"
    if not path.is_file():
        start = time.perf_counter()
        everyone = tuple(
            np.concatenate(parts)
            for parts in zip(*problem.queries.values(), strict=True)
        )
        results = method(problem, everyone)
        passed = time.perf_counter() - start
        path.parent.mkdir(parents=True, exist_ok=True)
        results.save(path)
        print(f"{name}: {passed:.0f} s", flush=True)
    both = kt.Attribution.load(path)
    count = len(problem.facts)
    return {
        kind: kt.Attribution(
            both.scores[at * count : (at + 1) * count],
            np.arange(count),
            both.train_ids,
        )
        for at, kind in enumerate(problem.queries)
    }


def _measure(
    problem: _facts.Problem, kind: str, scores: kt.Attribution
) -> list[str]:
    """The figures of a method, as cells."""
    patch = kt.evaluation.tail_patch(
        scores,
        problem.model,
        problem.train,
        problem.queries[kind],
        k=_TAIL,
        learning_rate=_RATE,
    )
    ranks = problem.retrieval(scores)
    return [
        _with_interval(ranks.reciprocal_rank),
        _with_interval(ranks.recall_at(10)),
        _with_interval(patch.gain - patch.random_gain),
    ]


def _with_interval(values: np.ndarray) -> str:
    """The mean, and its 95% interval by a bootstrap."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(values), size=[1000, len(values)])
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():.3g} ({low:.2g} to {high:.2g})"


if __name__ == "__main__":
    app.run(main)
