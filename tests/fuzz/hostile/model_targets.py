"""Autoencoders and language models: saved folders, checkpoints, configurations."""

import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

from hostile.containers import change_checkpoint, change_safetensors
from hostile.folders import change_folder
from hostile.target import Target
from hostile.texts import change_bytes
from hostile.values import change
from palinka.assets import mini_gpt2_folder
from palinka.autoencoders import Autoencoder, KSparseAutoencoder
from palinka.language_models import LanguageModelSpec
from palinka.training import SparseAutoencoderModule
from palinka.training.checkpoint import describe, read, settings_of


class PretrainedFolder(Target):
    """An autoencoder as `save_pretrained` writes it."""

    name = "pretrained"

    def prepare(self) -> None:
        sae = KSparseAutoencoder(6, 10, 3, tied=False, encoder_bias=True, decoder_bias=True)
        sae.save_pretrained(self.originals)

    def change(self, random: Random, inside: Path) -> None:
        kind = random.random()
        config, weights = inside / "config.json", inside / "model.safetensors"
        if kind < 0.4:
            config.write_text(json.dumps(change(random, json.loads(config.read_bytes()))))
        elif kind < 0.5:
            config.write_bytes(change_bytes(random, config.read_bytes()))
        elif kind < 0.9:
            weights.write_bytes(change_safetensors(random, weights.read_bytes()))
        else:
            change_folder(random, inside, inside.parent / "outside")

    def read(self, inside: Path) -> None:
        sae = Autoencoder.from_pretrained(inside)
        config = json.loads((inside / "config.json").read_bytes())
        meant = {key: value for key, value in config.items() if value is not None}
        assert sae.config() | meant == {**sae.config(), "class": config["class"]}
        stored = load_file(inside / "model.safetensors")
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor.nan_to_num(), stored[name].float().nan_to_num()), name


class CheckpointFile(Target):
    """A checkpoint, its settings, and the module that it makes."""

    name = "checkpoint"

    def prepare(self) -> None:
        module = SparseAutoencoderModule(KSparseAutoencoder(6, 10, 3), 0.5)
        content = {
            "epoch": 1,
            "global_step": 7,
            "pytorch-lightning_version": "2.6.1",
            "state_dict": dict(module.state_dict()),
            "hyper_parameters": {**module.hparams, "autoencoder": describe(module.autoencoder)},
            "cache_identity": "one",
            "source": {"site": "blocks.3.mlp.pre"},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        }
        torch.save(content, self.originals / "last.ckpt")

    def change(self, random: Random, inside: Path) -> None:
        file = inside / "last.ckpt"
        if random.random() < 0.05:
            change_folder(random, inside, inside.parent / "outside")
        else:
            file.write_bytes(change_checkpoint(random, file.read_bytes()))

    def read(self, inside: Path) -> None:
        file = inside / "last.ckpt"
        checkpoint = read(file)
        settings = settings_of(file)
        described = checkpoint["hyper_parameters"]["autoencoder"]
        assert settings["autoencoder"]["class_path"] == described["class_path"]
        SparseAutoencoderModule.load_from_checkpoint(file)


class ModelFolder(Target):
    """The configuration of a language model, from which its sites follow."""

    name = "model folder"

    def prepare(self) -> None:
        (self.originals / "config.json").write_bytes(
            (mini_gpt2_folder() / "config.json").read_bytes()
        )
        self.read(self.originals)  # what is only imported now is not counted as slow

    def change(self, random: Random, inside: Path) -> None:
        file = inside / "config.json"
        if random.random() < 0.7:
            file.write_text(json.dumps(change(random, json.loads(file.read_bytes()))))
        elif random.random() < 0.8:
            file.write_bytes(change_bytes(random, file.read_bytes()))
        else:
            change_folder(random, inside, inside.parent / "outside")

    def read(self, inside: Path) -> None:
        spec = LanguageModelSpec(str(inside))
        assert spec.width("blocks.0.mlp.pre") > 0
