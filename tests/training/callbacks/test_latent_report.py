import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationDataModule
from palinka.errors import escape_control_chars
from palinka.language_models.direct_effect import direct_path
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import ReportLatents


def validated(folder: Path, callback: ReportLatents, **options: Any) -> tuple[Any, Any, Path]:
    torch.manual_seed(0)
    data = ActivationDataModule(
        context_length=32, train_tokens=320, validation_tokens=320, batch_size=64, **options
    )
    module = SparseAutoencoderModule(KSparseAutoencoder(data.width, 20, k=3))
    module.scaling.set(torch.randn(data.width), 0.5)
    trainer = Trainer(
        accelerator="cpu", logger=CSVLogger(folder), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
        default_root_dir=folder,
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    return data, module, Path(trainer.log_dir or "") / "analyses" / "latents"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_for_each_latent_and_the_texts_where_it_is_most_active(workspace: Path) -> None:
    data, module, folder = validated(
        workspace, ReportLatents(contexts=4, tokens=3, nearest=2), skip_first=True
    )
    rows = data.validation_rows
    x = rows.read_rows(0, rows.rows)
    latents = module.encode(x).detach()
    arrays = np.load(folder / "arrays.npz")
    np.testing.assert_allclose(arrays["density"], 100.0 * (latents > 0).double().mean(0))
    top = latents.topk(4, dim=0).values.T
    np.testing.assert_array_equal(arrays["top_activation"], top)
    assert arrays["nearest"].shape == (20, 2)
    model = data.loaded_language_model
    logits = direct_path(model, "blocks.3.mlp.pre")(module.autoencoder.dictionary.detach() / 0.5)
    np.testing.assert_array_equal(arrays["raised"], logits.topk(3).indices)
    np.testing.assert_allclose(arrays["lowered_by"], -(-logits).topk(3).values.detach(), rtol=1e-4)

    described = table(folder / "latents.csv")
    assert [int(row["latent"]) for row in described] == list(range(20))
    words = [model.tokenizer.decode([token]) for token in arrays["raised"][7]]
    assert described[7]["raises"] == " ".join(map(repr, words))
    contexts = table(folder / "contexts.csv")
    assert len(contexts) == int((arrays["top_row"] >= 0).sum())
    for row in contexts[:30]:
        latent, rank = int(row["latent"]), int(row["rank"]) - 1
        place = rows.context(int(arrays["top_row"][latent, rank]))
        assert (int(row["document"]), int(row["position"])) == (place.document, place.position)
        token = model.tokenizer.decode([int(place.tokens[place.offset])])
        assert f"⟦{escape_control_chars(token)}⟧" in row["text"]


def test_a_site_without_a_direct_path_has_a_report_that_says_so(workspace: Path) -> None:
    _, _, folder = validated(workspace, ReportLatents(), site="blocks.1.attn.q")
    record = json.loads((folder / "findings.json").read_text())
    (note,) = record["notes"][""]
    assert "blocks.1.attn.q has no direct path" in note
    assert set(table(folder / "latents.csv")[0]) == {
        "latent", "density", "activation", "nearest", "nearest_cosine",
    }  # fmt: skip
