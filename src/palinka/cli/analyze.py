"""`palinka analyze` and `palinka steer`."""

import sys
import traceback
from pathlib import Path

import numpy as np
import torch

from palinka.analyses.findings import Findings
from palinka.analyses.reader import ActivationReader, Encoder
from palinka.analyses.run import AnalysisEntry, checked_analysis, run_analysis
from palinka.analyses.stimuli import load_stimuli
from palinka.cli.options import LOG_FOLDER
from palinka.errors import InputError, escape_control_chars, shell_path
from palinka.interventions import directions
from palinka.interventions.steering import added
from palinka.language_models import LanguageModelSpec


def analyze(
    analyses: list[AnalysisEntry],
    language_model: LanguageModelSpec | str = "mini",
    autoencoder: list[str] | str | None = None,
    ckpt_path: list[str] | str | None = None,
    output: str | None = None,
) -> int:
    """Run analyses of a language model's neurons, or of an autoencoder's latents.

    Args:
        analyses: A YAML list, each with `name`, `analysis`, `stimuli`, `sites`, `options`.
        language_model: `mini`, `smollm2`, a hub name, a folder or a GGUF file; or its `name`
            with `revision`, `gguf_file`, `dtype` and `device`.
        autoencoder: A folder that `save_pretrained` wrote, whose latents are analyzed; or several,
            `[a, b]`: one for each site, or two of one site to compare.
        ckpt_path: `last` for that of the last run, or a file: whose latents are analyzed; or
            several, as of `autoencoder`.
        output: Folder of the findings, with one for each analysis; by default
            `analyses/` of the (first) checkpoint's run, where `palinka atlas` finds them, and
            `lightning_logs/analyses` without a checkpoint.

    Returns:
        The exit status: 1 where an analysis failed, 2 where its input could not be used; the others
        still run.
    """
    names = [entry.name for entry in analyses]
    if not names or len(set(names)) < len(names):
        raise InputError(f"analyses are named {names}; expected at least one, and unique names")
    for entry in analyses:
        checked_analysis(entry)
    reader, folder = open_reader(language_model, autoencoder, ckpt_path)
    status, earlier = 0, dict[str, Findings]()
    for entry in analyses:
        try:
            findings = earlier[entry.name] = run_analysis(entry, reader, earlier)
            written = findings.write(folder if output is None else Path(output))
        except InputError as error:
            print(f"palinka: error: {entry.name}: {error}", file=sys.stderr)
            status = max(status, 2)
        except Exception:
            traceback.print_exc()
            print(f"palinka: error: {entry.name} failed, as shown above", file=sys.stderr)
            status = max(status, 1)
        else:
            print(f"{findings.report()}\n\nfindings in   {shell_path(written)}\n")
    return status


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
        texts = load_stimuli(contrast).prepare(lm.tokenizer).by_condition
        a, b = directions.contrast_means(lm, place, texts)
        direction, what = b.mean(axis=0) - a.mean(axis=0), contrast
    else:
        assert latent is not None
        assert encoders[0].dictionary is not None
        direction = directions.decoder_rows(encoders[0].dictionary, [latent], lm.width(place))[0]
        what = f"latent {latent}"
    ids, options = lm.tokenize(text, reader.bos), {"max_new_tokens": tokens, "do_sample": False}
    if (room := lm.context_length - ids.ids.shape[1]) < tokens:
        fault = f"tokens is {tokens}; the model has room for {room} more after the text"
        raise InputError(f"{fault}; give fewer")
    without = lm.generate(ids, **options)
    (vectors,) = directions.token_vectors(lm, place, without.tolist())
    norm = directions.median_norm(vectors)
    push = torch.as_tensor(strength * norm * direction / np.linalg.norm(direction))
    with lm.replaced(place, added(push)):
        steered = lm.generate(ids, **options)
    print(f"added at {place}: {strength:g} of the median norm, {norm:.3g}, along {what}\n")
    for name, found in (("without", without), ("with", steered)):
        print(f"{name:<9} {escape_control_chars(str(lm.tokenizer.decode(found[0])))}")
    return 0


def open_reader(
    language_model: LanguageModelSpec | str,
    autoencoder: list[str] | str | None,
    ckpt_path: list[str] | str | None,
) -> tuple[ActivationReader, Path]:
    """Reader of neurons, or of the latents of autoencoders, and the folder of its findings."""
    if autoencoder is not None and ckpt_path is not None:
        raise InputError("autoencoder and ckpt_path are both given; give one of them")
    given, folder = autoencoder or ckpt_path or [], Path(LOG_FOLDER) / "analyses"
    names = [given] if isinstance(given, str) else given
    if ckpt_path is None:
        encoders = [Encoder.from_folder(name) for name in names]
    else:
        # Only a checkpoint needs Lightning, which takes seconds to import.
        from palinka.cli.resume import checkpoint_named, findings_folder, load_module
        from palinka.training import checkpoint
        from palinka.training.callbacks.run_analyses import encoder_of

        paths = [checkpoint_named(name) for name in names]
        encoders = [encoder_of(load_module(p), checkpoint.read(p).get("source", {})) for p in paths]
        folder = findings_folder(paths[0])
    spec = LanguageModelSpec(language_model) if isinstance(language_model, str) else language_model
    return ActivationReader(spec, encoders), folder
