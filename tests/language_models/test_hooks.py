from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.language_models.sites import Tap, reading, replacing


class Chain(nn.Module):
    """first -> second (given its input by name) -> third (returns a tuple)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Step(2.0), Step(3.0), Step(5.0)
        self.calls: list[str] = []
        for name, step in self.named_children():
            step.register_forward_pre_hook(lambda *_, name=name: self.calls.append(name))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(flag=True, hidden_states=x)
        pair: Tensor = (lambda y: (y, "rest"))(self.third(x))[0]
        return pair


class Step(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: Tensor, flag: bool = False) -> Tensor:
        return hidden_states * self.factor


@pytest.fixture
def chain() -> Chain:
    return Chain()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_pass_ends_with_the_last_wanted_tensor(chain: Chain) -> None:
    with reading(chain, {"a": Tap("first"), "b": Tap("second", side="input")}) as found:
        chain(torch.ones(1))
        pytest.fail("the forward pass went on")
    # The hook that looks at the second step's input ran behind the one that counts calls.
    assert chain.calls == ["first", "second"]
    assert found["a"].item() == 2.0
    assert found["b"].item() == 2.0


def test_the_pass_does_not_end_before_a_tensor_that_comes_later(chain: Chain) -> None:
    with reading(chain, {"b": Tap("third"), "a": Tap("first")}) as found:
        chain(torch.ones(1))
    assert chain.calls == ["first", "second", "third"]
    assert found["b"].item() == 30.0


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_tensor_is_replaced_on_either_side(chain: Chain, side: str) -> None:
    with replacing(chain, Tap("second", side=side), lambda x: x + 1):  # type: ignore[arg-type]
        replaced = chain(torch.ones(1)).item()
    assert replaced == {"input": (2 + 1) * 15, "output": (6 + 1) * 5}[side]
    assert chain(torch.ones(1)).item() == 30


def test_the_result_takes_the_dtype_of_the_site(chain: Chain) -> None:
    with replacing(chain, Tap("first"), lambda x: x.double()):
        assert chain(torch.ones(1)).dtype == torch.float32


@pytest.mark.parametrize(
    "replacement", [lambda x: None, lambda x: x[..., :1], lambda x: torch.zeros(5)]
)
def test_a_result_of_another_shape_is_refused(
    chain: Chain, replacement: Callable[[Tensor], Tensor]
) -> None:
    before = hooks(chain)
    with (
        pytest.raises(InputError, match=r"at first returned .* \(3, 2\)"),
        replacing(chain, Tap("first"), replacement),
    ):
        chain(torch.ones(3, 2))
    assert hooks(chain) == before


def test_hooks_come_off_after_an_error(chain: Chain) -> None:
    before = hooks(chain)

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("boom")

    with (
        pytest.raises(RuntimeError, match="boom"),
        reading(chain, {"a": Tap("third")}),
        replacing(chain, Tap("second"), fail),
    ):
        chain(torch.ones(1))
    with pytest.raises(AttributeError), reading(chain, {"a": Tap("first"), "b": Tap("nowhere")}):
        pass
    assert hooks(chain) == before
