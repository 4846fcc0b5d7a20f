import numpy as np
import pytest

from palinka.errors import InputError
from palinka.interventions.engine import run
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import Intervention, Zero
from palinka.language_models import LanguageModel

LD = "logit_difference"


def test_no_units_change_nothing(gpt2: LanguageModel, pairs: Pairs) -> None:
    outcomes = run(gpt2, pairs, [[Intervention("blocks.1.attn.z.0", Zero(), units=[])]])
    np.testing.assert_array_equal(outcomes.values[LD][0], outcomes.corrupted[LD])
    assert not outcomes.possible.any()


@pytest.mark.parametrize("unit", [-1, 6])
def test_units_of_a_head_are_its_own(gpt2: LanguageModel, pairs: Pairs, unit: int) -> None:
    message = rf"blocks\.1\.attn\.z\.0 has units 0 to 5, and {unit} are given"
    with pytest.raises(InputError, match=message):
        run(gpt2, pairs, [[Intervention("blocks.1.attn.z.0", Zero(), units=[2, unit])]])
