"""What numbers mean: intervals and differences. Imports numpy and scipy only."""

from luthier.statistics.bootstrap import Interval, bca, bootstrap, bootstrap_weighted, difference, wilson

__all__ = ["Interval", "bca", "bootstrap", "bootstrap_weighted", "difference", "wilson"]
