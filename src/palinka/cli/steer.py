"""`palinka steer`."""

import numpy as np
import torch

from palinka.analyses.stimuli import load_stimuli
from palinka.cli.analyze import open_reader
from palinka.errors import InputError, escape_control_chars
from palinka.interventions.directions import (
    contrast_means,
    decoder_rows,
    median_norm,
    token_vectors,
)
from palinka.interventions.steering import added
from palinka.language_models import LanguageModelSpec


def steer(
    text: str,
    language_model: LanguageModelSpec | str = "mini",
    site: str | None = None,
    contrast: str | None = None,
    autoencoder: str | None = None,
    ckpt_path: str | None = None,
    latent: int | None = None,
    strength: float = 0.2,
    tokens: int = 40,
) -> int:
    """Continue a text with a direction added at all of its tokens, beside the text without.

    Args:
        text: The text to continue, greedily.
        language_model: `mini`, `smollm2`, a hub name, a folder or a GGUF file; or its `name` with
            `revision`, `gguf_file`, `dtype` and `device`.
        site: Where the direction is added; default that of the autoencoder, or
            `blocks.middle.resid`.
        contrast: Stimuli file of two conditions; the direction is from the mean of the first to
            that of the second.
        autoencoder: A folder of an autoencoder, of which a latent's decoder direction is added.
        ckpt_path: `last` for the checkpoint of the last run, or a file, in place of it.
        latent: Number of the latent.
        strength: Norm of what is added, in median norms of the activations of the text without.
        tokens: Number of tokens of the continuations.
    """
    if not text:
        raise InputError("--text is empty; give its first words")
    dictionaries = (autoencoder is not None) + (ckpt_path is not None)
    if dictionaries != (latent is not None) or dictionaries == (contrast is not None):
        raise InputError("give contrast, or latent with either autoencoder or ckpt_path")
    reader, _ = open_reader(language_model, autoencoder, ckpt_path)
    encoders = reader.encoders
    default = (encoders[0].site if encoders else None) or "blocks.middle.resid"
    lm, (place,) = reader.model, reader.sites(site or default)
    if contrast is not None:
        a, b = contrast_means(lm, place, load_stimuli(contrast).prepare(lm.tokenizer).by_condition)
        direction, what = b.mean(axis=0) - a.mean(axis=0), contrast
    else:
        assert latent is not None
        assert encoders[0].dictionary is not None
        direction = decoder_rows(encoders[0].dictionary, [latent], lm.width(place))[0]
        what = f"latent {latent}"
    ids, options = lm.tokenize(text, reader.bos), {"max_new_tokens": tokens, "do_sample": False}
    if (room := lm.context_length - ids.ids.shape[1]) < tokens:
        fault = f"tokens is {tokens}; the model has room for {room} more after the text"
        raise InputError(f"{fault}; give fewer")
    without = lm.generate(ids, **options)
    (vectors,) = token_vectors(lm, place, without.tolist())
    norm = median_norm(vectors)
    push = torch.as_tensor(strength * norm * direction / np.linalg.norm(direction))
    with lm.replaced(place, added(push)):
        steered = lm.generate(ids, **options)
    print(f"added at {place}: {strength:g} of the median norm, {norm:.3g}, along {what}\n")
    for name, found in (("without", without), ("with", steered)):
        print(f"{name:<9} {escape_control_chars(str(lm.tokenizer.decode(found[0])))}")
    return 0
