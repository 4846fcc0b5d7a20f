"""Tasks of CSV files and of sets of sae-probes."""

import csv
from pathlib import Path
from typing import Any

import pytest

from palinka.errors import InputError
from palinka.evaluation.tasks import read_csv, read_sae_probes, text_task


def write(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def rows_of(texts: list[str], targets: list[str]) -> list[dict[str, str]]:
    return [{"prompt": x, "target": y} for x, y in zip(texts, targets, strict=True)]


def test_copies_are_removed_and_texts_with_two_labels_dropped(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(300)]
    targets = ["10" if i % 2 else "9" for i in range(300)]
    rows = rows_of([*texts, "TEXT  1", "text 2"], [*targets, "10", "10"])
    task, notes = text_task("my.csv", read_csv(write(tmp_path / "my.csv", rows)))
    assert len(task.texts) == 299 == len({*task.groups})
    assert "text 2" not in task.texts
    assert [f"text {i}" in task.texts for i in (1, 3)] == [True, True]
    assert (task.labels == [int(text.split()[1]) % 2 == 1 for text in task.texts]).all()
    assert notes == ["my.csv: 3 of 302 rows are copies; 299 texts are left"]
    fewer, _ = text_task("my.csv", rows, "9", items=100)
    assert (len(fewer.texts), fewer.labels.sum()) == (100, 50)
    whole, _ = text_task("my.csv", rows, items=None)
    assert len(whole.texts) == 302


@pytest.mark.parametrize(
    ("rows", "positive", "message"),
    [
        ([{"text": "a", "label": "b"}], None, "columns text, label; expected prompt"),
        (rows_of(["a", "b", "c"], ["a", "b", "c"]), None,
         r"target has 3 values \(a, b, c\); name the positive one with my.csv:a"),
        (rows_of(["a", "b"], ["no", "yes"]), "yse", r"never 'yse' \(did you mean 'yes'"),
        (rows_of([f"t {i}" for i in range(400)], ["1"] * 31 + ["0"] * 369), None,
         "31 positives after removing copies; a task needs at least 100"),
    ],
)  # fmt: skip
def test_faults_of_csv_files(rows: Any, positive: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_task("my.csv", rows, positive)


def test_a_row_without_a_target_and_another_encoding_are_named(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("prompt,target\na,0\nb,1\nc\n")
    with pytest.raises(InputError, match="target has 3 values"):
        text_task("my.csv", read_csv(str(path)))
    path.write_bytes("prompt,target\né,1\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        read_csv(str(path))


def test_sets_of_sae_probes_are_read_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    import subprocess

    with pytest.raises(InputError, match="sae_probes is not installed; pip install sae-probes"):
        read_sae_probes("92_glue_sst2")
    if not shutil.which("zstd"):
        pytest.skip("needs the program zstd")
    folder = tmp_path / "sae_probes" / "data" / "cleaned_data"
    folder.mkdir(parents=True)
    (tmp_path / "sae_probes" / "__init__.py").write_text("raise RuntimeError('imported')")
    rows = rows_of(["a", "b, c"], ["0", "1"])
    write(folder / "92_glue_sst2.csv", rows)
    listed = {"Source": "GLUE ", "Dataset save name": "cleaned_data/92_glue_sst2.csv"}
    write(folder.parent / "probing_datasets_MASTER.csv", [listed])
    for file in [*folder.parent.rglob("*.csv")]:
        subprocess.run(["zstd", "-q", "--rm", file], check=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_sae_probes("92_glue_sst2") == (rows, "GLUE")
    with pytest.raises(InputError, match=r"not a set of sae-probes \(did you mean '92_glue_sst2'"):
        read_sae_probes("92_glue_sts2")
