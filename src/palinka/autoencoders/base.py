"""Base class of sparse autoencoders, and their files."""

import difflib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Self, TypeVar, Union, cast, get_args, get_origin

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palinka.autoencoders.kernels.dispatch import FullPrecisionState
from palinka.autoencoders.kernels.topk import Latents
from palinka.errors import InputError, escape_control_chars, read_ordinary

# No configuration of one autoencoder comes near it.
_LARGEST_CONFIG = 2**24


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: If there is no such file, or it holds something else.
    """
    if not path.exists():
        raise InputError(f"no file {path}: give a folder that an autoencoder was saved in")
    try:
        config = json.loads(read_ordinary(path, _LARGEST_CONFIG).decode("utf-8"))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file that can be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        InputError: If there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: give a folder that an autoencoder was saved in")
    try:
        return load_file(path)
    except (OSError, SafetensorError, MemoryError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no complete safetensors file: {error}") from error


T = TypeVar("T")


def build(name: str, arguments: Mapping[str, Any], base: type[T]) -> T:
    """Make the autoencoder of a class name, which may carry the module in front.

    Only classes whose module has been imported are found: no name in a file imports code.

    Args:
        name: Such as `"KSparseAutoencoder"`.
        arguments: The constructor's arguments.
        base: The class that is expected, itself or as a parent.

    Raises:
        InputError: If there is no such class, or an argument is unknown, missing or wrong.
    """
    known = {kind.__name__: kind for kind in _family(base) if not inspect.isabstract(kind)}
    short = name.rpartition(".")[2]
    kind = known.get(short)
    if kind is None:
        raise InputError(
            f"{name!r} is no known {base.__name__}{_nearest(short, known)}: there is"
            f" {', '.join(sorted(known))}, and your own once their module has been imported"
        )
    parameters = inspect.signature(kind).parameters
    for unknown in sorted(arguments.keys() - parameters.keys()):
        raise InputError(
            f"{kind.__name__} has no argument {unknown!r}{_nearest(unknown, parameters)}:"
            f" it takes {', '.join(parameters)}"
        )
    for required, parameter in parameters.items():
        if parameter.default is parameter.empty and required not in arguments:
            raise InputError(f"the description of a {kind.__name__} lacks {required!r}: add it")
    for argument, value in arguments.items():
        _check_type(kind, argument, value)
    try:
        return kind(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"a {kind.__name__} cannot be made of these arguments: {reason}"
        ) from error


def _check_type(kind: type, name: str, value: Any) -> None:
    """Refuse what a constructor would take for true or for a number without being one."""
    try:
        annotation = inspect.signature(kind, eval_str=True).parameters[name].annotation
    except NameError:  # of a class whose annotations are for type checkers alone
        return
    is_union = get_origin(annotation) in (Union, UnionType)
    expected = get_args(annotation) if is_union else (annotation,)
    if not all(type_ in (bool, int, float, str, NoneType) for type_ in expected):
        return
    fits = type(value) in expected or (type(value) is int and float in expected)
    if not fits:
        names = " or ".join("null" if type_ is NoneType else type_.__name__ for type_ in expected)
        raise InputError(
            f"{kind.__name__}: {name} must be {names}, got {escape_control_chars(repr(value)[:80])}"
        )


def _family(kind: type[T]) -> Iterable[type[T]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SOURCE = "source"


def save(
    autoencoder: "Autoencoder",
    folder: str | PathLike[str],
    source: Mapping[str, Any] | None = None,
) -> None:
    """Write an autoencoder into a folder, weights first; each file appears whole or not at all.

    Args:
        autoencoder: What is written.
        folder: Where to; made where it is missing.
        source: Where it comes from, as JSON holds it; kept beside its settings.

    Raises:
        InputError: If the folder cannot be written.
    """
    folder = Path(folder)
    config = {"class": type(autoencoder).__name__, **autoencoder.config()}
    if source is not None:
        config[SOURCE] = dict(source)
    weights = {name: tensor.contiguous() for name, tensor in autoencoder.state_dict().items()}
    partial = {name: folder / f".{name}.partial" for name in (WEIGHTS, CONFIG)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, partial[WEIGHTS], metadata={"format": "pt"})
        partial[CONFIG].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, path in partial.items():
            path.replace(folder / name)
    except (OSError, SafetensorError) as error:
        for path in partial.values():
            with suppress(OSError):
                path.unlink()
        raise InputError(f"cannot save into {folder}: {error}; choose a writable folder") from error


def load(folder: str | PathLike[str], base: "type[Autoencoder]") -> "Autoencoder":
    """Read the autoencoder that `save` wrote, which must be a `base`.

    Raises:
        InputError: If the folder or a file is missing, or the two files do not fit together.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    config.pop(SOURCE, None)
    name = config.pop("class", None)
    if not isinstance(name, str):
        raise InputError(f"{folder / CONFIG} names no class: add one, as 'KSparseAutoencoder'")
    weights = read_safetensors(folder / WEIGHTS)
    try:
        autoencoder = build(name, config, base)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    check_weights(autoencoder.state_dict(), weights, f"{folder / WEIGHTS}")
    autoencoder.load_state_dict(weights)
    return autoencoder


def check_weights(expected: "dict[str, Tensor]", found: "dict[str, Tensor]", where: str) -> None:
    """Raise an `InputError` unless two state dicts have the same names and shapes."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{where} lacks the weight {name!r}: was it saved by another class?")
        if name not in expected:
            raise InputError(f"{where} has a weight {name!r} too many: is it of other settings?")
        if not hasattr(found[name], "shape"):
            raise InputError(f"{where} holds no tensor under {name!r}: save it anew")
        if found[name].shape != expected[name].shape:
            raise InputError(
                f"{where} holds {name!r} of shape {tuple(found[name].shape)}, but the settings"
                f" ask for {tuple(expected[name].shape)}: use the dimensions it was trained with"
            )


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
        save(self, folder)

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
        from palinka.autoencoders.formats.load import load

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
        from palinka.autoencoders.formats.load import upload

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
