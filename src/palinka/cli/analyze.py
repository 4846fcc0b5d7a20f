import sys
import traceback
from pathlib import Path

from palinka.analyses.findings import Findings
from palinka.analyses.reader import ActivationReader, Encoder
from palinka.analyses.run import AnalysisEntry, checked_analysis, run_analysis
from palinka.cli.options import LOG_FOLDER
from palinka.errors import InputError, shell_path
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
