import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.atlas import WriteAtlas
from palinka.atlas.analyses import read_analyses
from palinka.atlas.facts import LatentFacts
from palinka.atlas.site import PAGES, About, packed, script, short, write_site
from palinka.atlas.text import BEFORE
from palinka.errors import InputError


def data(site: Path, name: str) -> Any:
    return received(name, (site / "data" / f"{name}.js").read_text(encoding="ascii"))


def received(name: str, text: str) -> Any:
    """Value of a name in the call in a script."""
    found, value = json.loads(f"[{text[len('palinka.receive(') : -3]}]")
    assert found == name
    return value


def unpacked(value: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), value["kind"])


@pytest.fixture
def site(tmp_path: Path, facts: LatentFacts, about: About, findings: Path) -> Path:
    analyses = read_analyses(findings, 150, about.site)
    return write_site(tmp_path / "atlas", facts, about, analyses).parent


def test_every_number_of_the_overview_is_there(site: Path, facts: LatentFacts) -> None:
    overview = data(site, "overview")
    assert (overview["latents"], overview["rows"], overview["chunk"]) == (150, 12345, 64)
    columns = {column["key"]: unpacked(column["values"]) for column in overview["columns"]}
    np.testing.assert_allclose(columns["density"], facts.report.statistics.density, rtol=1e-6)
    assert np.isnan(columns["activation"][7]), "a dead latent has no mean"
    assert "geography/place/score" in columns
    (fvu, delta) = overview["metrics"]
    assert (fvu["value"], fvu["unit"], fvu["low"]) == (10.879, "%", None)
    assert (delta["low"], delta["high"]) == (0.024641, 0.034962)
    assert len(data(site, "labels")) == len(data(site, "promoted")) == 150
    assert all(column["unit"] for column in overview["columns"])


def test_a_latents_record_holds_its_windows(site: Path, facts: LatentFacts) -> None:
    records = data(site, "latents-0001")
    assert len(records) == 64
    assert len(data(site, "latents-0002")) == 150 - 128
    latent = 70
    record, ids = records[latent - 64], unpacked(data(site, "vocabulary")["ids"])
    places = unpacked(record["top"]["tokens"]).reshape(4, -1)
    none = np.iinfo(places.dtype).max
    expected = facts.top.tokens[latent]
    np.testing.assert_array_equal(places == none, expected < 0)
    np.testing.assert_array_equal(ids[places[places < none]], expected[expected >= 0])
    values = np.zeros(expected.shape)
    for row, flat in enumerate(record["top"]["activations"]):
        values[row, flat[::2]] = flat[1::2]
    np.testing.assert_allclose(values, facts.top.activations[latent], rtol=1e-3)
    assert sum(record["histogram"]["counts"]) == facts.histogram.counts[latent].sum()
    dead = data(site, "latents-0000")[7]
    assert dead["top"]["columns"] == dead["tokens"] == dead["histogram"]["counts"] == []


def test_a_token_is_found_with_the_latent_that_fires_most_on_it(
    site: Path, facts: LatentFacts
) -> None:
    index, vocabulary = data(site, "tokens"), data(site, "vocabulary")
    texts = [vocabulary["texts"][place] for place in unpacked(index["places"])]
    assert texts == sorted(texts, key=lambda text: text.strip().casefold())
    at = texts.index(" word17")
    file = data(site, f"tokens-{at // index['chunk']:04d}")
    start = sum(file["sizes"][: at % index["chunk"]])
    assert unpacked(file["latents"])[start] == 5
    assert unpacked(file["means"])[start] == unpacked(file["maxima"])[start] == 50.0
    assert unpacked(index["counts"])[at] == 1
    label, (place, *numbers) = data(site, "labels")[5], data(site, "latents-0000")[5]["tokens"][0]
    assert label.startswith("word17 · ")
    assert (vocabulary["texts"][int(place)], numbers) == (" word17", [1, 50, 50])


def test_divided_characters_are_shown_whole_where_they_stand_together(
    tmp_path: Path, make_facts: Callable[..., LatentFacts], about: About
) -> None:
    facts = make_facts(10, [b" a", b"\xf0\x9f", b"\x98\x80"])
    facts.top.tokens[0, 0] = 0
    facts.top.tokens[0, 0, BEFORE : BEFORE + 2] = 1, 2
    site = write_site(tmp_path / "atlas", facts, about).parent
    shown = data(site, "latents-0000")[0]["top"]["shown"][0]
    assert shown == {str(BEFORE): "⟨F0 9F⟩", str(BEFORE + 1): "😀"}


def test_an_atlas_is_replaced_and_nothing_else_is(
    tmp_path: Path, site: Path, facts: LatentFacts, about: About
) -> None:
    (site / "data" / "latents-9999.js").write_text("old")
    write_site(site, facts, about)
    assert not (site / "data" / "latents-9999.js").exists()
    (site / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="already exists and is not an atlas"):
        write_site(site, facts, about)
    with pytest.raises(InputError, match="is not an atlas"):
        WriteAtlas(str(site))  # before the run
    assert (site / "thesis.txt").read_text() == "precious"
    with pytest.raises(InputError, match="is a file"):
        write_site(site / "thesis.txt", facts, about)


def test_nothing_half_written_is_left(
    tmp_path: Path, facts: LatentFacts, about: About, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("palinka.atlas.site.script", full)
    with pytest.raises(OSError, match="No space left"):
        write_site(tmp_path / "atlas", facts, about)
    assert list(tmp_path.iterdir()) == []


def test_the_page_names_every_file_and_no_address() -> None:
    html = (PAGES / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="(assets/[^"]+)"', html))
    assert named == {f"assets/{path.name}" for path in (PAGES / "assets").iterdir()}
    for path in [PAGES / "index.html", *(PAGES / "assets").iterdir()]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not fetched
        assert not re.search(r"https?:|//[a-z]+\.[a-z]", text), path


def test_scripts_write_no_markup() -> None:
    for path in (PAGES / "assets").glob("*.js"):
        text = path.read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                    "new Function", "DOMParser", "setTimeout("):  # fmt: skip
            assert way not in text, f"{path.name} has {way}"


@settings(max_examples=60)
@given(st.text())
def test_no_text_leaves_its_script(text: str) -> None:
    written = script("name", {"text": text, text: 1})
    assert written.isascii()
    assert "<" not in written
    assert written.count("\n") == 1
    assert received("name", written) == {"text": text, text: 1}


def test_numbers_are_finite_and_little_endian() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script("name", float("nan"))
    data = base64.b64decode(packed(np.array([[1.0, 2.0]]), "float32")["data"])
    assert data == b"\0\0\x80?\0\0\0@"
    assert (short(0.123456), short(float("inf"))) == (0.1235, None)
