"""How well a model predicts the next token, and how far two models' predictions are apart.

What is exponentiated stays in the dtype of the logits, in float32 where that is shorter; sums are
float64. Rows go through in pieces, so that nothing as large as the logits is made beside them.
"""

import torch
from torch import Tensor

# Numbers of one piece, which stay in the processor's cache.
PIECE = 1 << 19


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each next token, in nats.

    Args:
        logits: `(…, vocabulary)`.
        targets: The tokens that came, `(…)`.

    Returns:
        `(…)`, float64.
    """
    rows, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    losses = [
        _log_sum_exp(piece) - piece.gather(1, tokens[:, None])[:, 0].double()
        for piece, tokens in zip(_pieces(rows), torch.split(wanted, _piece_rows(rows)), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean ‖ other) of the next-token distributions at each position, in nats.

    Args:
        clean: Logits, `(…, vocabulary)`.
        other: Logits of the same shape.

    Returns:
        `(…)`, float64; exactly 0 where the logits are the same.
    """
    divergences = []
    pairs = (logits.reshape(-1, logits.shape[-1]) for logits in (clean, other))
    for p, q in zip(*(_pieces(rows) for rows in pairs), strict=True):
        largest = p.amax(dim=1)
        # Relative to the largest one, so that large logits lose no digits.
        weights = (p - largest[:, None]).exp()
        total = weights.sum(dim=1, dtype=torch.float64)
        difference = (weights * (p - q)).sum(dim=1, dtype=torch.float64) / total
        log_p = total.log() + largest.double()
        divergences.append(difference - (log_p - _log_sum_exp(q)))
    return torch.cat(divergences).view(clean.shape[:-1])


def _log_sum_exp(rows: Tensor) -> Tensor:
    largest = rows.amax(dim=1)
    sums = (rows - largest[:, None]).exp().sum(dim=1, dtype=torch.float64)
    return sums.log() + largest.double()


def _pieces(rows: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return [piece.to(dtype) for piece in torch.split(rows, _piece_rows(rows))]


def _piece_rows(rows: Tensor) -> int:
    return max(1, PIECE // rows.shape[1])
