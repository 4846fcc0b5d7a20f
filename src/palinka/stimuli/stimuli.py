"""What every kind of stimuli is."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from palinka.errors import InputError
from palinka.stimuli.prepared import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stimuli(ABC):
    """Texts in which some tokens matter, under any tokenizer.

    Attributes:
        name: What messages call them, such as the file they come from; not part of the content.
    """

    kind: ClassVar[str]

    name: str = field(default="", kw_only=True, compare=False)

    @property
    def hash(self) -> str:
        """SHA-256 of the content: equal content, equal hash, whatever the file looks like."""
        content = {
            entry.name: _canonical(getattr(self, entry.name))
            for entry in fields(self)
            if entry.compare
        }
        line = json.dumps({"kind": self.kind} | content, sort_keys=True)
        return hashlib.sha256(line.encode()).hexdigest()

    def prepare(self, tokenizer: "PreTrainedTokenizerBase") -> Prepared:
        """Tokenize the texts and find the tokens that matter.

        Args:
            tokenizer: A fast tokenizer; no special tokens are put around a text.

        Raises:
            InputError: If the tokenizer is not a fast one, or a target is not what the kind asks
                for; names it, and says what the tokenizer made of it.
        """
        try:
            if not tokenizer.is_fast:
                raise InputError(
                    f"the tokenizer {type(tokenizer).__name__} does not say where its tokens stand"
                    " in the text; use a model with a tokenizer.json"
                )
            return self._prepare(tokenizer)
        except InputError as error:
            raise InputError(f"{self.name or f'{self.kind} stimuli'}: {error}") from error

    @abstractmethod
    def _prepare(self, tokenizer: "PreTrainedTokenizerBase") -> Prepared:
        """`prepare`, with errors that do not name the file."""


def _canonical(value: Any) -> Any:
    """Values for JSON; mappings as lists of pairs, since the order of conditions matters."""
    if isinstance(value, Mapping):
        return [[key, _canonical(entry)] for key, entry in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value
