"""What a step of training hands to the terms of an architecture's loss, and gets back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

from torch import Tensor

from palinka.autoencoders import Autoencoder, AutoencoderOutput, CompactOutput
from palinka.kernels.layout import WHOLE, Layout
from palinka.training.losses import reconstruction_loss, sparsity_loss


@dataclass(frozen=True)
class Step:
    """One batch, and what is known of the run so far.

    Attributes:
        x: What the autoencoder reads, `(rows, input_dim)`.
        target: What it is to give, `(rows, output_dim)`: `x` itself, but for a transcoder.
        layout: The processes whose batches count as one, and those with the other latents.
        dead: Tells which latents have not fired for long, `(latent_dim,)`, bool; on several
            processes all of them must ask. None if nobody knows.
        auxiliary_k: How many dead latents may try themselves on a row; None for half the width.
    """

    x: Tensor
    target: Tensor
    layout: Layout = WHOLE
    dead: Callable[[], Tensor] | None = None
    auxiliary_k: int | None = None


@dataclass(frozen=True)
class Terms:
    """What an architecture's loss is made of, without weights; scalars in float32 or better.

    Attributes:
        output: Latents and reconstruction of the batch, with a graph.
        reconstruction: How far the reconstruction is off.
        sparsity: What `sparsity_weight` is multiplied with.
        auxiliary: What `auxiliary_weight` is multiplied with; None where there is no such term.
        auxiliary_weight: What the architecture's paper weighs it with, where nobody says otherwise.
    """

    output: AutoencoderOutput | CompactOutput
    reconstruction: Tensor
    sparsity: Tensor
    auxiliary: Tensor | None = None
    auxiliary_weight: float = 1 / 32


@singledispatch
def terms(autoencoder: Autoencoder, step: Step) -> Terms:
    """The terms of an architecture's loss; this form serves all that register none of their own.

    Args:
        autoencoder: Whose class chooses.
        step: The batch.
    """
    return terms_of(autoencoder.compact(step.x), step)


def terms_of(output: AutoencoderOutput | CompactOutput, step: Step) -> Terms:
    """Mean squared error and mean absolute latent of what an autoencoder gave."""
    return Terms(
        output=output,
        reconstruction=reconstruction_loss(output.reconstruction, step.target),
        sparsity=sparsity_loss(output.latents, step.layout.latents),
    )


def has_own_terms(autoencoder: Autoencoder) -> bool:
    """Whether an architecture minimizes something else than the default form."""
    return terms.dispatch(type(autoencoder)) is not terms.dispatch(Autoencoder)
