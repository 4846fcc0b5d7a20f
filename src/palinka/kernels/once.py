"""For backward passes that are written by hand and have none of their own."""

import torch


def refuse_second_derivative(function: str) -> None:
    """Where a graph of the gradient is wanted, it would silently lack this function's part.

    Raises:
        RuntimeError: In a backward pass with `create_graph`.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{function} is differentiable once: use the plain form")
