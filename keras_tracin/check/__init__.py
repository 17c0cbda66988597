"""A preflight: what scores will cover, and what would fail.

Synopsis:
```python
report = kt.check(model, train, "runs/digits", test)  # prints it
report.ok, report.errors, report.layers, report.seconds
```
"""

from keras_tracin.check.preflight import check
from keras_tracin.check.report import CheckReport, Finding, LayerReport

__all__ = ["CheckReport", "Finding", "LayerReport", "check"]
