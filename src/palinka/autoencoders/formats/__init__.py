"""Formats of other libraries, and conversion between them."""

from palinka.autoencoders.formats.load import FORMATS, fold, load, write
from palinka.autoencoders.provenance import Provenance

__all__ = ["FORMATS", "Provenance", "fold", "load", "write"]
