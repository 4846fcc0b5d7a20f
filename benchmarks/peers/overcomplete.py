"""overcomplete: its `train_sae` over one batch, silent, with the Adam of its examples.

Beyond ours it clips the gradient's norm, normalizes the dictionary inside the forward pass, with
a graph, and notes which latents fired. Its encoder is given as a linear layer without the batch
normalization that it has by default, which no other side computes. It has no count of dead
latents in tokens, and its auxiliary loss is another one, so that it is left out where AuxK is on.
"""

import torch
from torch import Tensor, nn

from peers.absent import peer_module
from peers.setting import Setting


class OvercompleteStep:
    """`train_sae` of a `TopKSAE`."""

    name = "overcomplete"

    def __init__(self, setting: Setting) -> None:
        # Its vision models, its plots and what wraps scikit-learn come with its first line.
        sae = peer_module(
            "overcomplete.sae",
            "overcomplete --no-deps",
            unused=tuple(
                f"overcomplete.{part}" for part in ("optimization", "models", "visualization")
            ),
        )
        self.train = sae.train_sae
        encoder = _Encoder(setting)
        self.model = sae.TopKSAE(
            setting.width, setting.latents, top_k=setting.k, encoder_module=encoder
        )
        with torch.no_grad():
            next(iter(self.model.dictionary.parameters())).copy_(setting.dictionary)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.setting = setting

    def __call__(self) -> None:
        """Take a step."""
        self.train(
            self.model,
            [self.setting.batch],
            _squared_error,
            self.optimizer,
            nb_epochs=1,
            monitoring=0,
        )

    @torch.no_grad()
    def reconstruction(self) -> Tensor:
        """Reconstruction of the batch by the present weights."""
        return self.model(self.setting.batch)[2]


class _Encoder(nn.Module):
    """A linear layer in the form that its encoders have: before the ReLU, and after it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.linear = nn.Linear(setting.width, setting.latents)
        with torch.no_grad():
            self.linear.weight.copy_(setting.dictionary)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.linear(x)
        return before, before.relu()


def _squared_error(x: Tensor, x_hat: Tensor, *_: Tensor) -> Tensor:
    return (x - x_hat).square().mean()
