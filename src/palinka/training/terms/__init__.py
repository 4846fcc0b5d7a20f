"""What each architecture minimizes, one file per paper; the default is the reference run's."""

from palinka.training.terms.gated import gated_terms
from palinka.training.terms.jumprelu import jumprelu_terms
from palinka.training.terms.matryoshka import matryoshka_terms
from palinka.training.terms.relu import relu_terms
from palinka.training.terms.step import Step, Terms, has_own_terms, terms, terms_of
from palinka.training.terms.topk import batch_topk_terms, topk_terms

__all__ = [
    "Step",
    "Terms",
    "batch_topk_terms",
    "gated_terms",
    "has_own_terms",
    "jumprelu_terms",
    "matryoshka_terms",
    "relu_terms",
    "terms",
    "terms_of",
    "topk_terms",
]
