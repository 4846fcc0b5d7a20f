"""What a fit loads when it is first needed, for the server that commands are forked from."""

import torch.utils.tensorboard  # noqa: F401

from palinka.language_models import LanguageModelSpec

assert LanguageModelSpec("mini").sites.widths
