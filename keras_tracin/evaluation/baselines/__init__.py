"""Similarities of inputs, which attribution scores have to beat."""

from keras_tracin.evaluation.baselines.embeddings import EmbeddingSimilarity
from keras_tracin.evaluation.baselines.lexical import BM25, TFIDF

__all__ = ["BM25", "TFIDF", "EmbeddingSimilarity"]
