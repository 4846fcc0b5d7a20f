"""Common fixtures: one thread per test, an own folder, the real data."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from palinka.analyses.reader import ActivationReader

# Set before torch is imported: the suite's many small operations do not gain from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).parent.parent
sys.path.append(str(Path(__file__).parent))  # so that processes find `processes.py`


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests to `-m slow`, and say why real-data tests are skipped."""
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in (config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
        if item.get_closest_marker("real_data") and not os.environ.get("PALINKA_DATA"):
            item.add_marker(pytest.mark.skip(reason="PALINKA_DATA names no folder of real data"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    return Path(os.environ["PALINKA_DATA"])


@pytest.fixture(scope="session")
def latents_study(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Entries that find latents of the middle MLP in some prompts, and change them in others."""
    folder = tmp_path_factory.mktemp("stimuli")
    him_her, he_she = (str(folder / f"{name}.yaml") for name in ("him_her", "he_she"))
    for path in (him_her, he_she):  # a part of the shipped ones, with as many templates as needed
        shipped = REPOSITORY / "configs/stimuli" / Path(path).name
        content = yaml.safe_load(shipped.read_text())
        if path == him_her:
            content["frames"] = content["frames"][:12]
        else:
            content["templates"] = dict([*content["templates"].items()][:6])
            content["slots"] = {name: words[::5] for name, words in content["slots"].items()}
        Path(path).write_text(yaml.safe_dump(content))
    found = {"selection": {"analysis": "him_her", "by": "t", "k": 12, "side": "both"}}
    latents = {"components": ["latents"]}
    studies: dict[str, dict[str, Any]] = {
        "activation_patching": latents | found,
        "ablation": latents | found | {"value": ["zero", "mean"]},
        "lesion": found | {"draws": 20},
        "attribution_patching": latents | {"verify": 3},
    }
    return [
        {"name": "him_her", "analysis": "unit_tuning", "stimuli": him_her},
        *({"name": name, "analysis": name, "stimuli": he_she, "intervention": settings}
          for name, settings in studies.items()),
    ]  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("PALINKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs commands in a new folder with a cache of its own; gives the folder."""
    from palinka.__main__ import main

    def run(*lines: list[str]) -> Path:
        folder = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PALINKA_CACHE", str(folder / "cache"))
            patch.chdir(folder)
            assert [main(line) for line in lines] == [0] * len(lines)
        return folder

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that is refused; gives the one line that says so."""
    from palinka.__main__ import main

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == 2
        lines = capsys.readouterr().err.splitlines()
        (line,) = [each for each in lines if "palinka: error: " in each]
        return line.partition("palinka: error: ")[2]

    return run


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are files without a picture, but for slow tests; those of figures draw them.

    Names of points are placed before the figure has its layout.
    """

    def savefig(_: object, file: Any, **options: object) -> None:
        (file.write if hasattr(file, "write") else file.write_bytes)(bytes(24))

    if "slow" not in request.keywords:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
        monkeypatch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda _: None)


@pytest.fixture(scope="session")
def mini() -> "ActivationReader":
    """Neurons of the bundled model, loaded once."""
    from palinka.analyses.reader import ActivationReader
    from palinka.language_models import LanguageModelSpec

    return ActivationReader(LanguageModelSpec("mini"))


@pytest.fixture
def stimuli(tmp_path: Path) -> Callable[..., str]:
    """Writes a stimuli file and gives its path."""

    def write(name: str = "stimuli.yaml", **content: object) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


class Commands:
    """Runs commands of palinka in processes of their own, which begin with everything imported."""

    def __init__(self, cache: Path) -> None:
        self.context, self.cache = multiprocessing.get_context("forkserver"), str(cache)
        self.context.set_forkserver_preload(["palinka.cli.fit", "warm"])
        paths = [str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(paths))
            forkserver.ensure_running()

    def start(self, folder: Path, arguments: list[str], **environment: str) -> Any:
        """Start a command; its output goes to `output.txt` of the folder."""
        from processes import run_command

        folder.mkdir(exist_ok=True)
        given = (str(folder), arguments, {"PALINKA_CACHE": self.cache, **environment})
        process = self.context.Process(target=run_command, args=given)
        process.start()
        return process

    def run(self, folder: Path, arguments: list[str], killed_after: float | None = None) -> int:
        """Run a command, kill it so many seconds after its log folder is there; its exit status."""
        process = self.start(folder, arguments)
        if killed_after is not None:
            while process.is_alive() and not (folder / "lightning_logs").exists():
                time.sleep(0.002)
            time.sleep(killed_after)
            process.kill()
        return self.ended(process)[0]

    def run_on(self, devices: int, folder: Path, arguments: list[str]) -> list[int]:
        """Run a command on several devices, a process each; their exit statuses."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            main = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = map(str, range(devices))
        return self.ended(*[self.start(folder, arguments, LOCAL_RANK=n, **main) for n in ranks])

    def ended(self, *processes: Any) -> list[int]:
        """Wait for processes; their exit statuses, negative for the signal that ended one."""
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Processes that share a cache."""
    return Commands(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def mini_tokenizer() -> "PreTrainedTokenizerBase":
    from palinka.language_models import LanguageModelSpec

    return LanguageModelSpec("mini").tokenizer()


@pytest.fixture(scope="session")
def byte_tokenizer() -> "PreTrainedTokenizerBase":
    """Every byte a token; the end of a text has a name with a space and an accent."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<à la fin>")


@pytest.fixture(scope="session")
def piece_tokenizer() -> "PreTrainedTokenizerBase":
    """As SentencePiece models do it: `▁` for a space, one put in front, bytes as `<0xF0>`."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehimorsw."]
    merges = [("h", "i"), ("hi", "m"), ("▁", "him"), ("▁", "a")]
    pieces += ["".join(merge) for merge in merges]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
