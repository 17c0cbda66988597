"""Ways to solve `A x = b` for an operator, one in a module.

Synopsis:

    solution = solve(Damped(hessian, 0.01), gradients, CG())
"""

from keras_tracin.curvature.solvers.arnoldi import Arnoldi
from keras_tracin.curvature.solvers.cg import CG
from keras_tracin.curvature.solvers.ekfac import EKFAC, RELATIVE_DAMPING
from keras_tracin.curvature.solvers.exact import Exact
from keras_tracin.curvature.solvers.lissa import LiSSA
from keras_tracin.curvature.solvers.randomized_sketch import (
    InverseSketch,
    RandomizedSketch,
)
from keras_tracin.curvature.solvers.solution import (
    Inverse,
    Solution,
    Solver,
    report,
    solve,
)

__all__ = [
    "CG",
    "EKFAC",
    "RELATIVE_DAMPING",
    "Arnoldi",
    "Exact",
    "Inverse",
    "InverseSketch",
    "LiSSA",
    "RandomizedSketch",
    "Solution",
    "Solver",
    "report",
    "solve",
]
