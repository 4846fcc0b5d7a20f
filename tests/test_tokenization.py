"""One rule for the token ids of a text, whatever reads it."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from palinka.__main__ import main
from palinka.analyses.reader import ActivationReader, Encoder
from palinka.analyses.stimuli import Contrast
from palinka.analyses.stimuli import Passage as PassageStimuli
from palinka.assets import mini_gpt2_folder
from palinka.atlas.server import LiveLatents
from palinka.autoencoders import KSparseAutoencoder
from palinka.cli.resume import load_module
from palinka.data import ActivationDataModule, Passage
from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.token_text import token_ids
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks import LatentEvolution
from palinka.training.callbacks.run_analyses import encoder_of

SITE = "blocks.3.mlp.pre"
TEXT = "Once upon a time <|endoftext|> the river rose, and him they saw."


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds BOS"])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The mini model with a tokenizer that adds a BOS token by itself, and one that does not."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(mini_gpt2_folder(), folder, dirs_exist_ok=True)
    if request.param:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        start = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{start[0]} $A", special_tokens=[start]
        )
        tokenizer.save_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] == start[1]
    return LanguageModelSpec(str(folder), device="cpu")


@pytest.mark.parametrize("bos", [False, True])
def test_all_that_read_a_text_read_the_same_ids(spec: LanguageModelSpec, bos: bool) -> None:
    model = LanguageModel.load(spec)
    tokenizer = model.tokenizer
    plain = tokenizer.backend_tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.eos_token_id in plain.ids  # as the backend reads the name of a special token
    (ids,) = token_ids(tokenizer, [TEXT])
    assert tokenizer.decode(ids) == TEXT
    assert not set(ids) & set(tokenizer.all_special_ids)
    whole = [tokenizer.bos_token_id, *ids] if bos else ids
    with torch.no_grad():  # hidden_states[4] is what the fourth block returns
        hidden = model.model(torch.tensor([whole]), output_hidden_states=True).hidden_states
    sites = {"blocks.3.resid": hidden[4][0, int(bos) :]}
    sites[SITE] = model.read(torch.tensor([whole]), [SITE])[SITE][0, int(bos) :]

    # texts given to the model itself
    assert model.tokenize([TEXT], bos=bos).ids.tolist() == [whole]
    read = model.read([TEXT], [SITE])
    assert read.tokens.tolist() == [ids]

    # training, validation and splicing
    for in_memory in (False, True):
        data = ActivationDataModule(
            spec, "blocks.3.resid", Passage(TEXT if in_memory else TEXT * 9), bos=bos,
            context_length=len(whole), validation_fraction=0, in_memory=in_memory,
        )  # fmt: skip
        assert data.source["bos"] is bos
        blocks = [data.train_spec.contexts, data.validation_contexts][in_memory]
        if in_memory:
            data.prepare_data()
            rows = data.validation_rows.read_rows(int(bos), len(whole))
            torch.testing.assert_close(rows, sites["blocks.3.resid"], rtol=1e-4, atol=1e-4)
        (block,) = islice(blocks(), 1)
        assert block.tokens.tolist() == whole

    # analyses and heatmaps
    torch.manual_seed(0)
    module = SparseAutoencoderModule(KSparseAutoencoder(model.width(SITE), 40, k=12)).eval()
    encoder = encoder_of(module, {"site": SITE, "bos": bos})
    reader = ActivationReader(spec, [encoder], lambda: model)
    prepared = PassageStimuli(TEXT).prepare(tokenizer)
    assert prepared.tokens == (tuple(ids),)
    latents = module.encode(sites[SITE]).detach().numpy()
    (found,) = reader.every_token(prepared.tokens, SITE)
    np.testing.assert_allclose(found, latents, rtol=1e-4, atol=1e-5)
    frames = [TEXT.replace("him", "{target}")] * 3
    pairs = Contrast({"male": "him", "female": "her"}, frames=frames).prepare(tokenizer)
    ((position,), *_) = pairs.pool
    (pooled,) = reader.pooled(pairs, [reader.view(SITE)]).values()
    np.testing.assert_allclose(pooled[0], latents[position], rtol=1e-4, atol=1e-5)

    # the atlas that is served, and the text drawn while a fit goes on
    live = LiveLatents(model, SITE, module, bos)
    assert [token for token, _ in live.answer(TEXT)["tokens"]] == ids
    np.testing.assert_allclose(live.answer(TEXT, 3)["values"], latents[:, 3], rtol=1e-3, atol=1e-5)
    data = ActivationDataModule(spec, SITE, Passage(TEXT), bos=bos, validation_fraction=0)
    data.loaded_language_model = model
    forming = LatentEvolution(text=TEXT)
    trainer: Any = Mock(is_global_zero=True, datamodule=data, global_step=0, loggers=[])
    forming.on_fit_start(trainer, module)
    torch.testing.assert_close(forming._rows, sites[SITE], rtol=1e-4, atol=1e-4)
    assert b"".join(forming._tokens).decode() == TEXT


FIT = [
    "fit", "--quiet", "--data.bos=true", "--data.train_tokens=1024",
    "--data.validation_tokens=256", "--data.batch_size=256", "--model.autoencoder.latent_dim=64",
    "--model.autoencoder.k=8", "--trainer.accelerator=cpu", "--trainer.max_steps=1",
]  # fmt: skip
VALIDATE = ["validate", "--quiet", "--ckpt_path=last", *FIT[3:6], "--trainer.accelerator=cpu"]


def test_a_checkpoint_remembers_bos(workspace: Path, refused: Callable[..., str]) -> None:
    assert main(FIT) == 0
    path = workspace / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert encoder_of(load_module(path), checkpoint.read(path)["source"]).bos
    export = ["export", "--ckpt_path", str(path), "--format=palinka", "--output=exported"]
    assert main(export) == 0
    assert Encoder.from_folder("exported").bos
    assert main([*VALIDATE, "--data.bos=true"]) == 0
    assert "trained with bos True, the data has False" in refused(*VALIDATE)


def test_an_id_beyond_the_embedding_is_rejected_before_training(
    workspace: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(mini_gpt2_folder(), "model")
    tokenizer = AutoTokenizer.from_pretrained("model")
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["zqzq"])
    tokenizer.save_pretrained("model")
    Path("text.txt").write_text("A zqzq rose in the night. " * 200)
    line = [
        "fit", "--quiet", "--data.language_model=model", "--data.corpus=TextFiles",
        "--data.corpus.path=text.txt", "--data.validation_fraction=0", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    for in_memory in ("false", "true"):
        answer = refused(*line, f"--data.in_memory={in_memory}")
        assert f"to {vocabulary}; expected 0 to {vocabulary - 1}" in answer
    with pytest.raises(InputError, match="use its tokenizer"):
        LanguageModel.load(LanguageModelSpec("model", device="cpu")).read(["A zqzq."], [SITE])
