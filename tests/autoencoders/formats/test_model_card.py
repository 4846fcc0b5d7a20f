import pytest
import yaml

from palinka.autoencoders import JumpReLUAutoencoder, KSparseAutoencoder
from palinka.autoencoders.formats import Origin
from palinka.autoencoders.formats.load import is_license, model_card

HOSTILE = "x`|<script>alert(1)</script>\n# A heading\n```\n---\n[link](javascript:x)\x1b[31m![i](http://x)"


def test_it_says_what_is_known() -> None:
    origin = Origin(
        language_model="openai-community/gpt2",
        identity="openai-community/gpt2@607a30d",
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
    card = model_card(KSparseAutoencoder(6, 10, 3), origin, "saelens")
    for expected in (
        "`openai-community/gpt2@607a30d`",
        "`blocks.6.mlp.pre`",
        "`TextFiles books`",
        "`8,192,000`",
        "| `val/fvu` | 0.25 |  |",
        "| `val/ce_spliced` | 3.5 | 3.25 to 3.75 |",
        'palinka.Autoencoder.from_pretrained("DIR")',
        'SAE.load_from_disk("DIR")',
        "exactly k latents",
    ):
        assert expected in card
    assert "val_interval" not in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"


def test_little_is_said_where_little_is_known() -> None:
    card = model_card(JumpReLUAutoencoder(6), Origin(), "palinka")
    assert "None" not in card
    assert "held-out" not in card
    assert "exactly k" not in card
    assert 'license: "unknown"' in card


@pytest.mark.parametrize("field", ["language_model", "identity", "site", "corpus", "hook"])
def test_nothing_that_others_wrote_is_markup(field: str) -> None:
    origin = Origin(**{field: HOSTILE}, metrics={HOSTILE: 1.0})
    for inner in (".", HOSTILE, '"; import os'):
        card = model_card(KSparseAutoencoder(6, 10, 3), origin, "sparsify", inner)
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("mit", True), ("cc-by-4.0", True), ("unknown", True), ("", False), ("MIT\n", False),
     ('x"\nother: 1', False), ("a" * 60, False)],
)  # fmt: skip
def test_licenses(text: str, expected: bool) -> None:
    assert is_license(text) is expected
