"""Texts with labelled target tokens, from YAML to token batches."""

from palinka.analyses.stimuli.base import Prepared as Prepared
from palinka.analyses.stimuli.base import Stimuli as Stimuli
from palinka.analyses.stimuli.carrier import Carrier as Carrier
from palinka.analyses.stimuli.contrast import Contrast as Contrast
from palinka.analyses.stimuli.load import load_stimuli as load_stimuli
from palinka.analyses.stimuli.occurrences import Match as Match
from palinka.analyses.stimuli.occurrences import Occurrences as Occurrences
from palinka.analyses.stimuli.paired import Paired as Paired
from palinka.analyses.stimuli.passage import Passage as Passage
from palinka.analyses.stimuli.words import Words as Words
