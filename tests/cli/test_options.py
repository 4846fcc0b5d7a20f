"""What is said of a command line before torch is imported."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from palinka.__main__ import main
from palinka.cli.configs import config_folder, find_config
from palinka.cli.options import Options
from palinka.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def problem(*arguments: str, command: str = "fit") -> str:
    with pytest.raises(InputError) as raised:
        Options(command).check(arguments)
    return str(raised.value)


def test_the_description_is_that_of_the_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import describe_options

    written = describe_options.OUTPUT.read_text(encoding="utf-8")
    made = describe_options.text(describe_options.describe())
    assert written == made, "run scripts/describe_options.py"
    assert not re.search(r":\w+:`|``|`_\W", written)  # reStructuredText


def test_a_configuration_of_another_command_is_named_so(tmp_path: Path) -> None:
    fit, analysis = (str(find_config(name)) for name in ("quickstart", "him_her"))
    assert problem(f"--config={fit}", command="analyze").startswith(f"{fit} is for `palinka fit`;")
    for command in ("fit", "validate", "harvest"):
        line = problem(f"--config={analysis}", command=command)
        assert line.startswith(f"{analysis} is for `palinka analyze`;")
    Options("harvest").check([f"--config={fit}"])
    stimuli = config_folder() / "stimuli" / "him_her.yaml"
    for command in ("fit", "analyze"):
        line = problem(f"--config={stimuli}", command=command)
        assert "is a stimuli file, not a configuration; give one whose `analyses` name it" in line
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text("data: {site: hidden.2}\nanalyses: []\n")
    assert problem(f"--config={mixed}").startswith("there is no option analyses")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--model.k=16", "there is no option model.k (did you mean 'model.autoencoder.k'?)"),
        ("--model.lr=3", "there is no option model.lr (did you mean 'model.optimizer.lr'?)"),
        ("--epochs=3", "there is no option epochs (did you mean 'trainer.max_epochs'?)"),
        ("--trainer.max_epoch=3", "option trainer.max_epoch (did you mean 'trainer.max_epochs'?)"),
        ("--data.batch_size=many", "data.batch_size: expected int, got 'many'"),
        ("--data.context_length=null", "data.context_length is null; give a value"),
        ("--data.dtype=float8", "'float8' is not one of float16, bfloat16, float32 (did you mean"),
        ("--model.autoencoder=topk", "no class 'topk' (did you mean 'TopKAutoencoder'?)"),
        ("--model.autoencoder=KSparse", "no class 'KSparse' (did you mean 'KSparseAuto"),
        ("--model.autoencoder.kk=3", "KSparseAutoencoder has no option 'kk' (did you mean 'k'?)"),
        ("--model.optimizer.lr=fast", "model.optimizer.lr: expected float, got 'fast'"),
        ("--trainer.callbacks+=Timr", "no class 'Timr' (did you mean 'Timer'?)"),
        ("--config=nowhere.yaml", "configuration nowhere.yaml: No such file"),
        ("--ckpt_path=nowhere.ckpt", "there is no checkpoint nowhere.ckpt; give `last`, or one"),
    ],
)
def test_a_problem_is_named_with_the_remedy(given: str, expected: str) -> None:
    assert expected in problem(given)
    if "ckpt" not in given:
        flag, _, value = given.partition("=")
        assert problem(flag, value) == problem(given)


@pytest.mark.parametrize(
    "arguments",
    [
        "--model.optimizer.lr=1e-3 --data.train_tokens null --data.center true",
        "--model.autoencoder=TopKAutoencoder --model.autoencoder.init_args.k=3",
        "--model.autoencoder=mine.Sparse --model.autoencoder.width=3",
        "--trainer.precision=bf16-mixed --trainer.max_steps=-1 --trainer.devices=[0,1]",
        "--data.language_model=gpt2 --data.language_model.dtype=bfloat16",
        "--ckpt_path=last --print_config",
    ],
)
def test_what_the_parsers_take_passes(arguments: str) -> None:
    Options("fit").check(arguments.split())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("data: {sit: hidden.2}", "there is no option data.sit (did you mean 'data.site'?)"),
        ("ckpt_path: nowhere.ckpt", "there is no checkpoint nowhere.ckpt"),
        ("modl: {k: 3}", "there is no option modl.k (did you mean 'model.autoencoder.k'?)"),
        (
            "data: {corpus: {class_path: TextFiles, init_args: {pth: texts}}}",
            "data.corpus: TextFiles has no option 'pth' (did you mean 'path'?)",
        ),
        ("data: {language_model: {nmae: mini}}", "has no option 'nmae' (did you mean 'name'?)"),
        ("data:\n  site: {", 'config.yaml", line 2, column 10'),
        ("- fit", "is not a configuration; expected `key: value` lines"),
        ("a: " * 3000, "not valid YAML"),
    ],
)
def test_a_file_is_checked_like_the_command_line(
    content: str, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content, encoding="utf-8")
    assert expected in problem("--config", str(file))


def test_torch_is_not_imported_for_help_and_errors() -> None:
    lines = [
        "--version", "--help", "fit --model.k 16", "fit --help", "fit", "cache list --help",
        "fit --model.autoencoder.help TopKAutoencoder", "atlas serve --help",
    ]  # fmt: skip
    run = "for line in sys.argv[1:]: main(line.split())"
    script = f"import sys; from palinka.__main__ import main\n{run}\nprint(*sys.modules)"
    command = [sys.executable, "-c", script, *lines]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(ran.stdout.split())
    assert "palinka.__main__" in modules
    assert not modules & {"torch", "lightning", "numpy", "transformers", "jsonargparse", "tqdm"}


def test_help_has_a_line_for_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "\n  --model.autoencoder.k INT  " in text
    assert "--trainer.max_epochs" not in text
    assert main(["export", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "model card; or latents with texts, as SAEDashboard, Neuronpedia and delphi read" in text
    assert main(["fit", "--help_trainer"]) == 0
    assert "--trainer.max_epochs" in capsys.readouterr().out
    assert main(["fit", "--trainer.logger.help=WandbLogger"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("WandbLogger: Log using Weights and Biases\n\n  --trainer.logger.name")
    assert main(["fit"]) == 2
    assert "palinka fit --config quickstart" in capsys.readouterr().err


def test_stimuli_are_looked_for_beside_their_configuration(workspace: Path) -> None:
    entry = "analyses: [{name: a, analysis: unit_tuning, stimuli: words.yaml}]"
    (workspace / "a.yaml").write_text(entry)
    with pytest.raises(InputError, match=r"a\.yaml: there is no stimuli file words\.yaml; paths"):
        Options("analyze").check(["--config=a.yaml"])


def test_a_missing_package_is_named_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("palinka.cli.options.find_spec", lambda name: None)
    for option, remedy in (
        ("trainer.logger=WandbLogger", "WandbLogger needs wandb; pip install wandb"),
        ("data.corpus=HuggingFaceDataset", "needs datasets; pip install 'palinka[datasets]'"),
    ):
        assert problem(f"--{option}").endswith(remedy)


def test_shipped_configurations_go_by_name(refused: Any) -> None:
    assert find_config("him_her") == config_folder() / "analyses" / "him_her.yaml"
    found = refused("fit", "--config", "quickstrt")
    assert "configuration quickstrt (did you mean 'quickstart'?); give a YAML file" in found


def test_a_format_rejects_typed_defaults_but_not_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    file = tmp_path / "printed.yaml"
    file.write_text("data: {dtype: float16, corpus: null}\nmodel_id: null\nlicense: unknown\n")
    needed = f"--ckpt_path={tmp_path}/last.ckpt", "--output=new", f"--config={file}"
    for kind, option in (("saelens", "data.dtype=float16"), ("delphi", "license=unknown")):
        Options("export").check([*needed, f"--format={kind}"])
        name = option.partition(".")[0].partition("=")[0]
        expected = f"export {kind} has no use for --{name}; leave it out"
        assert problem(*needed, f"--format={kind}", f"--{option}", command="export") == expected
    file.write_text("data: {seed: 1}")
    assert "no use for --data" in problem(*needed, "--format=palinka", command="export")
