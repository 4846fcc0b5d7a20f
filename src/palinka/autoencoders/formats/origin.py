"""Where an autoencoder comes from, as far as its files say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LONGEST = 300


@dataclass(frozen=True)
class Origin:
    """What is known of an autoencoder beside its weights; nothing has to be.

    Attributes:
        language_model: The model's name.
        identity: What names the same weights of the model everywhere, as checkpoints of a fit
            hold it.
        site: The site, by palinka's name for it.
        module: The module of the Hugging Face model whose output is the site.
        hook: The site, by the name of another library.
        corpus: The text that it was trained on, in a few words.
        context_length: Tokens per context.
        bos: Whether every context began with a special token.
        tokens: How many tokens it was trained on.
        metrics: Measured on held-out text, by name.
        license: An identifier such as `mit`, as the hub knows them.
    """

    language_model: str | None = None
    identity: str | None = None
    site: str | None = None
    module: str | None = None
    hook: str | None = None
    corpus: str | None = None
    context_length: int | None = None
    bos: bool | None = None
    tokens: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    license: str = "unknown"

    def described(self) -> dict[str, str | int | bool]:
        """What is known of the model, the site and the text, by name."""
        facts = {
            "site": self.site,
            "language_model": self.identity,
            "language_model_name": self.language_model,
            "hook": self.hook,
            "module": self.module,
            "corpus": self.corpus,
            "context_length": self.context_length,
            "bos": self.bos,
        }
        return {name: value for name, value in facts.items() if value is not None}


def origin_of(described: Mapping[str, Any]) -> Origin:
    """What `Origin.described` has described, as far as it is what it should be."""
    context, bos = described.get("context_length"), described.get("bos")
    return Origin(
        language_model=text_of(described, "language_model_name"),
        identity=text_of(described, "language_model"),
        site=text_of(described, "site"),
        module=text_of(described, "module"),
        hook=text_of(described, "hook"),
        corpus=text_of(described, "corpus"),
        context_length=context if type(context) is int else None,
        bos=bos if isinstance(bos, bool) else None,
    )


def text_of(config: Mapping[str, Any], key: str) -> str | None:
    """A few words of a configuration; None where there is none, or a whole book."""
    value = config.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST else None


def object_of(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object within a configuration; empty where there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}
