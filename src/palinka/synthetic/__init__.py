"""Data whose dictionary is known: sparse combinations of given directions."""

from palinka.synthetic.correlated import CorrelatedData, grouped_correlation
from palinka.synthetic.data import SyntheticBatch, SyntheticData
from palinka.synthetic.hierarchical import HierarchicalData, families
from palinka.synthetic.recovery import mean_max_cosine

__all__ = [
    "CorrelatedData",
    "HierarchicalData",
    "SyntheticBatch",
    "SyntheticData",
    "families",
    "grouped_correlation",
    "mean_max_cosine",
]
