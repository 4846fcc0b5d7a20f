"""Reading and replacing tensors inside a model with forward hooks that always come off again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from palinka.errors import InputError
from palinka.language_models.taps import Tap, output_tensor, with_output_tensor


class _EverythingRead(Exception):  # noqa: N818 - a signal that ends the forward pass, no error
    """Raised out of the forward pass by the hook that read the last wanted tensor."""


@contextmanager
def reading(model: nn.Module, taps: Mapping[str, Tap]) -> Iterator[dict[str, Tensor]]:
    """Collect tensors while the model runs in the body of the `with`, which ends with the last.

    Args:
        model: The model that the body runs.
        taps: What to read, under names of the caller's choice.

    Yields:
        The tensors by name, filled in as the model reaches them: the very tensors that the
        model computes, or views of them.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, tap: Tap, whole: Tensor | None) -> None:
        if whole is None or name in found:
            return
        found[name] = tap.take(whole)
        if len(found) == len(taps):
            raise _EverythingRead

    with ExitStack() as hooks:
        for name, tap in taps.items():
            hooks.enter_context(_read_hook(model, name, tap, keep))
        with suppress(_EverythingRead):
            yield found


@contextmanager
def _read_hook(
    model: nn.Module, name: str, tap: Tap, keep: Callable[[str, Tap, Tensor | None], None]
) -> Iterator[None]:
    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(name, tap, _input_tensor(args, kwargs))

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        keep(name, tap, output_tensor(output))

    module = model.get_submodule(tap.module)
    if tap.side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replacing(
    model: nn.Module, tap: Tap, replacement: Callable[[Tensor], Tensor], first: bool = True
) -> Iterator[None]:
    """Replace a tensor wherever the model runs in the body of the `with`.

    Args:
        model: The model that the body runs.
        tap: What to replace.
        replacement: From the tensor to what takes its place, of the same shape; it is cast
            to the tensor's dtype and device.
        first: Whether to act before the hooks that are already there, so that they (those
            that collect `hidden_states` in transformers, for one) see the replaced tensor.
    """

    def change(whole: Tensor) -> Tensor:
        tapped = tap.take(whole)
        new = replacement(tapped)
        if not isinstance(new, Tensor) or new.shape != tapped.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise InputError(
                f"the replacement at {tap.module} returned {given}; "
                f"return a tensor of the shape it was given, {tuple(tapped.shape)}"
            )
        return tap.put(whole, new.to(tapped))

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        whole = _input_tensor(args, kwargs)
        if whole is None:
            return None
        if args:
            return (change(whole), *args[1:]), kwargs
        return args, {**kwargs, _input_name(kwargs): change(whole)}

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        whole = output_tensor(output)
        return None if whole is None else with_output_tensor(output, change(whole))

    module = model.get_submodule(tap.module)
    if tap.side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True, prepend=first)
    else:
        handle = module.register_forward_hook(after, prepend=first)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def following(model: nn.Module, tap: Tap) -> Iterator[Callable[[], Tensor]]:
    """Keep hold of what a tensor was last, wherever the model runs in the body of the `with`.

    Yields:
        Hands the tensor out, once for each time that the model has come by.

    Raises:
        InputError: When it is asked for a tensor that the model has not reached yet.
    """
    latest: list[Tensor] = []

    def keep(_name: str, tap: Tap, whole: Tensor | None) -> None:
        if whole is not None:
            latest[:] = [tap.take(whole)]

    def take() -> Tensor:
        if not latest:
            raise InputError(
                f"the source at {tap.module} is computed after the site that it is to replace; "
                "give a source site that comes before it"
            )
        return latest.pop()

    with _read_hook(model, "", tap, keep):
        yield take


def _input_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a module is given first, by position or by name."""
    first = args[0] if args else kwargs.get(_input_name(kwargs))
    return first if isinstance(first, Tensor) else None


def _input_name(kwargs: Mapping[str, Any]) -> str:
    """The keyword under which a module is given its input when nothing is given by position."""
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs), "")
