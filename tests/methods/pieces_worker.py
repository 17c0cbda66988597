"""Computes the pieces of a call, and is killed in the middle of writing one.

Usage: python -m tests.methods.pieces_worker DIRECTORY PIECES
"""

import os
import signal
import sys

from keras_tracin.methods.pieces import ScorePieces
from keras_tracin.storage import files


def pieces_in(directory, call="top_k", **options):
    """Those of a call of `tests.engine.scoring_worker.answer`."""
    options = {"factory": "tests.records:make_tracin", "k": 4, **options}
    if call != "self_influence":
        options.setdefault("test", "tests.records:queries")
    return ScorePieces(call, directory=str(directory), **options)


def kill_in(piece):
    """Kills this process before a part, counted from 0, has its name."""
    replace, made = os.replace, []

    def replace_or_die(source, target):
        if os.path.basename(target).startswith("part-"):
            if len(made) == piece:
                os.kill(os.getpid(), signal.SIGKILL)
            made.append(target)
        replace(source, target)

    files.os.replace = replace_or_die


def main(directory, piece):
    kill_in(int(piece))
    pieces = pieces_in(directory)
    for number in pieces.begin():
        pieces.compute(number)


if __name__ == "__main__":
    main(*sys.argv[1:])
