"""The sites of a model: their names, widths and taps, found without its weights."""

import copy
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from palinka.errors import InputError
from palinka.language_models.families import named_taps
from palinka.language_models.hooks import reading
from palinka.language_models.taps import Tap, by_token

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LAYERED = re.compile(r"(blocks|hidden)\.([0-9]+)(?=\.|$)")
_PROBE_SHAPE = (2, 3)
# Twice as many as the deepest that there are, which takes seconds.
_MOST_LAYERS = 250


@dataclass(frozen=True)
class Sites:
    """Every place of a model that can be read or replaced.

    Attributes:
        named: The width of every site that has a name of its own, in the order of the
            forward pass; none where the model's family is not known.
        modules: The width of every module whose output is one vector per token, by path.
        silent: The paths of the other modules.
        layers: The number of blocks.
        taps: Where the named sites are.
    """

    named: dict[str, int]
    modules: dict[str, int]
    silent: frozenset[str]
    layers: int
    taps: dict[str, Tap]

    def resolve(self, site: str) -> str:
        """The site's full name: `blocks.middle` becomes the block in the middle.

        Raises:
            InputError: If the model has no such site.
        """
        name = re.sub(r"^blocks\.middle\.", f"blocks.{self.layers // 2}.", site)
        if name in self.named or name in self.modules:
            return name
        if name in self.silent:
            raise InputError(
                f"module {site!r} does not give one vector per token when the model runs; "
                f"choose one that does, {self._choices()}"
            )
        layered = _LAYERED.match(name)
        if layered and self.named:
            kind, layer = layered[1], int(layered[2])
            last = self.layers if kind == "hidden" else self.layers - 1
            if layer > last:
                raise InputError(
                    f"site {site!r} is out of range: the model has {self.layers} blocks, so "
                    f"give {kind}.0 to {kind}.{last}; {self._choices()}"
                )
        nearest = difflib.get_close_matches(site, [*self._written(), *self.modules], n=3)
        hint = f"the nearest are {', '.join(nearest)}; " if nearest else ""
        raise InputError(f"there is no site {site!r} in this model; {hint}{self._choices()}")

    def width(self, site: str) -> int:
        """The width of the vectors at a site."""
        name = self.resolve(site)
        return self.named[name] if name in self.named else self.modules[name]

    def tap(self, site: str) -> Tap:
        """Where a site is."""
        name = self.resolve(site)
        return self.taps.get(name) or Tap(name)

    def _written(self) -> list[str]:
        """The names of sites as users write them, those of the middle block by that word, too."""
        middle = f"blocks.{self.layers // 2}."
        words = [n.replace(middle, "blocks.middle.") for n in self.named if n.startswith(middle)]
        return [*words, *self.named]

    def _choices(self) -> str:
        """The sites in brief, each kind once."""
        if not self.named:
            return f"its modules are {', '.join(_brief(self.modules, self.layers))}"
        sites = ", ".join(_brief(self.named, self.layers))
        return f"its sites are {sites} (or middle for the number of a block), or any module path"


def _brief(names: Iterable[str], layers: int) -> list[str]:
    """Names that differ only in the number of the layer, written once with its range."""

    def shorten(name: str) -> str:
        last = layers if name.startswith("hidden.") else layers - 1
        return re.sub(r"\.[0-9]+(?=\.|$)", f".{{0..{last}}}", name, count=1)

    return list(dict.fromkeys(shorten(name) for name in names))


def find_sites(config: "PretrainedConfig") -> Sites:
    """Find the sites of the model that a configuration describes, without its weights.

    The model is built out of tensors that have a shape and no content, and runs once.

    Raises:
        InputError: If there are more layers than any model has, which would take forever.
    """
    if config.num_hidden_layers > _MOST_LAYERS:
        raise InputError(
            f"the configuration has {config.num_hidden_layers} layers; expected at most"
            f" {_MOST_LAYERS}: is it damaged?"
        )
    from torch._subclasses import FakeTensorMode
    from transformers import AutoModelForCausalLM

    taps = named_taps(config)
    with FakeTensorMode(), torch.no_grad():
        # A copy, since building a model writes its choices into the configuration.
        build: Any = AutoModelForCausalLM.from_config
        model = build(copy.deepcopy(config)).train(False)
        paths = [path for path, _ in model.named_modules() if path]
        everything = {path: Tap(path) for path in paths} | taps
        with reading(model, everything) as found:
            model(torch.zeros(_PROBE_SHAPE, dtype=torch.long), use_cache=False)
    widths = {
        name: values.shape[-1]
        for name, values in found.items()
        if by_token(values, *_PROBE_SHAPE) is not None
    }
    return Sites(
        named={name: widths[name] for name in taps},
        modules={path: widths[path] for path in paths if path in widths},
        silent=frozenset(path for path in paths if path not in widths),
        layers=config.num_hidden_layers,
        taps=taps,
    )
