"""`palinka export` and `palinka import`, as they are typed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from palinka.__main__ import main
from palinka.cli.convert import _module, _provenance
from palinka.language_models import LanguageModelSpec
from palinka.language_models.sites import FAMILIES
from palinka.training import SparseAutoencoderModule

DATA = [
    "--data.train_tokens=1024", "--data.validation_tokens=512", "--data.batch_size=256",
    "--data.center=true", "--data.unit_norm=true", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
SMALL = ["--model.autoencoder.latent_dim=64", "--model.autoencoder.k=8", "--trainer.max_epochs=1"]
FIT = Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def fitted(run_once: Any) -> Any:
    return run_once(["fit", *DATA, *SMALL])


@pytest.fixture
def in_fitted(fitted: Path, workspace: Path) -> Path:
    """A copy of that folder, which is the working folder."""
    shutil.copytree(fitted, workspace, dirs_exist_ok=True)
    return workspace


def export(library: str, *more: str) -> int:
    return main(["export", "--ckpt_path", str(FIT), "--format", library, "--output=out", *more])


@pytest.mark.parametrize(
    ("library", "inner"), [("saelens", "."), ("sparsify", "h.3.mlp.c_fc"), ("palinka", ".")]
)
def test_there_and_back(library: str, inner: str, in_fitted: Path) -> None:
    before = os.umask(0o027)
    assert export(library, "--license=mit") == 0
    os.umask(before)
    for path in (Path("out"), *Path("out").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640)
    assert main(["import", str(Path("out") / inner), "--output=again.ckpt"]) == 0
    module = SparseAutoencoderModule.load_from_checkpoint(FIT).eval()
    again = SparseAutoencoderModule.load_from_checkpoint("again.ckpt").eval()
    x = torch.randn(50, 512) * 0.1
    torch.testing.assert_close(again.encode(x), module.encode(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        again(x).reconstruction, module(x).reconstruction, rtol=1e-5, atol=1e-6
    )
    stored = torch.load("again.ckpt", weights_only=True)
    assert stored["source"]["site"] == "blocks.3.mlp.pre"
    assert "cache_identity" not in stored
    card = Path("out/README.md").read_text()
    for expected in ('license: "mit"', "`blocks.3.mlp.pre`", "`BundledSample`", "val/fvu"):
        assert expected in card
    assert str(in_fitted) not in card


def test_saelens_gets_its_names_of_model_and_site(in_fitted: Path) -> None:
    assert export("saelens") == 0
    metadata = json.loads(Path("out/cfg.json").read_text())["metadata"]
    expected = {
        "model_name": "mini", "hook_name": "blocks.3.mlp.hook_pre", "context_size": 128,
        "hf_hook_name": "transformer.h.3.mlp.c_fc", "prepend_bos": False,
    }  # fmt: skip
    assert metadata.items() >= expected.items()
    weights = load_file("out/sae_weights.safetensors")
    scale = SparseAutoencoderModule.load_from_checkpoint(FIT).scaling.scale
    torch.testing.assert_close(weights["W_enc"].T / scale**2, weights["W_dec"])


@pytest.mark.parametrize(
    ("library", "file", "note"),
    [
        ("saedashboard", "batch-0.json", "export saedashboard: the site blocks.3.mlp.pre has no"),
        ("neuronpedia", "gpt2-small/3-palinka-mlp-pre-64__b/source.jsonl", "written without one"),
        ("delphi", "latents/transformer.h.3.mlp.c_fc/config.json", ""),
    ],
)
def test_latents_are_exported_with_texts(
    library: str, file: str, note: str, in_fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--model_id=gpt2-small", "--suffix=b"] if library != "delphi" else []
    assert export(library, "--data.validation_tokens=256", *named) == 0
    assert note in capsys.readouterr().out
    text = (Path("out") / file).read_text()
    assert str(in_fitted) not in text
    assert json.loads(text).get("num_prompts", 2) == 2  # of 128 tokens, not the 4 of the fit
    if library == "delphi":
        assert json.loads(text)["n_tokens"] == 256


@pytest.mark.parametrize(
    ("site", "module"),
    [
        ("blocks.2.mlp.post", "transformer.h.2.mlp.act"),
        ("blocks.2.mlp.out", "transformer.h.2.mlp"),
        ("blocks.2.attn.q", None),  # a third of a module's output
        ("blocks.2.attn.z", None),
        ("blocks.2.attn.z.1", None),
        ("blocks.2.resid_mid", None),
    ],
)
def test_the_module_whose_output_a_site_is(site: str, module: str | None) -> None:
    assert _module(LanguageModelSpec("mini"), site) == (module, 6)


@pytest.mark.parametrize("norm", [False, True])
def test_an_output_before_a_norm_has_no_hook(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens' hook is what is added to the stream."""
    family = FAMILIES["gpt2"]
    monkeypatch.setitem(FAMILIES, "gpt2", family._replace(mlp_norm="ln_2" if norm else None))
    data = {"language_model": {"name": "mini"}, "corpus": None}
    found = {
        part: _provenance(
            {"datamodule_hyper_parameters": data, "source": {"site": f"blocks.2.mlp.{part}"}},
            "saelens",
        ).hook
        for part in ("out", "write")
    }
    hook = "blocks.2.hook_mlp_out"
    assert found == {"out": None if norm else hook, "write": hook}


def test_refusals(in_fitted: Path, refused: Any) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("")
    assert export("palinka") == 0
    assert main(["import", "out"]) == 0
    before = sorted(in_fitted.rglob("*"))
    exporting = f"export --ckpt_path {FIT} --format saelens --output="
    for line, expected in (
        (f"{exporting}taken", "taken already exists"),
        (f"{exporting}taken/file/x", "taken/file: File exists"),
        (f"{exporting}new --license=a&b", "'a&b' is not an identifier"),
        (
            f"{exporting}new --explanations=taken/file".replace("saelens", "delphi"),
            "taken/file is not an explanations.json",
        ),
        (f"{exporting}new --data.bos=true", "export saelens has no use for --data; leave it out"),
        (f"{exporting}new --suffix=b --explanations=x", "use for --explanations, --suffix; leave"),
        (
            f"export --ckpt_path {FIT} --format delphi --license=mit --model_id=x --output=new",
            "export delphi has no use for --license, --model_id; leave it out",
        ),
        ("import nowhere", "no folder nowhere"),
        (f"import out --output={FIT}", "already exists"),
        (f"import out --output={FIT}/x.ckpt", "last.ckpt: File exists; choose another path"),
        ("import out --output=x.ckpt --revision=main", "only the hub has revisions"),
        (" ".join(["fit", *DATA, *SMALL, "--ckpt_path=out.ckpt"]), "weights alone"),
        (
            " ".join(["validate", *DATA, "--ckpt_path=out.ckpt", "--data.site=blocks.2.mlp.pre"]),
            "blocks.3.mlp.pre",
        ),
    ):
        assert expected in refused(*line.split())
    assert sorted(in_fitted.rglob("*")) == before
