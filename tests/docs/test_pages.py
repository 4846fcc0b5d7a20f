"""Every block of code in the README and the book runs, or is parsed where running it cannot be.

Blocks of Python run page by page, in order, in one namespace. Commands run in this process, with
the bundled model and few tokens, in a folder where a first run has left its checkpoint. The plain
suite parses so many of those that train or analyze that every option is parsed once; `-m slow` runs
them.
"""

import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palinka.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# A line of a block without a language that begins so is a command.
PROGRAMS = ("palinka", "make", "pip", "tensorboard", "srun", "torchrun")

# Pages whose blocks other tests run; they may hold no commands but what is listed here.
ELSEWHERE = {
    "stimuli.md": {"yaml": "tests/stimuli/test_page.py"},
    "extending/analysis.md": dict.fromkeys(("python", "yaml", ""), "test_extending.py"),
    "extending/architecture.md": dict.fromkeys(("python", "yaml", ""), "test_extending.py"),
    "extending/stimuli.md": dict.fromkeys(("python", "yaml", "diff", ""), "test_extending.py"),
}
# What cannot run in a test, by a part of the command, and why. Its arguments are parsed.
ONLY_PARSED = {
    "--trainer.devices": "needs several devices; tests/test_devices.py has some",
    "palinka atlas serve": "serves until it is stopped; tests/atlas/test_server.py",
}
NOT_PALINKA = {
    "pip install": "changes the environment",
    "tensorboard --logdir": "serves until it is stopped",
}

SMALL = [
    "--data.train_tokens=1024",
    "--data.validation_tokens=256",
    "--data.context_length=64",
    "--data.batch_size=128",
]
FAST = ["--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"]
RUN = """\
data:
  language_model: mini
  site: blocks.middle.mlp.pre
  train_tokens: 1024
  validation_tokens: 256
  context_length: 64
  batch_size: 128
model:
  autoencoder: {class_path: TopKAutoencoder, init_args: {latent_dim: 64, k: 4}}
  decorrelation_weight: 0.0
trainer: {max_epochs: 1, enable_progress_bar: false, accelerator: cpu}
"""


def name_of(page: Path) -> str:
    return page.name if page.parent == ROOT else page.relative_to(ROOT / "docs").as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of every block."""
    return [(lang, text) for lang, _, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands_in(text: str) -> list[str]:
    """The commands of a block, each in one line and without its comment."""
    lines = text.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines if line.startswith(PROGRAMS))
    return [shlex.join(words) for words in split if words]


def of_palinka(command: str) -> list[str]:
    """The arguments of palinka in a command that may start it through a launcher."""
    words = shlex.split(command)
    return words[words.index("palinka") + 1 :]


ALL = {
    command: name_of(page)
    for page in reversed(PAGES)
    for language, text in blocks(page)
    if language in ("", "bash") and "" not in ELSEWHERE.get(name_of(page), {})
    for command in commands_in(text)
}
OURS = sorted(command for command in ALL if "palinka" in shlex.split(command))
OTHERS = sorted(set(ALL) - set(OURS))
ELSEWHERE_WHOLE = ("doctor",)  # it takes seconds; tests/cli/test_doctor.py
AT_ONCE = ("cache", "export", "import", "--version")


def with_every_option() -> set[str]:
    """Commands in which every option of all commands occurs."""
    chosen, seen = set(), set()
    for command in sorted(OURS, key=lambda command: (-command.count("--"), command)):
        program, *words = of_palinka(command)
        options = {(program, word.partition("=")[0]) for word in words if word.startswith("--")}
        if not options or not options <= seen:
            chosen.add(command)
            seen |= options
    return chosen


def as_parameters(commands: list[str], plain: set[str]) -> list[Any]:
    return [pytest.param(c, id=c, marks=[pytest.mark.slow] * (c not in plain)) for c in commands]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages take it: configurations, a `run.yaml`, and a run's checkpoint."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "run.yaml").write_text(RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["fit", "--config", "run.yaml"]) == 0
        checkpoint = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
        shutil.copy(checkpoint, folder / "last.ckpt")
        exported = ["--format", "saelens", "--output", "my-sae"]
        assert main(["export", "--ckpt_path", "last.ckpt", *exported]) == 0
        shutil.copy(checkpoint, folder / "my-sae.ckpt")
    return folder


@pytest.fixture
def workspace(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, so that no page sees what another left."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder, symlinks=True)
    monkeypatch.setenv("PALINKA_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return folder


def status_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("command", as_parameters(OURS, with_every_option()))
def test_a_command_is_understood(command: str, workspace: Path) -> None:
    """Every option is known and every value fits; short commands run as they are."""
    arguments = of_palinka(command)
    if arguments[0] in AT_ONCE:
        if arguments[0] == "import":
            arguments += ["--output", "imported.ckpt"] * ("--output" not in arguments)
            shutil.rmtree(workspace / "my-sae.ckpt", ignore_errors=True)
            (workspace / "my-sae.ckpt").unlink(missing_ok=True)
        if arguments[0] == "export":
            arguments[arguments.index("--output") + 1] = "exported"
        assert status_of(arguments) == 0
    elif arguments[0] in ELSEWHERE_WHOLE:
        assert status_of([*arguments, "--help"]) == 0
    else:
        assert arguments[0] in COMMANDS
        assert status_of([*arguments, "--print_config"]) == 0


# What a newcomer does: train a dictionary, put a question to it, look at it.
IN_ORDER = [
    "palinka fit --config configs/quickstart.yaml",
    "palinka analyze --config configs/analyses/geography.yaml --ckpt_path last",
    "palinka atlas --ckpt_path last --output atlas",
]


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "docs/atlas.md"])
def test_a_page_analyzes_before_it_writes_an_atlas(page: str) -> None:
    commands = iter([each for _, text in blocks(ROOT / page) for each in commands_in(text)])
    assert [command for command in IN_ORDER if command not in commands] == []


def test_an_atlas_has_the_analyses_of_its_checkpoint(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, *others = [of_palinka(command) for command in IN_ORDER]
    assert main([*fit, *SMALL, "--trainer.enable_progress_bar=false"]) == 0
    for command in others:
        assert main(command) == 0
    assert "findings in   lightning_logs/version_1/analyses/geography" in capsys.readouterr().out
    text = (workspace / "atlas" / "data" / "overview.js").read_text()
    overview = json.loads(f"[{text[len('palinka.receive(') : -3]}]")[1]
    assert [found["name"] for found in overview["analyses"]] == ["geography", "statistics"]
    assert any("geography" in column["label"] for column in overview["columns"])


def not_run(command: str) -> bool:
    known = any(part in command for part in ONLY_PARSED)
    return known or of_palinka(command)[0] in (*AT_ONCE, *ELSEWHERE_WHOLE)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in OURS if not not_run(command)])
def test_a_command_runs(command: str, workspace: Path) -> None:
    arguments = of_palinka(command)
    if arguments[0] == "fit":
        small = [] if "passage" in command or "run.yaml" in command else SMALL
        arguments += [*small, *FAST]
    elif arguments[0] == "harvest":
        arguments += SMALL
    elif arguments[0] == "verify":
        assert main(["harvest", *arguments[1:]]) == 0
    assert status_of(arguments) == 0


@pytest.mark.parametrize("command", OTHERS)
def test_another_program_s_command_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    else:
        assert any(command.startswith(known) for known in NOT_PALINKA)
        assert words[0] == "pip" or importlib.util.find_spec(words[0])


def given(page: str) -> dict[str, Any]:
    """What the Python of a page takes for granted."""
    rng = np.random.default_rng(0)
    conditions = {name: rng.normal(size=(20, 16)) for name in ("him", "her")}
    return conditions if page == "README.md" else {}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page))
        for page in PAGES
        if any(language == "python" for language, _ in blocks(page))
        and "python" not in ELSEWHERE.get(name_of(page), {})
    ],
)
def test_the_python_of_a_page_runs(page: Path, workspace: Path) -> None:
    namespace = given(name_of(page))
    for language, text in blocks(page):
        if language == "python":
            # The hub is out of reach; the bundled model stands in.
            source = text.replace('"gpt2"', '"mini"')
            exec(compile(source, str(page), "exec"), namespace)  # noqa: S102


def configurations() -> Iterator[Any]:
    for page in PAGES:
        if "yaml" not in ELSEWHERE.get(name_of(page), {}):
            found = [text for language, text in blocks(page) if language == "yaml"]
            for number, text in enumerate(found):
                yield pytest.param(text, id=f"{name_of(page)}-{number}")


@pytest.mark.parametrize("text", configurations())
def test_a_configuration_is_understood(text: str, workspace: Path) -> None:
    (workspace / "block.yaml").write_text(text)
    layers = ["--config", "run.yaml", "--config", "block.yaml"]
    assert status_of(["fit", *layers, "--print_config"]) == 0


def test_every_block_is_of_a_known_kind() -> None:
    """A block in a language that nothing here runs would not be tested at all."""
    for page in PAGES:
        for language, text in blocks(page):
            assert language in ("", "bash", "python", "yaml", "diff")
            if language in ("", "bash") and not commands_in(text):
                assert name_of(page) == "cache-format.md", text
            if language == "diff":
                assert "diff" in ELSEWHERE[name_of(page)]


def test_what_is_listed_is_there() -> None:
    """An exception that no page needs any longer is to be taken off the list."""
    for part in ONLY_PARSED:
        assert any(part in command for command in OURS)
    for part in NOT_PALINKA:
        assert any(part in command for command in OTHERS)
