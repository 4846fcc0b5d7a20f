"""Statistics of activations: pure functions from arrays to frozen dataclasses.

Every analysis is a function in a module of the same name, found when it is first asked for:
`palinka.analyses.unit_tuning` is the function `unit_tuning` of `palinka/analyses/unit_tuning.py`.
"""

import sys

from palinka.errors import FunctionPackage

sys.modules[__name__].__class__ = FunctionPackage
