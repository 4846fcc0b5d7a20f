"""The formats of other libraries, and what carries an autoencoder from one to another."""

from palinka.autoencoders.formats.folders import FORMATS, write
from palinka.autoencoders.formats.folding import fold
from palinka.autoencoders.formats.loading import load
from palinka.autoencoders.formats.origin import Origin

__all__ = ["FORMATS", "Origin", "fold", "load", "write"]
