from pathlib import Path

import pytest

from palinka.data import format as sealed_module
from palinka.data.format import read_sealed, sealed, write_sealed
from palinka.errors import InputError

MEMBERS = {"format": "test", "numbers": [1, 0.1, -2.5e-300], "nested": {"a": None, "ü": "\x00"}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_sealed(path, MEMBERS)
    assert read_sealed(path) == MEMBERS
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_every_single_bit_flip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    content = sealed({"format": "test", "sum": [1e-3, 2]})
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"file\.json: damaged, its checksum does not match"):
            read_sealed(path)


@pytest.mark.parametrize("length", [0, 1, 50, -1])
def test_a_truncated_file_is_noticed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(sealed(MEMBERS)[:length])
    with pytest.raises(InputError, match="damaged"):
        read_sealed(path)


def seal(body: bytes) -> bytes:
    return body + sealed_module._seal(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"\xff", b'{"a": ' + b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b",\n", b"[1, "],
)
def test_sealed_nonsense_is_an_error_line(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(seal(body))
    with pytest.raises(InputError, match="not valid JSON"):
        read_sealed(path)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_module, "_LARGEST_BYTES", 20)
    path = tmp_path / "file.json"
    write_sealed(path, MEMBERS)
    with pytest.raises(InputError, match="damaged"):
        read_sealed(path)


def test_symbolic_links_and_folders_are_refused(tmp_path: Path) -> None:
    write_sealed(tmp_path / "file.json", MEMBERS)
    (tmp_path / "link.json").symlink_to("file.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"link\.json: a symbolic link"):
        read_sealed(tmp_path / "link.json")
    with pytest.raises(InputError, match=r"folder\.json"):
        read_sealed(tmp_path / "folder.json")
    with pytest.raises(InputError, match=r"none\.json: not found"):
        read_sealed(tmp_path / "none.json")
