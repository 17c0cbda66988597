"""A self-contained HTML page for browsing scores and reviewing labels.

It needs the `report` extra. Everything is in one file, which works without a
network.

Synopsis:
```python
kt.report.write_html(
    "report.html",
    train=(x_train, y_train),
    test=(x_test, y_test),
    top_k=tracin.top_k((x_test, y_test), k=8),
    self_influence=tracin.self_influence(),
)
```
"""

from keras_tracin.report.decisions import apply_decisions
from keras_tracin.report.writing import write_html

__all__ = ["apply_decisions", "write_html"]
