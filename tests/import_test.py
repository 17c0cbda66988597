"""What `import keras_tracin` loads beside Keras."""

import subprocess
import sys

# Parts of SciPy that take a second to load. `import scipy` loads each at its
# first use.
_LATE = ("scipy.stats", "scipy.optimize", "scipy.special", "pandas", "sklearn")

_PROGRAM = f"""
import sys
import keras
before = set(sys.modules)
for name in {_LATE!r}:  # with scikit-learn, Keras loads them itself
    for module in [m for m in before if m.split(".")[0] in ("scipy", name)]:
        sys.modules.pop(module, None)
import keras_tracin
print(*[name for name in {_LATE!r} if name in sys.modules])
"""


def test_parts_of_scipy_are_loaded_at_their_first_use():
    loaded = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not loaded.stdout.split()
