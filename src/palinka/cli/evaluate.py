"""`palinka evaluate`: measure dictionaries with intervals, and compare them."""

import importlib
import inspect
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import palinka.data  # noqa: F401  (so that --data.corpus may name its classes)
from palinka.cli import resume
from palinka.cli.atlas import harvested
from palinka.cli.atlas import overrides as overrides
from palinka.cli.trainer import ignore_warnings
from palinka.data import ActivationDataModule
from palinka.errors import InputError, did_you_mean, shell_path, type_mismatch
from palinka.evaluation.controls import controls
from palinka.evaluation.core import core
from palinka.evaluation.report import evaluation_findings
from palinka.evaluation.values import Dictionary, Group, Subject
from palinka.language_models.spec import Mode
from palinka.training import callbacks, checkpoint
from palinka.training.callbacks.checkpoints import FOLDER

# Modules of `palinka.evaluation`, each with a function of its name.
GROUPS = ("core", "probing", "stability", "recovery", "selection", "absorption")
DEFAULT = ("core", "probing", "stability")
ELSEWHERE = {
    "controls": "; give --control permuted",
    "explain": "; see `palinka explain --help`",
}
SEED = re.compile(r"(?:^|,)seed=(\d+)")


class Found(NamedTuple):
    """A checkpoint, the name and recipe of its dictionary, its seed, and the name of its run."""

    path: Path
    name: str
    recipe: str
    seed: int | None
    run: str


def evaluate(
    ckpt_path: str,
    data: ActivationDataModule,
    against: str | None = None,
    metrics: list[str] | str | None = None,
    tasks: list[str] | str | None = None,
    control: Mode | None = None,
    control_ckpt_path: str | None = None,
    margin: float = 0.0,
    output: str | None = None,
    probing: dict[str, Any] | None = None,
    stability: dict[str, Any] | None = None,
    selection: dict[str, Any] | None = None,
) -> int:
    """Measure dictionaries with intervals, and compare them with verdicts.

    The variants of a run that differ in `seed` alone are one recipe: its values have intervals
    over seeds and documents, and recipes are compared with each other.

    Args:
        ckpt_path: `last` for that of the last run, a file of `palinka fit` or `import`, or the
            folder of a run, of which all variants are measured.
        data: Source of rows and texts; defaults to that of the fit.
        against: Other dictionaries of the same site, named in the same way, to compare with.
        metrics: Groups of metrics: `core`, `probing`, `stability`, `selection` and `absorption`;
            default `[core,probing,stability]`.
        tasks: Tasks of probing and selection: `builtin`, `controls`, names of single
            ones, CSV files with the columns `prompt` and `target`, `sae_probes:recommended` or
            `sae_probes:NAME`; default `[builtin,controls]` of probing, `[builtin]` of selection.
        control: Train the recipe on a control of the language model, too, unless that is done,
            and give every metric beside it: `permuted`, `gaussian` or `initial` weights, `tokens`
            in random order, random `embeddings`, or `coordinates` of activations in random order.
        control_ckpt_path: A checkpoint or run that was trained on the control.
        margin: Size below which differences do not matter.
        output: A folder for `evaluation/`; default that of the run.
        probing: `k`, `protocol` (`palinka`, `sae_probes` or `saebench`), `selection`, `pooling`,
            `items`, `shuffles`, `penalty` and `seed` of probes.
        stability: `force` (all dictionaries are one recipe), `null`, `floor` and `seed` of it.
        selection: `q`, `draws`, `simulations`, `statistic`, `test`, `pooling`, `items` and `seed`
            of it.
    """
    ignore_warnings(tips=True)
    if margin < 0:
        raise InputError(f"margin is {margin:g}; give a size, 0 or above")
    if control_ckpt_path and not control:
        raise InputError("control_ckpt_path needs --control, the mode that it was trained on")
    metrics, tasks = ([each] if isinstance(each, str) else each for each in (metrics, tasks))
    options = {"tasks": tasks} if tasks is not None else {}
    named = {"probing": probing, "stability": stability, "selection": selection}
    further = {n: v for n, v in named.items() if v}
    groups = _groups(metrics, options, further)
    mine, theirs = _found(ckpt_path), _found(against) if against else []
    if {one.path.resolve() for one in mine} & {one.path.resolve() for one in theirs}:
        raise InputError(f"against: {against} is the checkpoint of --ckpt_path; give another one")
    if {name for one in mine for name in one[1:3]} & {name for one in theirs for name in one[1:3]}:
        run = theirs[0].run if theirs[0].run != mine[0].run else "against"
        prefixed = ((x, x.recipe if x.recipe == run else f"{run}/{x.recipe}") for x in theirs)
        theirs = [x._replace(name=f"{run}/{x.name}", recipe=recipe) for x, recipe in prefixed]
    matched, of_null = further.get("stability", {}), list[Dictionary]()
    has_null = matched.get("null") == "shuffled"
    if has_null and (against or control):
        fault = "stability.null shuffled takes no --against or --control"
        raise InputError(f"{fault}; leave them out")
    if control:  # what is wrong with it, and its fit, come before hours of measuring
        run = str(control_run(ckpt_path, control, control_ckpt_path))
        of_control = _of_control(mine, _found(run))
    if has_null and len(mine) > len({matched.get("force") or one.recipe for one in mine}):
        shuffled = _of_control(mine, _found(str(control_run(ckpt_path, "coordinates"))))
        on_shuffled = control_data(data, "coordinates")
        of_null = [_dictionary(one, on_shuffled, one) for one in shuffled]
    subject = replace(_subject(mine + theirs, data), shuffled=tuple(of_null))
    found = _measured(subject, groups)
    if control:
        other = _subject(of_control, control_data(data, control))
        found["controls"] = controls(subject, found, other, _measured(other, groups), control)
    settings: dict[str, Any] = {"ckpt_path": ckpt_path, "against": against, "margin": margin}
    settings |= {"metrics": list(groups), "control": control, **options, **further}
    settings["data"] = {name: value for name, value in data.hparams.items() if name[0] != "_"}
    others = [one.recipe for one in theirs]
    findings = evaluation_findings(subject, found, settings, others, margin)
    print(findings.short)
    # Where the atlas finds them.
    beside = resume.findings_folder(resume.checkpoint_named(ckpt_path))
    places = [beside, beside.parent] if beside.name == "analyses" else [beside]
    written = [findings.write(place) for place in ([Path(output)] if output else places)]
    print(f"\nevaluation in   {shell_path(written[-1])}")
    print(f"whole report in   {shell_path(written[-1] / 'evaluation.md')}")
    return 0


def _subject(found: Sequence[Found], data: ActivationDataModule) -> Subject:
    """Load dictionaries, and the language model and text that they are measured on."""
    dictionaries = tuple(_dictionary(one, data, found[0]) for one in found)
    spec, model = data.validation_spec, harvested(data)
    for one in dictionaries:
        one.autoencoder.to(model.device)  # type: ignore[attr-defined]
    return Subject(
        model, spec.resolved_sites[0], dictionaries, data.validation_contexts, spec.layout.skip,
        spec.bos, data.validation_rows.statistics.mean,
    )  # fmt: skip


def _measured(subject: Subject, groups: dict[str, Any]) -> dict[str, Group]:
    """Numbers of the groups; `core` comes last, and measures what others leave to its passes."""
    found = {name: call(subject, **own) for name, (call, own) in groups.items() if name != "core"}
    ablations = [one for group in found.values() for one in group.ablations]
    if "core" in groups:
        return {"core": core(subject, ablations), **found}
    if ablations:
        found["core"] = Group(core(replace(subject, dictionaries=()), ablations).measurements)
    return found


def _of_control(mine: Sequence[Found], control: Sequence[Found]) -> list[Found]:
    """The dictionaries of a control by the names of the recipes that they repeat."""
    if len(mine) > 1:
        name = {one.run: mine[0].run for one in control}
        found = [one._replace(recipe=name.get(one.recipe, one.recipe)) for one in control]
        if not (recipes := {one.recipe for one in mine}) & {one.recipe for one in found}:
            fault = (
                f"control: {control[0].run} has none of the recipes {', '.join(sorted(recipes))}"
            )
            raise InputError(f"{fault}; give the run of their control")
        return found
    own = mine[0].path.absolute().parent.parent.name  # the run or its variant
    same = [one for one in control if one.path.absolute().parent.parent.name == own] or control
    if len({one.recipe for one in same}) > 1:
        fault = f"control: {control[0].run} has {', '.join(one.name for one in same)}, not {own}"
        raise InputError(f"{fault}; give the checkpoint of its control")
    return [one._replace(recipe=mine[0].recipe) for one in same]


def _groups(
    metrics: list[str] | None, shared: dict[str, Any], further: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Functions of the groups, each with its arguments."""
    groups, taken = {}, set[str]()
    for name in metrics or DEFAULT:
        if name not in GROUPS:
            hint = ELSEWHERE.get(name, did_you_mean(name, GROUPS))
            raise InputError(f"metrics: there is no group {name!r}{hint}")
        if name == "recovery":
            fault = "these activations come from a language model"
            raise InputError(f"{name}: {fault}; true directions are known of synthetic data only")
        group = getattr(importlib.import_module(f"palinka.evaluation.{name}"), name)
        takes = {n: p for n, p in inspect.signature(group).parameters.items() if n != "subject"}
        for option, value in further.get(name, {}).items():
            if option not in takes:
                raise InputError(f"{name} has no option {option!r}{did_you_mean(option, takes)}")
            if expected := type_mismatch(value, takes[option].annotation):
                raise InputError(f"{name}.{option} is {value!r}; expected {expected}")
        own = {n: v for n, v in shared.items() if n in takes} | further.get(name, {})
        groups[name], taken = (group, own), taken | own.keys() | {name}
    if unused := (shared.keys() | further.keys()) - taken:
        given = f"{', '.join(sorted(unused))}: not an option of {', '.join(groups)}"
        raise InputError(f"{given}; give --metrics that take it, or leave it out")
    return groups


def _found(given: str) -> list[Found]:
    """Find the dictionaries of a checkpoint, or of all variants of a run."""
    path = resume.checkpoint_named(given)
    names = list(checkpoint.read(path, allow_sweep=True)["hyper_parameters"].get("variants", {}))
    run = path.parent.parent if path.absolute().parent.name == FOLDER else None
    name = run.name if run else path.stem
    config = _config_of(run) if run else None
    text = config.read_text("utf-8") if config else "{}"
    shared = yaml.safe_load(text).get("seed_everything")
    seeds = {n: int(own[1]) if (own := SEED.search(n)) else shared for n in names or [name]}
    if run is None or not names:
        return [Found(path, name, name, seeds.get(name), name)]
    # A seed may be that of a variant and of the whole run: one of two equal dictionaries counts.
    distinct = dict[tuple[str, int | None], str]()
    for one in names:
        distinct.setdefault((SEED.sub("", one).strip(",") or name, seeds[one]), one)
    several, found = Counter(recipe for recipe, _ in distinct), []
    for (recipe, seed), variant in distinct.items():
        alone = several[recipe] == 1
        unique = variant if alone or variant != recipe else f"{variant},seed={seed}"
        file = run / variant / FOLDER / path.name
        found.append(Found(file, unique, unique if alone else recipe, seed, name))
    return found


def _dictionary(found: Found, data: ActivationDataModule, first: Found) -> Dictionary:
    """Load a dictionary, and check that it is of the site of the data."""
    stored = checkpoint.read(found.path)
    module = resume.load_module(found.path)
    autoencoder = module.autoencoder
    if autoencoder.is_transcoder:
        raise InputError(f"{found.name} is a transcoder; evaluate takes autoencoders of one site")
    read = (stored.get("source", {}).get("site", data.source["site"]), autoencoder.input_dim)
    expected = (data.source["site"], data.width)
    if found.path != first.path and read != expected:
        ours, theirs = (f"{site} of width {width}" for site, width in (expected, read))
        what = f"{found.path} reads {theirs}, {first.path} reads {ours}"
        raise InputError(f"against: {what}; compare dictionaries of one site")
    checkpoint.check_matches(stored, autoencoder, data, resume=False)
    return Dictionary(
        found.name, found.recipe, found.seed, module, type(autoencoder).__name__,
        autoencoder.latent_dim, checkpoint.sha256(found.path),
        autoencoder.dictionary.detach().float().cpu().numpy(),
    )  # fmt: skip


def control_run(ckpt_path: str, mode: Mode, control_ckpt_path: str | None = None) -> Path:
    """Find or train the run of the same recipe, seeds and tokens on a control.

    It is in `control_<mode>/` of the run, without the callbacks that analyze or save.
    """
    if control_ckpt_path:
        return Path(control_ckpt_path)
    path = resume.checkpoint_named(ckpt_path)
    run = path.absolute().parent.parent
    config = _config_of(run)
    if path.parent.name != FOLDER or config is None:
        fault = f"control {mode}: the checkpoint was imported and its recipe is not known"
        raise InputError(f"{fault}; give --control_ckpt_path")
    folder = config.parent / f"control_{mode}"
    for trained in resume.runs_below(folder):  # a fit that was stopped is repeated
        if (newest := resume.newest_checkpoint(trained)) and _has_ended(newest, path):
            print(f"control      {shell_path(trained)}")
            return trained
    with tempfile.TemporaryDirectory() as temporary:
        recipe = Path(temporary) / resume.CONFIG
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
    return resume.runs_below(folder)[0]


def _config_of(run: Path) -> Path | None:
    """Configuration of a run; that of a sweep is above its variants."""
    found = (each / resume.CONFIG for each in (run, run.parent))
    return next((config for config in found if config.exists()), None)


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
