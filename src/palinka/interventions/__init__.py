"""Interventions: change a part of a language model, and measure the effect on its output."""

from palinka.interventions.pairs import Pairs

__all__ = ["Pairs"]
