"""Interventions: change a part of a language model, and measure what the model then says."""

from palinka.interventions.pairs import Pairs

__all__ = ["Pairs"]
