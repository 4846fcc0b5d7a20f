"""What is said of a command line before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from palinka.__main__ import main
from palinka.cli.options import Options, config_folder, config_names, find_config
from palinka.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def problem(*arguments: str, command: str = "fit") -> str:
    with pytest.raises(InputError) as raised:
        Options(command).check(arguments)
    return str(raised.value)


def test_the_description_is_that_of_the_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import describe_options

    assert describe_options.OUTPUT.read_text(encoding="utf-8") == describe_options.text(
        describe_options.describe()
    ), "run scripts/describe_options.py"


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_configuration_passes(name: str) -> None:
    path = find_config(name)
    command = "analyze" if "palinka analyze" in path.read_text(encoding="utf-8") else "fit"
    Options(command).check(["--config", str(path)])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--model.k=16", "there is no option model.k; did you mean 'model.autoencoder.k'?"),
        ("--model.lr=1e-3", "there is no option model.lr; did you mean 'model.optimizer.lr'?"),
        (
            "--trainer.epochs=3",
            "option trainer.epochs; did you mean 'trainer.max_epochs'?",
        ),
        (
            "--trainer.max_epoch=3",
            "option trainer.max_epoch; did you mean 'trainer.max_epochs'?",
        ),
        ("--modl.x=1", "there is no option modl.x; did you mean 'model'?"),
        ("--data.batch_size=many", "data.batch_size: expected int, got 'many'"),
        ("--data.seed=1.5", "data.seed: expected int, got 1.5"),
        ("--data.seed=null", "data.seed is null; give a value, or leave it out"),
        ("--data.dtype=float8", "'float8' is not one of float16, bfloat16, float32; did you mean"),
        ("--model.autoencoder=KSparse", "there is no class 'KSparse'; did you mean 'KSparseAuto"),
        ("--model.autoencoder.kk=3", "KSparseAutoencoder has no option 'kk'; did you mean 'k'?"),
        ("--model.optimizer.lr=fast", "model.optimizer.lr: expected float, got 'fast'"),
        ("--trainer.callbacks+=Timr", "there is no class 'Timr'; did you mean 'Timer'?"),
        ("--config=nowhere.yaml", "there is no configuration nowhere.yaml"),
        ("--ckpt_path=nowhere.ckpt", "there is no checkpoint nowhere.ckpt; fits write theirs"),
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
        ["--model.optimizer.lr=1e-3", "--data.train_tokens", "null", "--data.center", "true"],
        ["--model.autoencoder=TopKAutoencoder", "--model.autoencoder.init_args.k=3"],
        ["--model.autoencoder=mine.Sparse", "--model.autoencoder.width=3"],
        ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1"],
        ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:01:00"],
        ["--trainer.precision=bf16-mixed", "--trainer.max_steps=-1", "--trainer.devices=[0, 1]"],
        ["--data.language_model=gpt2", "--data.language_model.dtype=bfloat16"],
        ["--ckpt_path=last", "--print_config"],
    ],
)
def test_what_the_parsers_take_passes(arguments: list[str]) -> None:
    Options("fit").check(arguments)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("data: {sit: hidden.2}", "there is no option data.sit; did you mean 'data.site'?"),
        ("modl: {k: 3}", "there is no option modl.k; did you mean 'model.autoencoder.k'?"),
        (
            "data: {corpus: {class_path: TextFiles, init_args: {pth: texts}}}",
            "data.corpus: TextFiles has no option 'pth'; did you mean 'path'?",
        ),
        ("data: {language_model: {nmae: mini}}", "has no option 'nmae'; did you mean 'name'?"),
        ("data: {batch_size: many}", "data.batch_size: expected int, got 'many'"),
        ("data:\n  site: {", "is not valid YAML (line 2): "),
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


@pytest.mark.parametrize(
    "line",
    [
        ["fit", "--config", "nope.yaml"],
        ["fit", "--model.k", "16"],
        ["fit", "--help"],
        ["fit"],
        ["analyze", "--help"],
        ["atlas", "serve", "--help"],
        ["validate", "--ckpt_path", "nope.ckpt"],
        ["cache", "list", "--help"],
        ["export"],
    ],
)
def test_torch_is_not_imported_for_help_and_errors(line: list[str]) -> None:
    script = (
        "import sys; from palinka.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    )
    command = [sys.executable, "-c", script, *line]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(ran.stdout.split())
    assert "palinka.cli.options" in modules
    assert not modules & {"torch", "lightning", "numpy", "transformers", "jsonargparse"}


def test_help_has_a_line_for_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("  --model.autoencoder.k INT  ") for line in lines)
    assert "--trainer.max_epochs" not in text
    assert main(["fit", "--help_trainer"]) == 0
    assert "--trainer.max_epochs" in capsys.readouterr().out


def test_fit_alone_names_a_first_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "palinka fit --config quickstart" in capsys.readouterr().err


def test_shipped_configurations_go_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_config("him_her") == config_folder() / "analyses" / "him_her.yaml"
    assert main(["fit", "--config", "quickstrt"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err
