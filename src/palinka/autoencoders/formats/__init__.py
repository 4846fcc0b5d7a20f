"""The formats of other libraries, and what carries an autoencoder from one to another."""

from palinka.autoencoders.formats.common import Origin
from palinka.autoencoders.formats.load import FORMATS, fold, load, write

__all__ = ["FORMATS", "Origin", "fold", "load", "write"]
