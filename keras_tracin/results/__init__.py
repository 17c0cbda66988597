"""The results of methods: scores with the ids of their examples."""

from keras_tracin.results.attribution import Attribution
from keras_tracin.results.self_influence import SelfInfluence
from keras_tracin.results.streaming import ScoreColumns, TopKMerger
from keras_tracin.results.token_influence import TokenInfluence
from keras_tracin.results.top_k import Ranking, TopK

__all__ = [
    "Attribution",
    "Ranking",
    "ScoreColumns",
    "SelfInfluence",
    "TokenInfluence",
    "TopK",
    "TopKMerger",
]
