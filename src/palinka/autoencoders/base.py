"""What every sparse autoencoder is: `encode`, `decode`, and both in a row."""

from abc import ABC, abstractmethod
from os import PathLike
from typing import Any, NamedTuple, Self, cast

from torch import Tensor

from palinka.autoencoders import pretrained
from palinka.errors import InputError
from palinka.kernels.precision import FullPrecisionState
from palinka.kernels.sparse_latents import Latents


class AutoencoderOutput(NamedTuple):
    """What one pass through an autoencoder gives."""

    reconstruction: Tensor
    """`(…, output_dim)`."""
    latents: Tensor
    """`(…, latent_dim)`."""


class CompactOutput(NamedTuple):
    """What one pass through an autoencoder gives, in the form that costs least."""

    reconstruction: Tensor
    """`(rows, output_dim)`."""
    latents: Latents
    """`(rows, latent_dim)`, or the few that are not zero."""


class Autoencoder(FullPrecisionState, ABC):
    """A dictionary of latent directions with an encoder that uses few of them at a time.

    A transcoder reads activations at one site and gives those at another, such as what an MLP
    returns for what it was given. Any architecture is one that is made with an `output_dim`, even
    where that is the `input_dim`. No bias of its output is subtracted from its input then.

    A subclass is known by its class name, in saved folders and in checkpoints, as soon as the
    module that defines it has been imported.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents.
        output_dim: Width of what a transcoder gives; None for an autoencoder, which gives back
            what it is given.

    Attributes:
        output_dim: Width of what it gives.
        is_transcoder: Whether that is something else than what it is given.

    Raises:
        InputError: If a dimension is not a positive integer.

    Source:
        Dunefsky et al. (2024), Transcoders find interpretable LLM feature circuits, arXiv
        2406.11944, for the transcoder.
    """

    unit_norm: bool = False
    """Whether training keeps every row of `dictionary` at norm 1."""
    is_new: bool = True
    """Whether nothing but chance has set the weights: neither data nor a file."""

    def __init__(self, input_dim: int, latent_dim: int, output_dim: int | None = None) -> None:
        super().__init__()
        self.input_dim = positive_integer("input_dim", input_dim)
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.is_transcoder = output_dim is not None
        self.output_dim = (
            self.input_dim if output_dim is None else positive_integer("output_dim", output_dim)
        )
        self.register_load_state_dict_post_hook(_is_new_no_longer)  # type: ignore[no-untyped-call]

    @property
    @abstractmethod
    def dictionary(self) -> Tensor:
        """The direction that each latent writes, `(latent_dim, output_dim)`; not a copy."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to activations `(…, output_dim)`."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON holds them."""

    def decode_for(self, latents: Tensor, x: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` of `x`, `(…, input_dim)`, to `(…, output_dim)`.

        That is `decode`, but for an architecture that needs something of `x` beside its latents.
        """
        return self.decode(latents)

    @property
    def transcoder_config(self) -> dict[str, Any]:
        """A transcoder's part of `config`; of an autoencoder, nothing."""
        return {"output_dim": self.output_dim} if self.is_transcoder else {}

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Encode and decode activations `(…, input_dim)`."""
        latents = self.encode(x)
        return AutoencoderOutput(reconstruction=self.decode_for(latents, x), latents=latents)

    def compact(self, x: Tensor) -> AutoencoderOutput | CompactOutput:
        """What calling it gives of activations `(rows, input_dim)`, in the form that costs least.

        An architecture that keeps few latents need not make the others.
        """
        output: AutoencoderOutput = self(x)
        return output

    def initialize(self, x: Tensor) -> None:
        """Begin from the data, where an architecture does.

        Training calls this once, before the first step, on an autoencoder that `is_new`. Buffers
        that training changes must come out the same on every process.

        Args:
            x: Some tens of thousands of training rows of what the autoencoder is to give,
                `(rows, output_dim)`: what it will see, but for a transcoder.
        """

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made where it is missing."""
        pretrained.save(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], revision: str | None = None) -> Self:
        """Read a saved autoencoder, on the CPU and in `eval()` mode.

        It may have been saved by `save_pretrained`, or by SAELens, sparsify, dictionary_learning
        or OpenAI's sparse_autoencoder, which is seen by the files.

        Args:
            folder: The folder, or a name on the Hugging Face hub, `owner/repository` or
                `owner/repository/folder/within`. `Autoencoder.from_pretrained` takes any class,
                a subclass its own.
            revision: A branch, tag or commit on the hub.

        Raises:
            InputError: If there is none, a file is missing, the files do not fit together, or it
                is of an architecture that is not known here.
        """
        from palinka.autoencoders.formats.loading import load

        return cast(Self, load(folder, revision, cls)[0])

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, token: str | None = None
    ) -> str:
        """Put it on the Hugging Face hub, in a repository that is made where there is none.

        Args:
            repo_id: `owner/repository`.
            private: Whether a new repository is to be private; the owner's default if left out.
            token: What shows that you may; the one you are logged in with if left out.

        Returns:
            The address of the commit.

        Raises:
            InputError: If it cannot be put there.
        """
        from palinka.autoencoders.formats.hub import upload

        return upload(self, repo_id, private, token)

    def check_width(self, tensor: Tensor, width: int, what: str) -> None:
        """Raise an `InputError` unless the last dimension of a tensor is `width` long."""
        if tensor.ndim == 0 or tensor.shape[-1] != width:
            raise InputError(
                f"{what} of shape {tuple(tensor.shape)} do not fit a {type(self).__name__} of"
                f" input_dim {self.input_dim} and latent_dim {self.latent_dim}:"
                f" the last dimension must be {width}"
            )


def positive_integer(name: str, value: int) -> int:
    """Return `value`, or raise an `InputError` that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def checked_k(k: int | None, input_dim: int, latent_dim: int) -> int:
    """How many latents a row keeps; half the width where left out.

    Raises:
        InputError: If it is not in 1 … `latent_dim`.
    """
    k = positive_integer("k", max(1, input_dim // 2) if k is None else k)
    if k > latent_dim:
        raise InputError(f"k must be at most latent_dim, got k {k} and latent_dim {latent_dim}")
    return k


def _is_new_no_longer(autoencoder: Autoencoder, incompatible_keys: Any) -> None:
    autoencoder.is_new = False
