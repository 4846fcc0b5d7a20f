"""`palinka atlas`, `palinka atlas serve` and `palinka explain`."""

import json
import os
import sys
from collections import Counter
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
import numpy as np

import palinka.data  # noqa: F401  (so that --data.corpus may name its classes)
from palinka.atlas import AtlasServer, Options, WriteAtlas
from palinka.atlas.server import LiveLatents, check_atlas
from palinka.cli.resume import checkpoint_named, findings_folder, load_module
from palinka.cli.trainer import ignore_warnings
from palinka.data import ActivationDataModule
from palinka.data.datamodule import MAX_VERIFIED_BYTES
from palinka.errors import InputError, atomic_write, counted, expanded, shell_path
from palinka.evaluation import explain as evaluation
from palinka.evaluation.endpoint import Endpoint
from palinka.evaluation.report import plain
from palinka.evaluation.representations import RANDOM, SAMPLE, random_dictionary
from palinka.evaluation.values import Dictionary
from palinka.evaluation.windows import read_activity
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes
from palinka.language_models.token_text import token_bytes
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks import LanguageModelMetrics


def overrides(settings: Any) -> dict[str, Any]:
    """Data settings of a checkpoint's fit, which override configuration files."""
    stored = checkpoint.read(checkpoint_named(settings.ckpt_path), allow_sweep=True)
    data = stored.get("datamodule_hyper_parameters", {})  # an imported one has none
    return {"data": {name: value for name, value in data.items() if name[0] != "_"}} if data else {}


def atlas(
    ckpt_path: str,
    output: str,
    options: Options,
    data: ActivationDataModule,
    analyses: str | None = None,
    against: str | None = None,
    explanations: str | None = None,
) -> int:
    """Write a site about every latent of a checkpoint, which a browser opens from the disk.

    `palinka atlas serve --help` is about typing text of your own.

    Args:
        ckpt_path: `last` for that of the last run, or a file of `palinka fit` or `import`.
        output: The folder; an atlas there is replaced.
        options: How much to show of each latent.
        data: Source of rows and texts; defaults to that of the fit.
        analyses: A folder with findings; default that of the run.
        against: Another dictionary of the same site, matched latent by latent: a checkpoint, the
            log folder of a run, or an exported dictionary.
        explanations: `explanations.json` of `palinka explain`, which label latents.
    """
    other = str(checkpoint_named(against)) if against else None
    module = checked_module(ckpt_path, data)
    found = expanded(analyses) if analyses else findings_folder(checkpoint_named(ckpt_path))
    writer = WriteAtlas(output, str(found), options, other, explanations)
    writer.checksum = checkpoint.sha256(checkpoint_named(ckpt_path))
    trainer = pl.Trainer(
        logger=False, callbacks=[LanguageModelMetrics(), writer], enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, devices=1,
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    if writer.page is None:
        raise InputError("no atlas: the latents are divided over devices; give a checkpoint of one")
    size = sum(file.stat().st_size for file in writer.page.parent.rglob("*") if file.is_file())
    print(f"atlas of {module.autoencoder.latent_dim:,} latents, {size / 1e6:.1f} MB")
    print(f"open it in a browser   {shell_path(writer.page)}")
    return 0


def serve(ckpt_path: str, atlas: str, data: ActivationDataModule, port: int = 0) -> int:
    """Open an atlas on 127.0.0.1, with a box for text of your own, until Ctrl-C.

    Args:
        ckpt_path: `last` for that of the last run, or a file of `palinka fit` or `import`.
        atlas: Output of `palinka atlas`.
        data: Source of rows and texts; defaults to that of the fit.
        port: Port; 0 for any free one.
    """
    module = checked_module(ckpt_path, data)
    check_atlas(expanded(atlas))  # before the model is loaded
    spec = data.validation_spec
    model = LanguageModel.load(spec.language_model)
    module = module.to(model.device)
    live = LiveLatents(model, spec.resolved_sites[0], module, spec.bos, spec.layout.skip)
    with AtlasServer(expanded(atlas), live, port) as server:
        print(f"the atlas is at   {server.url}   (stop with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return 0


def explain(
    ckpt_path: str,
    base_url: str,
    model: str,
    data: ActivationDataModule,
    latents: int = 200,
    output: str | None = None,
    control: str | None = None,
    key_env: str = "OPENAI_API_KEY",
    price_in: float = 0.0,
    price_out: float = 0.0,
    budget: float | None = None,
    max_tokens: int = 512,
    seed: int = 0,
    logprobs: bool = False,
    dry_run: bool = False,
) -> int:
    """Have a language model describe latents, and score the descriptions on other documents.

    Any server with OpenAI's chat completions will do. Every answer is kept: a run that stopped
    resumes, and a second run sends nothing.

    Args:
        ckpt_path: `last` for that of the last run, or a file of `palinka fit` or `import`.
        base_url: Address of the server before `/chat/completions`; http on this machine only.
        model: Name of the model there.
        data: Source of rows and texts; defaults to that of the fit.
        latents: Number of latents, drawn evenly by density.
        output: A folder for `explanations.json` and the answers; default in that of the run.
        control: `explanations.json` of another dictionary, such as a random model's, to compare;
            or `random_dictionary`, one at initialization of the same L0, which is explained, too.
        key_env: Environment variable that holds the key.
        price_in: Price of a million tokens that the model reads.
        price_out: Price of a million tokens that it writes.
        budget: Stop before more than this is spent.
        max_tokens: Maximum number of tokens of an answer.
        seed: Seed of the draws, also sent to the server.
        logprobs: Ask for probabilities of the answers, for AUC.
        dry_run: Only say what would be sent.
    """
    if budget is not None and not (price_in or price_out):
        raise InputError("explain: budget needs prices; give --price_in and --price_out")
    path = checkpoint_named(ckpt_path)
    key = os.environ.get(key_env, "").strip()
    if not key and base_url.startswith("https") and not dry_run:
        unset = f"the variable {key_env} is empty"
        raise InputError(f"explain: {unset}; set it, or name another with --key_env")
    beside = findings_folder(path)  # of a run, or of a checkpoint alone
    alone = beside.name != "analyses"
    own = beside.parents[alone] / "explanations" / (beside.name if alone else "")
    folder = expanded(output) if output else own
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens, "seed": seed}
    asked |= {"logprobs": True, "top_logprobs": 5} if logprobs else {}
    prices, place = (price_in, price_out), folder / "responses"
    endpoint = Endpoint(base_url, model, place, key, prices, budget, **asked)
    try:
        given = expanded(control) if control and control != RANDOM else None
        other = json.loads(given.read_bytes())["latents"] if given else None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{control} is not an explanations.json of palinka explain") from error
    module = checked_module(ckpt_path, data)
    spec, lm = data.validation_spec, harvested(data)
    site = spec.resolved_sites[0]

    def read_items(of: EncodesAndDecodes) -> tuple[list[evaluation.Item], Counter[str]]:
        contexts = data.validation_contexts()
        activity = read_activity(lm, site, of, contexts, spec.layout.skip, seed)
        ids = np.unique(activity.tokens).tolist()
        vocabulary = dict(zip(ids, token_bytes(lm.tokenizer, ids), strict=True))
        return evaluation.make_items(activity, vocabulary, latents, seed)

    items, excluded = read_items(module.to(lm.device))
    parts = [items]
    if control == RANDOM:
        parts.append(read_items(_at_initialization(module, data, seed))[0])
    for reason, number in excluded.items():
        print(f"left out   {counted(number, 'latents')} {reason}")
    if not all(parts):
        more = "with --data.corpus or --data.validation_tokens"
        of = "" if not items else f" of the {RANDOM}"
        raise InputError(f"explain: no latent{of} has enough windows; give more text, {more}")
    requests, read, written = map(sum, zip(*map(evaluation.estimate, parts), strict=True))
    cost = f"cost about {endpoint.cost(read, written):.2f}" if any(prices) else "prices not given"
    count = sum(map(len, parts))
    to = f"{count} latents, {model} at {endpoint.host}: at most {requests:,} requests"
    print(f"{to}, about {read:,} tokens read and {written:,} written, {cost}", flush=True)
    if dry_run:
        return 0
    found, *of_random = (evaluation.explain(each, endpoint, seed) for each in parts)
    missing = max(map(evaluation.missing_share, (found, *of_random)))
    if missing > evaluation.MAX_MISSING:
        unread = f"{100 * missing:.0f} % of the answers could not be read"
        problem = f"explain: {unread}; the scores are not reported"
        print(f"palinka: error: {problem}", file=sys.stderr)
        return 1
    other = of_random[0] if of_random else other
    values = evaluation.over_latents(found, path.name, other)
    for value in values:
        known = f"{value.low:.3f} to {value.high:.3f}, {value.n['latents']} latents"
        interval = value.method if np.isnan(value.low) else known
        print(f"{value.metric:<22}{value.value:>7.3f}  ({interval})")
    record = {
        "format": 1, "palinka": version("palinka"), "model": model, "host": endpoint.host,
        "settings": {**asked, "latents": latents}, "language_model": spec.language_model.name,
        "site": site, "latent_dim": module.autoencoder.latent_dim, "missing": missing,
        "sha256": checkpoint.sha256(path),
        "excluded": excluded, "values": [{**vars(value), "unit": [*value.n]} for value in values],
        "latents": found,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "explanations.json") as file:
        file.write(json.dumps(plain(record), indent=1, allow_nan=False).encode())
    print(f"explanations in   {shell_path(folder / 'explanations.json')}")
    return 0


def _at_initialization(
    module: SparseAutoencoderModule, data: ActivationDataModule, seed: int
) -> EncodesAndDecodes:
    """The dictionary of a module at initialization, with the same L0."""
    rows = data.validation_rows.read_rows(0, min(data.validation_rows.rows, SAMPLE))
    kind, size = type(module.autoencoder).__name__, module.autoencoder.latent_dim
    decoder = module.autoencoder.dictionary.detach().float().cpu().numpy()
    one = Dictionary(RANDOM, RANDOM, None, module, kind, size, "", decoder)
    if (found := random_dictionary(one, rows, seed)) is None:
        raise InputError(f"explain: {kind} has no {RANDOM} here; give another control")
    return found


def checked_module(ckpt_path: str, data: ActivationDataModule) -> SparseAutoencoderModule:
    """Load the module of a checkpoint, and check that it fits the data."""
    ignore_warnings(tips=True)
    path = checkpoint_named(ckpt_path)
    module = load_module(path)
    checkpoint.check_matches(checkpoint.read(path), module.autoencoder, data, resume=False)
    return module


def harvested(data: ActivationDataModule) -> LanguageModel:
    """Language model of the data, after the cache of the validation split is filled."""
    if not data.in_memory:
        data.harvest(specs=[data.validation_spec], max_verified=MAX_VERIFIED_BYTES)
    return data.loaded_language_model
