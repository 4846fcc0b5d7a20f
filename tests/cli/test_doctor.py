import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from palinka.__main__ import main
from palinka.cli import doctor
from palinka.cli.doctor import FAIL, OK, WARN, Finding
from palinka.language_models import cpu


def test_every_check_passes_on_this_machine(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line[5:22].strip(): line for line in lines}
    assert {"python", "torch", "processor", "matrix products"} <= set(found)
    assert str(workspace / "cache") in found["caches"]
    assert "reads (1, 8, 512)" in found["bundled model"]
    assert "bad" not in {line[:5].strip() for line in lines}


def test_a_failed_check_decides_the_status_and_is_shown_when_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_import() -> Iterator[Finding]:
        yield Finding("numpy", "2.0")
        raise ImportError("libfoo.so:\nno such file\x1b[2J")

    monkeypatch.setattr(doctor, "CHECKS", (broken_import,))
    assert main(["doctor", "--quiet"]) == 1
    assert capsys.readouterr().out == "bad  broken import    libfoo.so: no such file\\x1b[2J\n"


def test_packages_are_compared_with_the_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=2.6", "numpy>=2", "scipy>=1", 'gguf>=0; extra == "gguf"']
    installed = {"torch": "2.5.1", "numpy": "2.1.0"}

    def version(name: str) -> str:
        if name in installed:
            return installed[name]
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    monkeypatch.setattr(doctor, "version", version)
    found = {finding.name: finding for finding in doctor.versions()}
    for name, state, text in (
        ("torch", FAIL, "2.5.1, but palinka needs >=2.6; pip install 'torch>=2.6'"),
        ("scipy", FAIL, "not installed"),
        ("gguf", WARN, "palinka[gguf]"),
    ):
        assert found[name].state == state
        assert text in found[name].text
    assert found["packages"].text == "numpy 2.1.0"


def test_folders_are_tried_and_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    named = str(tmp_path / "file" / "caches")
    monkeypatch.setenv("PALINKA_CACHE", named)
    found = next(doctor.folders())
    assert found.state == FAIL
    assert named in found.text
    assert "set PALINKA_CACHE" in found.text
    monkeypatch.setenv("PALINKA_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(doctor, "_LITTLE_SPACE", 1)
    found = next(doctor.folders())
    assert found.state == OK
    assert found.text.endswith("(does not exist yet)")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(doctor, "_LITTLE_SPACE", 10**24)
    assert next(doctor.folders()).state == WARN


def test_products_are_those_of_a_fit_and_slow_ones_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "select_matmul_backend", lambda: ("medium", "by oneDNN"))
    assert next(doctor.matrix_products()).text.endswith("; by oneDNN")
    for slow, state in (("82 times", WARN), (None, OK)):
        monkeypatch.setattr(cpu, "slow_products", lambda dtype, slow=slow: slow)
        _, found = doctor.matrix_products()
        assert found.state == state
        assert (slow or "times as long as float32's") in found.text
