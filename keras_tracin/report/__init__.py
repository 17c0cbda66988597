"""One self-contained page to browse scores and to review labels.

It needs the `report` extra. Everything is in the file: it opens without a
network, and asks nothing of one.

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

from keras_tracin.report.writing import write_html

__all__ = ["write_html"]
