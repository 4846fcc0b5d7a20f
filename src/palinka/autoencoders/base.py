"""Base class of sparse autoencoders, and saving and loading them."""

import inspect
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Buffer

from palinka.autoencoders import files
from palinka.autoencoders.kernels.sparse import Latents
from palinka.errors import InputError, did_you_mean, first_line, type_mismatch

CONFIG, WEIGHTS = OWN_FILES = ("config.json", "model.safetensors")


class AutoencoderOutput(NamedTuple):
    """Reconstruction `(…, output_dim)` and latents `(…, latent_dim)`."""

    reconstruction: Tensor
    latents: Tensor


class SparseOutput(NamedTuple):
    """Reconstruction `(rows, output_dim)` and latents, sparse where that costs less."""

    reconstruction: Tensor
    latents: Latents


class FullPrecisionState(nn.Module):
    """Module whose buffers and metric states are never narrowed; its parameters are.

    Lightning's `bf16-true` would otherwise leave a sum of thousands, a running mean or a count with
    three digits. Moves to other devices and to wider dtypes apply to all.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        trained = {id(t) for p in self.parameters() for t in (p, p.grad)}

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            dtype = torch.promote_types(tensor.dtype, new.dtype)
            whole = id(tensor) in trained or new.dtype == dtype
            return new if whole else tensor.to(new.device, dtype)

        return super()._apply(moved, *args, **kwargs)  # type: ignore[no-untyped-call]


class InputScaling(FullPrecisionState):
    """`(x - mean) * scale` of activations `(…, input_dim)`; the identity until `set`."""

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.mean = Buffer(torch.zeros(input_dim))
        self.scale = Buffer(torch.ones(()))

    @torch.no_grad()
    def set(self, mean: Tensor, scale: float) -> None:
        """Set a mean `(input_dim,)` and a positive scale."""
        if mean.shape != self.mean.shape:
            given = f"input statistics of width {tuple(mean.shape)} do not fit an autoencoder"
            raise InputError(f"{given} of input_dim {len(self.mean)}: use data of the same site")
        if not (0.0 < scale < float("inf")) or not bool(torch.isfinite(mean).all()):
            fault = f"input statistics must be finite, with a positive scale, got scale {scale}"
            raise InputError(f"{fault}: check the activations for NaN, Inf, or rows of zeros")
        self.mean.copy_(mean)
        self.scale.fill_(scale)

    @property
    def kind(self) -> str:
        """Kind of the autoencoder's input: raw, centered, scaled, or centered and scaled."""
        kinds = ["centered"] * bool(self.mean.any()) + ["scaled"] * bool(self.scale != 1)
        return " and ".join(kinds) or "raw"

    def forward(self, x: Tensor) -> Tensor:
        """Raw activations `(…, input_dim)` to the autoencoder's input."""
        return (x - self.mean) * self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Reconstructions `(…, input_dim)` to raw activations."""
        return x / self.scale + self.mean


class Autoencoder(FullPrecisionState, ABC):
    """A dictionary of latent directions with an encoder that uses few of them at a time.

    A transcoder predicts activations of another site than it reads, such as an MLP's output from
    its input. Any architecture is one when made with an `output_dim`, even one equal to
    `input_dim`; its output bias is then not subtracted from its input.

    Saved folders and checkpoints name a subclass, whose module must be imported before.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; default `2 * input_dim`.
        output_dim: Width of a transcoder's output; None for an autoencoder.

    Attributes:
        is_transcoder: Whether the output is another site than the input.
        unit_norm: True if training keeps every row of `dictionary` at norm 1.
        is_initialized: True once the weights come from data or a file.

    Source:
        Dunefsky et al. (2024), arXiv 2406.11944, for the transcoder.
    """

    unit_norm: bool = False
    is_initialized: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Complete the signature of a constructor that passes `**settings` on to its parent's."""
        super().__init_subclass__(**kwargs)
        own = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]
        named = {p.name: p for p in own if p.kind is not p.VAR_KEYWORD}
        if len(named) < len(own):
            for name, parameter in inspect.signature(cls.__mro__[1]).parameters.items():
                named.setdefault(name, parameter.replace(kind=parameter.KEYWORD_ONLY))
        cls.__signature__ = inspect.Signature(list(named.values()))  # type: ignore[attr-defined]

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, output_dim: int | None = None
    ) -> None:
        super().__init__()
        self.input_dim = positive_integer("input_dim", input_dim)
        latent_dim = 2 * input_dim if latent_dim is None else latent_dim
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.is_transcoder = output_dim is not None
        output_dim = input_dim if output_dim is None else output_dim
        self.output_dim = positive_integer("output_dim", output_dim)
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda autoencoder, _: setattr(autoencoder, "is_initialized", True)
        )

    @property
    @abstractmethod
    def dictionary(self) -> Tensor:
        """Decoder directions, `(latent_dim, output_dim)`; not a copy."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to activations `(…, output_dim)`."""

    def decode_for(self, latents: Tensor, x: Tensor) -> Tensor:
        """`decode` latents of `x`, where an architecture needs more of `x` than its latents."""
        return self.decode(latents)

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Encode and decode activations `(…, input_dim)`."""
        latents = self.encode(x)
        return AutoencoderOutput(reconstruction=self.decode_for(latents, x), latents=latents)

    def forward_sparse(self, x: Tensor) -> SparseOutput:
        """Encode and decode activations `(rows, input_dim)`; sparse latents where cheaper."""
        return SparseOutput(*self(x))

    def initialize(self, x: Tensor) -> None:
        """Set weights from training rows of the target `(rows, output_dim)`, some ten thousand.

        Training calls this once, before the first step, unless `is_initialized`. Buffers that
        training changes must come out the same on every process.
        """

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values, from the attributes of the same names."""
        names = inspect.signature(type(self)).parameters
        skipped = set() if self.is_transcoder else {"output_dim"}
        return {name: getattr(self, name) for name in names if name not in skipped}

    def extra_repr(self) -> str:
        """Configuration, for the printed module."""
        return ", ".join(f"{name}={value}" for name, value in self.config().items())

    def check_width(self, tensor: Tensor, width: int, what: str) -> None:
        """Reject a tensor whose last dimension is not `width` long."""
        if tensor.ndim == 0 or tensor.shape[-1] != width:
            given = f"{what} of shape {tuple(tensor.shape)} do not fit a {type(self).__name__}"
            raise InputError(f"{given}: the last dimension must be {width}")

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made where missing."""
        save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, where: str | PathLike[str], revision: str | None = None) -> Self:
        """Load what `save_pretrained` wrote, on the CPU and in `eval()` mode.

        `Autoencoder.from_pretrained` loads any class, a subclass its own. Files of other libraries
        are loaded by `palinka.autoencoders.formats.load`.

        Args:
            where: A folder, or `owner/repository[/folder]` on the Hugging Face hub.
            revision: A branch, tag or commit on the hub.
        """
        if str(where).endswith(".ckpt"):
            module = "SparseAutoencoderModule.load_from_checkpoint takes it"
            remedy = f"{module}, and palinka export --format palinka writes a folder"
            raise InputError(f"{where} is a checkpoint, not a folder; {remedy}")
        try:
            folder, _, _ = files.find_folder(where, revision, {"palinka": OWN_FILES})
        except InputError as error:
            hint = "files of other libraries are loaded by palinka.autoencoders.formats.load"
            raise InputError(f"{error}; {hint}") from error
        return load(folder, cls)

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload the files of `save_pretrained` and a model card to the Hugging Face hub.

        Args:
            repo_id: `owner/repository`, made where missing.
            private: Whether a new repository is private; default: the owner's setting.
            token: Access token; default: the one logged in with.

        Returns:
            The URL of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            card = files.model_card(self, files.Provenance())
            Path(folder, files.CARD).write_text(card, encoding="utf-8")
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo_id, folder_path=folder).commit_url)
            except Exception as error:  # of any HTTP client
                fault = f"cannot upload to {repo_id} on the Hugging Face hub: {first_line(error)}"
                raise InputError(f"{fault}; give owner/repository and a token for it") from error


def positive_integer(name: str, value: int) -> int:
    """Return `value`, or raise an `InputError` that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def validate_k(k: int | None, input_dim: int, latent_dim: int) -> int:
    """Return the number of latents per row, default `input_dim // 2`, if in 1 … `latent_dim`."""
    k = positive_integer("k", max(1, input_dim // 2) if k is None else k)
    if k > latent_dim:
        raise InputError(f"k must be at most latent_dim, got k {k} and latent_dim {latent_dim}")
    return k


T = TypeVar("T", bound=Autoencoder)


def build(name: str, arguments: Mapping[str, Any], base: type[T]) -> T:
    """Make the autoencoder of a class name, which may carry the module in front.

    Only imported subclasses of `base` are found: a name in a file never imports code.
    """
    known = {kind.__name__: kind for kind in _family(base) if not inspect.isabstract(kind)}
    short = name.rpartition(".")[2]
    if short not in known:
        given = f"{name!r} is not a known {base.__name__}{did_you_mean(short, known)}"
        raise InputError(f"{given}; import your own first, or put it on PYTHONPATH")
    parameters = inspect.signature(known[short]).parameters
    for argument, value in arguments.items():
        if argument not in parameters:
            hint = did_you_mean(argument, parameters)
            raise InputError(f"{short} has no argument {argument!r}{hint}")
        if expected := type_mismatch(value, parameters[argument].annotation):
            raise InputError(f"{short}: {argument} must be {expected}, got {repr(value)[:80]}")
    try:
        return known[short](**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise InputError(f"cannot make a {short}: {first_line(error)}") from error


def _family(kind: type[T]) -> Iterator[type[T]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def save(
    autoencoder: Autoencoder, folder: Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write an autoencoder into a folder, made where missing, weights first."""
    config = {"class": type(autoencoder).__name__, **autoencoder.config()}
    if provenance is not None:
        config["source"] = dict(provenance)
    files.write_files(folder, {WEIGHTS: autoencoder.state_dict(), CONFIG: config})


def load(folder: Path, base: type[T]) -> T:
    """Load what `save` wrote, if its class is a `base`, on the CPU and in `eval()` mode."""
    path = folder / CONFIG
    config = files.read_json(path)
    config.pop("source", None)
    if not isinstance(name := config.pop("class", None), str):
        raise InputError(f"{path} has no 'class': add one, such as 'KSparseAutoencoder'")
    try:
        autoencoder = build(name, config, base)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    weights = files.read_safetensors(folder / WEIGHTS)
    check_weights(autoencoder.state_dict(), weights, str(folder / WEIGHTS))
    autoencoder.load_state_dict(weights)
    return autoencoder.eval()


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Any], where: Any) -> None:
    """Reject a state dict that has not the names and shapes that are expected."""
    for name in sorted(expected.keys() | found.keys()):
        shapes = [getattr(weights.get(name), "shape", None) for weights in (found, expected)]
        if shapes[0] != shapes[1]:
            theirs, ours = ("absent" if s is None else f"of shape {tuple(s)}" for s in shapes)
            fault = f"the weight {name!r} is {theirs} in {where}, but {ours} by the settings"
            raise InputError(f"{fault}: use the class and dimensions it was saved with")
