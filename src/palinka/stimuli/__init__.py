"""Texts in which some tokens matter, from YAML to token batches with labels."""

from palinka.stimuli.carrier import Carrier
from palinka.stimuli.contrast import Contrast
from palinka.stimuli.display import display_tokens, token_bytes
from palinka.stimuli.loading import load_stimuli
from palinka.stimuli.occurrences import Match, Occurrences
from palinka.stimuli.passage import Passage
from palinka.stimuli.prepared import Prepared
from palinka.stimuli.stimuli import Stimuli
from palinka.stimuli.words import Words

__all__ = [
    "Carrier",
    "Contrast",
    "Match",
    "Occurrences",
    "Passage",
    "Prepared",
    "Stimuli",
    "Words",
    "display_tokens",
    "load_stimuli",
    "token_bytes",
]
