"""Texts with labelled target tokens, from YAML to token batches."""

from palinka.analyses.stimuli.base import Prepared, Stimuli
from palinka.analyses.stimuli.carrier import Carrier
from palinka.analyses.stimuli.contrast import Contrast
from palinka.analyses.stimuli.load import load_stimuli
from palinka.analyses.stimuli.occurrences import Match, Occurrences
from palinka.analyses.stimuli.passage import Passage
from palinka.analyses.stimuli.words import Words

__all__ = [
    "Carrier",
    "Contrast",
    "Match",
    "Occurrences",
    "Passage",
    "Prepared",
    "Stimuli",
    "Words",
    "load_stimuli",
]
