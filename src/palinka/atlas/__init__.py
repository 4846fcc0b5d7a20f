"""The feature atlas: what is known of every latent, as pages for a browser."""

from palinka.atlas.facts import LatentFacts as LatentFacts
from palinka.atlas.facts import Options as Options
from palinka.atlas.facts import gather as gather
from palinka.atlas.server import AtlasServer as AtlasServer
from palinka.atlas.site import About as About
from palinka.atlas.site import write_site as write_site
from palinka.atlas.write_atlas import WriteAtlas as WriteAtlas
