"""What each architecture minimizes, one file per paper; the default is the reference run's."""

from palinka.training.terms.step import Step, Terms, has_own_terms, terms, terms_of

__all__ = ["Step", "Terms", "has_own_terms", "terms", "terms_of"]
