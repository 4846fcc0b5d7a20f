"""dictionary_learning: its trainer's update, with its Adam and its gradient clipping.

Beyond ours it clips the gradient's norm and moves a running threshold. It counts dead latents
even without AuxK, which its weight of 0 then switches off.
"""

import torch
from torch import Tensor

from peers.absent import peer_module
from peers.setting import Setting


class DictionaryLearningStep:
    """`TopKTrainer.update`."""

    name = "dictionary_learning"

    def __init__(self, setting: Setting) -> None:
        trainers = peer_module(
            "dictionary_learning.trainers.top_k",
            "dictionary_learning --no-deps",
            unused=("nnsight", "datasets", "zstandard", "umap", "circuitsvis"),
        )
        self.trainer = trainers.TopKTrainer(
            steps=10**6,
            activation_dim=setting.width,
            dict_size=setting.latents,
            k=setting.k,
            layer=0,
            lm_name="",
            lr=1e-4,
            auxk_alpha=0.0 if setting.dead is None else 1 / 32,
            device="cpu",
        )
        autoencoder = self.trainer.ae
        with torch.no_grad():
            autoencoder.encoder.weight.copy_(setting.dictionary)
            autoencoder.decoder.weight.copy_(setting.dictionary.T)
        self.setting = setting
        # Its first steps take the data's median, and its threshold starts after a thousand.
        self.step = 2_000

    def __call__(self) -> float:
        """Take a step; the loss before it."""
        if self.setting.dead is not None:
            self.trainer.num_tokens_since_fired[self.setting.dead] = 10**8
        self.step += 1
        return float(self.trainer.update(self.step, self.setting.batch))

    @torch.no_grad()
    def reconstruction(self) -> Tensor:
        """Reconstruction of the batch by the present weights."""
        return self.trainer.ae(self.setting.batch)
