"""Every block of code in the README and the book runs, or is parsed where running it cannot be.

Blocks of Python run page by page, in order, in one namespace. Commands run in this process, with
the bundled model and few tokens, in a folder where a first run has left its checkpoint. The plain
suite parses those that train or analyze; `-m slow` runs them.
"""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palinka.__main__ import main
from palinka.cli.configs import with_paths
from palinka.cli.options import Options

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# A line of a block without a language that begins so is a command.
PROGRAMS = ("palinka", "make", "pip", "tensorboard", "srun", "torchrun")

# Languages of blocks that other tests run: those of the stimuli's page, and `test_extending.py`.
ELSEWHERE = {
    "stimuli.md": {"yaml"},
    "extending/analysis.md": {"python", "yaml", ""},
    "extending/architecture.md": {"python", "yaml", ""},
    "extending/stimuli.md": {"python", "yaml", "diff", ""},
}
# What a test cannot run, by a part of the command: it needs several devices, another package, a
# server or a longer run, serves until it is stopped, or changes the environment. Arguments of
# palinka are parsed.
ONLY_PARSED = (
    "--trainer.devices", "palinka atlas serve", "smollm2", "palinka explain", "--explanations",
)  # fmt: skip
NOT_PALINKA = ("pip install", "tensorboard --logdir")

SMALL = [
    "--data.train_tokens=1024", "--data.validation_tokens=256", "--data.context_length=64",
    "--data.batch_size=128",
]  # fmt: skip
FAST = ["--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"]
RUN = """\
data: {site: blocks.middle.mlp.pre, train_tokens: 1024, validation_tokens: 256,
  context_length: 64, batch_size: 128}
model:
  autoencoder: {class_path: TopKAutoencoder, init_args: {latent_dim: 64, k: 4}}
  decorrelation_weight: 0.0
trainer: {max_epochs: 1, enable_progress_bar: false, accelerator: cpu}
"""


def name_of(page: Path) -> str:
    return page.name if page.parent == ROOT else page.relative_to(ROOT / "docs").as_posix()


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """The language and the text of every block, or of those that no other test runs."""
    found = [(lang, text) for lang, _, text in BLOCK.findall(page.read_text(encoding="utf-8"))]
    wanted = set(languages) - ELSEWHERE.get(name_of(page), set())
    return [block for block in found if block[0] in wanted] if languages else found


def commands_in(text: str) -> list[str]:
    """The commands of a block, each in one line and without its comment."""
    lines = text.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines if line.startswith(PROGRAMS))
    return [shlex.join(words) for words in split if words]


def inline(text: str) -> list[str]:
    """Commands between backticks, as in a table of tasks and commands."""
    found = re.findall(r"`(palinka [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    return [command for command in found if not command.startswith("palinka COMMAND")]


def of_palinka(command: str) -> list[str]:
    """The arguments of palinka in a command that may start it through a launcher."""
    words = shlex.split(command)
    return words[words.index("palinka") + 1 :]


ALL = {c for page in PAGES for _, text in blocks(page, "", "bash") for c in commands_in(text)}
ALL |= set(inline(PAGES[0].read_text(encoding="utf-8")))
PROGRAM = {command: "palinka" in shlex.split(command) for command in ALL}
# Loggers whose packages the group test does not install.
LOGGERS = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}
MISSING = [logger for package, logger in LOGGERS.items() if not importlib.util.find_spec(package)]
OURS = sorted(c for c in ALL if PROGRAM[c] and not any(logger in c for logger in MISSING))
OTHERS = sorted(c for c in ALL if not PROGRAM[c])
AT_ONCE = ("cache", "completion", "configs", "export", "import", "--version")


@pytest.fixture(scope="module")
def trained(run_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder as the pages take it: configurations, a `run.yaml`, and a run's checkpoint."""
    config = tmp_path_factory.mktemp("book") / "run.yaml"
    config.write_text(RUN)
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    export = ["export", "--ckpt_path", last, "--format", "saelens", "--output", "my-sae"]
    folder = run_once(["fit", "--config", str(config)], export)
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copy(config, folder)
    for name in ("last.ckpt", "my-sae.ckpt"):
        shutil.copy(folder / last, folder / name)
    return folder


@pytest.fixture
def workspace(workspace: Path, trained: Path) -> Path:
    """A copy of that folder, so that no page sees what another left."""
    shutil.copytree(trained, workspace, symlinks=True, dirs_exist_ok=True)
    return workspace


def status_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("command", OURS)
def test_a_command_is_understood(command: str, workspace: Path) -> None:
    """Every option is known and every value fits; short commands run as they are."""
    arguments = of_palinka(command)
    if arguments[0] in AT_ONCE:
        if arguments[0] == "import":
            arguments += ["--output", "imported.ckpt"] * ("--output" not in arguments)
            (workspace / "my-sae.ckpt").unlink(missing_ok=True)
        if arguments[:2] == ["configs", "copy"]:
            arguments += ["--to", "copied"]
        if arguments[0] == "export":
            arguments[arguments.index("--output") + 1] = "exported"
        assert status_of(arguments) == 0
    elif arguments[0] == "doctor":  # it takes seconds; tests/cli/test_doctor.py
        assert status_of([*arguments, "--help"]) == 0
    elif any(part in command for part in ONLY_PARSED):
        assert status_of([*arguments, "--print_config"]) == 0
    else:  # run by `-m slow`
        Options(arguments[0]).check(list(with_paths(arguments[1:])))


LONG = [c for c in OURS if of_palinka(c)[0] not in (*AT_ONCE, "doctor")]
TO_RUN = [c for c in LONG if not any(part in c for part in ONLY_PARSED)]


@pytest.mark.slow
@pytest.mark.parametrize("command", TO_RUN)
def test_a_command_runs(command: str, workspace: Path) -> None:
    arguments = of_palinka(command)
    if arguments[0] == "fit":
        small = [] if "passage" in command or "run.yaml" in command else SMALL
        if "quickstart --ckpt_path last" in command:  # resumes a run of that configuration
            assert main([*arguments[:-2], *small, "--trainer.max_epochs=1"]) == 0
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


@pytest.mark.parametrize("page", filter(lambda page: blocks(page, "python"), PAGES), ids=name_of)
def test_the_python_of_a_page_runs(page: Path, workspace: Path) -> None:
    namespace: dict[str, Any] = {}
    if name_of(page) == "README.md":  # it takes two conditions for granted
        namespace["him"], namespace["her"] = np.random.default_rng(0).normal(size=(2, 20, 16))
    for _, text in blocks(page, "python"):
        source = text.replace('"gpt2"', '"mini"')  # the hub is out of reach
        exec(compile(source, str(page), "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, (_, text) in enumerate(blocks(page, "yaml"))
    ],
)
def test_a_configuration_is_understood(text: str, workspace: Path) -> None:
    (workspace / "block.yaml").write_text(text)
    layers = ["fit", "--config", "run.yaml"]
    if "\nanalyses:" in text:
        layers = ["analyze"]
    assert status_of([*layers, "--config", "block.yaml", "--print_config"]) == 0


def test_every_block_is_of_a_known_kind_and_no_exception_is_stale() -> None:
    """A block in a language that nothing here runs would not be tested at all."""
    for page in PAGES:
        for language, text in blocks(page):
            assert language in ("", "bash", "python", "yaml", "diff")
            if language in ("", "bash") and not commands_in(text):
                assert name_of(page) == "cache-format.md", text
            if language == "diff":
                assert "diff" in ELSEWHERE[name_of(page)]
    for listed, commands in ((ONLY_PARSED, OURS), (NOT_PALINKA, OTHERS)):
        for part in listed:
            assert any(part in command for command in commands)
