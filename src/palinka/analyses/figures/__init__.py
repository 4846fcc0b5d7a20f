"""Pictures of findings: functions from an analysis's result to matplotlib figures.

Every analysis has one, a function in a module of the same name, found when it is first asked
for: `palinka.analyses.figures.unit_tuning` draws what `palinka.analyses.unit_tuning` found.
"""

import sys

from palinka.errors import FunctionPackage

sys.modules[__name__].__class__ = FunctionPackage
