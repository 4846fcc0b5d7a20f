"""What every test may need: one thread per test, a folder of its own, the real data."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

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


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("PALINKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    """Runs commands of palinka in processes of their own, and kills them."""

    def __init__(self, cache: Path) -> None:
        self.served = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_commands.py"))],
            env={**os.environ, "PALINKA_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, arguments: list[str], killed_after: float | None = None) -> int:
        """Run a command and return its exit status.

        Args:
            folder: Where to run it.
            arguments: What to run.
            killed_after: So many seconds after its log folder is there.
        """
        return self.run_on(1, folder, arguments, killed_after)[0]

    def run_on(
        self,
        processes: int,
        folder: Path,
        arguments: list[str],
        killed_after: float | None = None,
    ) -> list[int]:
        """Run a command on several devices, a process each, and return their exit statuses.

        Args:
            processes: How many.
            folder: Where to run it.
            arguments: What to run.
            killed_after: So many seconds after its log folder is there.
        """
        environments = [{}]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environments = [{**address, "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return self.run_at_once(folder, [arguments] * processes, environments, killed_after)

    def run_at_once(
        self,
        folder: Path,
        lines: list[list[str]],
        environments: list[dict[str, str]] | None = None,
        killed_after: float | None = None,
    ) -> list[int]:
        """Run commands at the same time, and return their exit statuses.

        Args:
            folder: Where to run them.
            lines: The arguments of each.
            environments: The environment variables of each.
            killed_after: So many seconds after their log folder is there.
        """
        assert self.served.stdin is not None
        assert self.served.stdout is not None
        folder.mkdir(exist_ok=True)
        environments = environments or [{}] * len(lines)
        request = {"lines": lines, "in": str(folder), "environments": environments}
        self.served.stdin.write(json.dumps(request) + "\n")
        self.served.stdin.flush()
        pids = json.loads(self.served.stdout.readline())
        if killed_after is not None:
            begun = time.monotonic()
            while not (folder / "lightning_logs").exists() and time.monotonic() - begun < 60:
                time.sleep(0.002)
            time.sleep(killed_after)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        statuses: list[int] = json.loads(self.served.stdout.readline())
        return statuses

    def close(self) -> None:
        assert self.served.stdin
        self.served.stdin.close()
        self.served.wait(20)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Processes that share a cache, and begin with everything imported."""
    commands = Commands(tmp_path_factory.mktemp("cache"))
    yield commands
    commands.close()


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
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
