"""What was read in a model, by site."""

from collections.abc import Iterator, Mapping

from torch import Tensor


class Activations(Mapping[str, Tensor]):
    """Activations by site, `(texts, tokens, width)` each and zero where a text has no token.

    Attributes:
        tokens: The token ids, `(texts, tokens)`, right-padded.
        mask: 1 for a token, 0 for padding, `(texts, tokens)`.
    """

    def __init__(self, sites: Mapping[str, Tensor], tokens: Tensor, mask: Tensor) -> None:
        self._sites = dict(sites)
        self.tokens = tokens
        self.mask = mask

    def __getitem__(self, site: str) -> Tensor:
        return self._sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
