"""The feature atlas: what is known of every latent, as pages for a browser."""

from palinka.atlas.facts import LatentFacts, Options, gather
from palinka.atlas.server import AtlasServer
from palinka.atlas.site import About, write_site
from palinka.atlas.write_atlas import WriteAtlas

__all__ = [
    "About",
    "AtlasServer",
    "LatentFacts",
    "Options",
    "WriteAtlas",
    "gather",
    "write_site",
]
