import socket
import threading
import time
from pathlib import Path

import pytest

from palinka.__main__ import main
from palinka.cli import doctor as command
from palinka.cli import doctor as folders
from palinka.cli import doctor as hub
from palinka.cli import doctor as machine
from palinka.cli import doctor as software
from palinka.cli.doctor import Finding, State, within


def test_the_doctor_looks_at_everything_and_finds_this_machine_fit(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line[5:22].strip(): line for line in lines}
    assert set(command.LOOKS) - {"versions", "accelerator"} <= set(found)
    assert {"python", "torch", "lightning", "transformers"} <= set(found)
    assert str(workspace / "cache") in found["caches"]
    assert "reads (1, 8, 512)" in found["bundled model"]
    assert "HF_HUB_OFFLINE is set" in found["hub"]
    assert "bad" not in {line[:5].strip() for line in lines}


def test_what_is_broken_decides_the_status_and_stays_when_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("python", "there"), Finding("torch", "gone\x1b[2J", State.BROKEN)]
    monkeypatch.setattr(command, "look", lambda: iter(findings))
    assert main(["doctor", "--quiet"]) == 1
    assert capsys.readouterr().out == "bad  torch            gone\\x1b[2J\n"


def test_what_never_answers_is_waited_for_only_so_long() -> None:
    answer = threading.Event()

    def look() -> list[Finding]:
        answer.wait()
        return []

    (found,) = within(0.01, "disk", look)
    answer.set()
    assert found == Finding("disk", "no answer within 0.01 seconds", State.BROKEN)


def test_what_raises_is_a_finding() -> None:
    def look() -> list[Finding]:
        raise ImportError("libfoo.so:\nno such file")

    assert within(10.0, "torch", look) == [
        Finding("torch", "libfoo.so: no such file", State.BROKEN)
    ]


def test_packages_are_held_against_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        "torch>=2.6",
        "lightning!=2.6.2",
        "numpy>=2",
        "scipy>=1",
        'gguf>=0.1; extra == "gguf"',
    ]
    there = {"torch": "2.5.1", "lightning": "2.6.2", "numpy": "2.1.0"}
    monkeypatch.setattr(software, "requires", lambda name: asked)
    monkeypatch.setattr(software, "_installed", there.get)
    found = {finding.name: finding for finding in software.software()}
    assert found["torch"].state is State.BROKEN
    assert "pip install 'torch>=2.6'" in found["torch"].text
    assert found["lightning"].state is State.BROKEN
    assert found["scipy"].text.startswith("not installed")
    assert found["packages"].text == "numpy 2.1.0"
    assert found["gguf"].state is State.REMARK
    assert "palinka[gguf]" in found["gguf"].text


def test_a_folder_that_cannot_be_made_is_named_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    for named in ("/proc/nowhere/caches", str(tmp_path / "file" / "caches")):
        monkeypatch.setenv("PALINKA_CACHE", named)
        (found,) = folders.caches()
        assert found.state is State.BROKEN
        assert named in found.text
        assert "set PALINKA_CACHE" in found.text


def test_little_room_is_remarked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALINKA_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(folders, "_LITTLE", 1)
    (found,) = folders.caches()
    assert found.state is State.FINE
    assert found.text.endswith("(not there yet)")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(folders, "_LITTLE", 10**24)
    assert folders.caches()[0].state is State.REMARK


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Takes connections, and never says a word."""
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    return listening


def test_a_hub_that_is_silent_is_no_failure(
    endpoint: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    with endpoint:
        (found,) = hub.hub()
    assert found.state is State.REMARK
    assert "not reached" in found.text


def test_a_hub_that_refuses_has_answered(endpoint: socket.socket) -> None:
    def answer() -> None:
        talking, _ = endpoint.accept()
        with talking:
            talking.recv(1000)
            talking.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            time.sleep(0.01)

    answering = threading.Thread(target=answer)
    with endpoint:
        answering.start()
        (found,) = hub.hub()
        answering.join()
    assert found.state is State.FINE


def test_the_choice_of_products_is_the_one_that_a_fit_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "choose_precision", lambda trials: "medium")
    assert "multiply float32 by oneDNN" in machine.products()[0].text
    monkeypatch.setattr(machine, "choose_precision", lambda trials: "highest")
    assert "multiply float32 as torch does" in machine.products()[0].text


def test_products_of_bfloat16_are_remarked_on_where_they_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for slow, state in (("82 times", State.REMARK), (None, State.FINE)):
        monkeypatch.setattr(machine, "slow_products", lambda dtype, slow=slow: slow)
        found = machine.products()[1]
        assert found.name == "bfloat16"
        assert found.state is state
        assert (slow or "times as long as float32's") in found.text


def test_processor_and_accelerators_are_named() -> None:
    assert "cores" in machine.processor()[0].text
    assert machine.accelerators()
