"""Formats of other libraries, and conversion between them."""

from palinka.autoencoders.files import Provenance
from palinka.autoencoders.formats.load import FORMATS, fold, load, write

__all__ = ["FORMATS", "Provenance", "fold", "load", "write"]
