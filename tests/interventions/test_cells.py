import pytest

from palinka.errors import InputError
from palinka.interventions.cells import cells_of
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import Patch
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel


def test_windows_are_of_neighboring_layers(gpt2: LanguageModel, pairs: Pairs) -> None:
    study = Study(gpt2, pairs)
    made = cells_of(study, "resid", Patch(), "end", window=2)
    sites = [[each.site for each in cell] for cell in made.cells]
    assert sites == [["hidden.0"], ["hidden.0", "hidden.1"], ["hidden.1", "hidden.2"]]
    units = cells_of(Study(gpt2, pairs, sites=["hidden.1"]), "neurons", Patch(), units=[3, 1])
    assert units.axes == {"site": ["hidden.1"], "neuron": [3, 1]}
    with pytest.raises(InputError, match="window: 0 layers in a cell; give 1 or more"):
        cells_of(study, "resid", Patch(), "end", window=0)
