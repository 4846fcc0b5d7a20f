import pytest
import yaml

from palinka.autoencoders import JumpReLUAutoencoder, KSparseAutoencoder
from palinka.autoencoders.files import Provenance, model_card

HOSTILE = "x`|<script>alert(1)</script>\n# A heading\n```\n---\n[link](javascript:x)\x1b[31m![i](http://x)"


def test_it_says_what_is_known() -> None:
    provenance = Provenance(
        language_model_name="openai-community/gpt2",
        language_model="openai-community/gpt2@607a30d",
        site="blocks.6.mlp.pre",
        corpus="TextFiles books",
        tokens=8192000,
        metrics={
            "val/fvu": 0.25,
            "val/ce_spliced": 3.5,
            "val_interval/ce_spliced/low": 3.25,
            "val_interval/ce_spliced/high": 3.75,
        },
        license="cc-by-4.0",
    )
    card = model_card(KSparseAutoencoder(6), provenance, "SAELens")
    for expected in (
        "`openai-community/gpt2@607a30d`",
        "`blocks.6.mlp.pre`",
        "`TextFiles books`",
        "`8,192,000`",
        "| `val/fvu` | 0.25 |  |",
        "| `val/ce_spliced` | 3.5 | 3.25 to 3.75 |",
        'formats.load("DIR")',
        'SAE.load_from_disk("DIR")',
    ):
        assert expected in card
    assert "val_interval" not in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"


def test_little_is_said_where_little_is_known() -> None:
    card = model_card(JumpReLUAutoencoder(6), Provenance())
    assert "None" not in card
    assert "held-out" not in card
    assert 'palinka.Autoencoder.from_pretrained("DIR")' in card
    assert 'license: "unknown"' in card


@pytest.mark.parametrize(
    "field", ["language_model", "language_model_name", "site", "corpus", "hook"]
)
def test_nothing_that_others_wrote_is_markup(field: str) -> None:
    provenance = Provenance(**{field: HOSTILE}, metrics={HOSTILE: 1.0})
    for inner in (".", HOSTILE, '"; import os'):
        card = model_card(KSparseAutoencoder(6), provenance, "sparsify", inner)
        plain = [line for line in card.splitlines() if line.startswith(("#", "```", "---"))]
        assert len(plain) == 2 + 3 + 4  # front matter, headings, two blocks of code
        for line in card.splitlines():
            if "<script>" in line:
                # A single span of code, in one cell of a table.
                assert line.count("`") == 2
                assert line.count("|") in (3, 4)
                assert "<script>" in line.split("`")[1]
        assert "\x1b" not in card
        assert "import os" not in card


def test_what_has_another_type_is_dropped() -> None:
    known = {"site": "blocks.1.resid", "bos": False, "context_length": 128}
    other = {"hook": "", "module": 3, "corpus": None, "language_model": ["x"], "more": "text"}
    assert Provenance.from_dict({**known, **other}).to_dict() == known
    assert Provenance.from_dict({"bos": 1, "context_length": True}) == Provenance()
