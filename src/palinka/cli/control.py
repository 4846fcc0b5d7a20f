"""Dictionaries of the same recipe, trained on a control of the language model."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from palinka.cli.resume import CONFIG, checkpoint_named, newest_checkpoint, runs_below
from palinka.data import ActivationDataModule
from palinka.errors import InputError, shell_path
from palinka.language_models.spec import Mode
from palinka.training import callbacks, checkpoint
from palinka.training.callbacks.checkpoints import FOLDER


def control_run(ckpt_path: str, mode: Mode, control_ckpt_path: str | None = None) -> Path:
    """Find or train the run of the same recipe, seeds and tokens on a control.

    It is in `control_<mode>/` of the run. Callbacks of the recipe that analyze or save are left
    out.

    Args:
        ckpt_path: A checkpoint or the folder of a run.
        mode: Control of the language model.
        control_ckpt_path: A checkpoint or run that was trained on the control.
    """
    if control_ckpt_path:
        return Path(control_ckpt_path)
    path = checkpoint_named(ckpt_path)
    run = path.absolute().parent.parent
    config = next((each / CONFIG for each in (run, run.parent) if (each / CONFIG).exists()), None)
    if path.parent.name != FOLDER or config is None:
        fault = f"control {mode}: the checkpoint was imported and its recipe is not known"
        raise InputError(f"{fault}; give --control_ckpt_path")
    folder = config.parent / f"control_{mode}"
    for trained in runs_below(folder):  # a fit that was stopped is repeated
        if (newest := newest_checkpoint(trained)) and _has_ended(newest, path):
            print(f"control      {shell_path(trained)}")
            return trained
    with tempfile.TemporaryDirectory() as temporary:
        recipe = Path(temporary) / CONFIG
        settings = control_settings(yaml.safe_load(config.read_text(encoding="utf-8")), mode)
        settings["trainer"]["default_root_dir"] = str(folder.parent)
        # A folder of its own, so that the run is not taken for one of the user's.
        logger = {"save_dir": str(config.parent), "name": folder.name, "default_hp_metric": False}
        settings["trainer"]["logger"] = {
            "class_path": "palinka.cli.resume.RunLogger", "init_args": logger,
        }  # fmt: skip
        recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
        # In a process of its own, since Lightning's command line keeps state.
        line = [sys.executable, "-m", "palinka", "fit", "--config", str(recipe)]
        if status := subprocess.run(line, check=False).returncode:
            raise InputError(f"control {mode}: the fit ended with status {status}; see above")
    return runs_below(folder)[0]


def _has_ended(control: Path, recipe: Path) -> bool:
    """The fit of a control took as many steps as that of the recipe, or stopped early."""
    own, other = (checkpoint.read(path, allow_sweep=True) for path in (control, recipe))
    stops = [state for name, state in own["callbacks"].items() if name.startswith("EarlyStopping")]
    stopped = any(x["stopped_epoch"] or x["wait_count"] >= x["patience"] for x in stops)
    return stopped or bool(own["global_step"] >= other["global_step"])


def control_settings(settings: dict[str, Any], mode: Mode) -> dict[str, Any]:
    """Settings of a fit, changed to those of its control."""
    model = settings["data"]["language_model"]
    model = {"name": model} if isinstance(model, str) else model.get("init_args", model)
    data = {**settings["data"], "language_model": {**model, "control": mode}}
    trainer = {**settings["trainer"]}
    trainer["callbacks"] = [c for c in trainer.get("callbacks") or [] if _trains(c["class_path"])]
    return {**settings, "data": data, "trainer": trainer, "ckpt_path": None}


def _trains(class_path: str) -> bool:
    """A callback may change the training, such as EarlyStopping, or what that monitors."""
    name = class_path.rpartition(".")[2]
    ours = hasattr(callbacks, name) and name != "LanguageModelMetrics"
    return not ours and not name.endswith("Checkpoint")


def control_data(data: ActivationDataModule, mode: Mode) -> ActivationDataModule:
    """The same data of the control."""
    settings = {name: value for name, value in data.hparams.items() if name[0] != "_"}
    spec = data.train_spec
    settings |= {"language_model": replace(spec.language_model, control=mode)}
    settings |= {"corpus": spec.corpus, "cache_dir": data.cache_dir}
    return ActivationDataModule(**settings)
