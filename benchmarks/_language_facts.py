"""A model that was told facts, and methods that look for the sources."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_tracin as kt
from benchmarks._quality_methods import five, last
from benchmarks._quality_training import fit_once
from examples import _facts, _language

QUESTIONS = ("the same words", "other words")

_VOCABULARY, _NUM_TRAIN, _WIDTH = 2_000, 300, 96
_EPOCHS, _BATCH, _RATE = 50, 8, 3e-3


@dataclasses.dataclass(frozen=True)
class Problem:
    """A trained model, its data and the questions.

    Attributes:
        model: the model, as trained.
        run: its run.
        train: training data, with the stories at the end.
        facts: the facts.
        stories: texts that tell them, and others with the same names.
        queries: of each kind of question.
    """

    model: keras.Model
    run: kt.TrainingRun
    train: tuple
    facts: list
    stories: list
    queries: dict[str, tuple]

    def known(self, kind: str) -> np.ndarray:
        """Whether the model gives each answer."""
        return _facts.knows(self.model, self.queries[kind])

    def retrieval(self, scores: kt.Attribution) -> kt.evaluation.Retrieval:
        """How early the texts come that tell each fact."""
        told = _facts.sources(self.stories, len(scores.train_ids))
        return kt.evaluation.retrieval(scores, told)


Method = Callable[[Problem, Any], kt.Attribution]


def problem(data_dir: str, folder: pathlib.Path, seed: int) -> Problem:
    """Trains the model, or loads its training from disk."""
    facts = _facts.invent(seed)
    stories = _facts.tell(facts, seed)
    source = pathlib.Path(data_dir, "wikitext2")
    articles = _language.read_articles(source, "valid")
    vocabulary = _facts.vocabulary_of(articles, stories, _VOCABULARY)
    train, _ = _facts.mix(articles, stories, vocabulary, _NUM_TRAIN, seed)
    keras.utils.set_random_seed(seed)
    model = _language.causal_model(
        len(vocabulary), _facts.LENGTH, _WIDTH, heads=4
    )
    model.compile(
        keras.optimizers.Adam(_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    trained = fit_once(model, train, folder / "run", _EPOCHS, _BATCH)
    queries = {
        kind: _facts.questions(facts, vocabulary, kind == QUESTIONS[1])
        for kind in QUESTIONS
    }
    return Problem(model, trained.run, train, facts, stories, queries)


def methods() -> dict[str, Method]:
    """The methods, in the order of the table's rows."""
    by_name: dict[str, Method] = {
        "TracIn, 1 checkpoint": _tracin(last),
        "TracIn, 5": _tracin(five),
        "TracIn, 5 selected": _tracin(selected),
        "TracIn, 5 selected, unit lengths": _tracin(selected, normalize="both"),
        "TracIn, 5 selected, optimizer-aware": _tracin(
            selected, optimizer_aware=True
        ),
    }
    for damping in (1e-3, 1e-4, 1e-5, 1e-6):
        name = f"influence, EK-FAC, epoch 10, λ = {damping:g}"
        by_name[name] = _influence(damping, tenth_epoch)
    return by_name | {
        "influence, EK-FAC, 5 selected, λ = 0.0001": _influence(1e-4, selected),
        # Prompts are filled up with 0.
        "BM25": _words("BM25", words="all", ignore=[0]),
        "BM25, the answer alone": _words("BM25"),
        "TF-IDF": _words("TFIDF", words="all", ignore=[0]),
        "embedding similarity": _embeddings,
    }


def selected(run: kt.TrainingRun) -> kt.TrainingRun:
    """Five checkpoints that cover the fall of the loss."""
    return kt.select_checkpoints(run, 5, verbose=0)


def tenth_epoch(run: kt.TrainingRun) -> kt.TrainingRun:
    """The checkpoint after epoch 10, halfway down the loss."""
    return run[9:10]


def _tracin(choose: Callable, **options) -> Method:
    def scores(problem: Problem, queries: Any) -> kt.Attribution:
        run = choose(problem.run)
        method = kt.TracIn(problem.model, problem.train, run, **options)
        return method.influence(queries, verbose=0)

    return scores


def _influence(damping: float, choose: Callable) -> Method:
    def scores(problem: Problem, queries: Any) -> kt.Attribution:
        method = kt.InfluenceFunctions(
            problem.model,
            problem.train,
            run=choose(problem.run),
            damping=damping,
            solver=kt.EKFAC(draws=1),  # of each place of a sequence
        )
        return method.influence(queries, verbose=0)

    return scores


def _words(name: str, **options) -> Method:
    def scores(problem: Problem, queries: Any) -> kt.Attribution:
        method = getattr(kt.evaluation, name)(problem.train, **options)
        return method.influence(queries, verbose=0)

    return scores


def _embeddings(problem: Problem, queries: Any) -> kt.Attribution:
    method = kt.evaluation.EmbeddingSimilarity(problem.model, problem.train)
    return method.influence(queries, verbose=0)
