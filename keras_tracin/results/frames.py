"""Data frames of results, which need pandas.

Synopsis:

    pd = pandas()
    table = pd.DataFrame({"train_id": ids, "score": scores})
"""

from __future__ import annotations

import importlib
from typing import Any


def pandas() -> Any:
    """The module pandas.

    Raises:
        ImportError: if it is not installed, which this library does not ask
            for.
    """
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError(
            "A data frame needs pandas, which is not installed. Install it: "
            "pip install pandas. The arrays of a result, such as `scores` and "
            "`ids`, need nothing."
        ) from error
