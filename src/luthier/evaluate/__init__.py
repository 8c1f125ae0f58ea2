"""Is it better? Metrics with intervals, baselines to beat, and the report. Imports no torch."""

from luthier.evaluate.metrics import (
    METRICS,
    Metric,
    by_class,
    compare,
    confusion,
    default_metric,
    load_metric,
    score,
    values,
)
from luthier.evaluate.outputs import Outputs

__all__ = [
    "METRICS",
    "Metric",
    "Outputs",
    "by_class",
    "compare",
    "confusion",
    "default_metric",
    "load_metric",
    "score",
    "values",
]
