"""Second-order information: operators, solvers, sketches, EK-FAC."""
