import pytest
import torch

from palinka.atlas.server import TOP, LiveLatents
from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.language_models import LanguageModel
from palinka.training import SparseAutoencoderModule

SITE = "blocks.3.mlp.pre"
TEXT = "Once upon a time there was <b>a</b> 😀."


@pytest.fixture(scope="module")
def live() -> LiveLatents:
    torch.manual_seed(0)
    model = LanguageModel.from_pretrained("mini")
    module = SparseAutoencoderModule(KSparseAutoencoder(model.width(SITE), 40, k=12)).eval()
    return LiveLatents(model, SITE, module)


def test_every_latent_is_told_at_every_token(live: LiveLatents) -> None:
    answer = live.answer(TEXT)
    ids = [token for token, _ in answer["tokens"]]
    read = live.model.read(torch.tensor([ids]), [SITE])[SITE][0]
    latents = live.module.encode(read).detach()
    for row, top in zip(latents, answer["top"], strict=True):
        values, which = row.topk(TOP)
        assert [value for _, value in top] == pytest.approx(values.tolist(), rel=1e-3)
        assert [latent for latent, _ in top] == which.tolist()
    active = {latent: rest for latent, *rest in answer["active"]}
    assert set(active) == set((latents > 0).any(dim=0).nonzero()[:, 0].tolist())
    for latent, (largest, at, tokens) in active.items():
        assert largest == pytest.approx(latents[:, latent].max().item(), rel=1e-3)
        assert at == int(latents[:, latent].argmax())
        assert tokens == int((latents[:, latent] > 0).sum())
        assert live.answer(TEXT, latent)["values"] == pytest.approx(
            latents[:, latent].tolist(), rel=1e-3
        )
    assert "😀" in "".join(text for _, text in answer["tokens"])


def test_positions_without_rows_have_no_latents(live: LiveLatents) -> None:
    answer = LiveLatents(live.model, SITE, live.module, skip=1).answer("Once upon")
    assert answer["top"][0] == []
    assert answer["top"][1]


@pytest.mark.parametrize("skip", [0, 1])
def test_a_bos_token_is_read_and_not_shown(live: LiveLatents, skip: int) -> None:
    begun = LiveLatents(live.model, SITE, live.module, bos=True, skip=skip)
    answer = begun.answer("Once upon")
    assert answer["tokens"] == live.answer("Once upon")["tokens"]
    tokens = live.model.tokenize(["Once upon"], bos=True)
    latents = live.module.encode(live.model.read(tokens, [SITE])[SITE][0, 1:]).detach()
    for row, top in zip(latents, answer["top"], strict=True):
        assert [latent for latent, _ in top] == row.topk(TOP).indices.tolist()
    with pytest.raises(InputError, match="is empty; type some"):
        begun.answer("")


def test_what_cannot_be_read_is_refused(live: LiveLatents) -> None:
    with pytest.raises(InputError, match="is empty; type some"):
        live.answer("")
    with pytest.raises(InputError, match="tokens, and the model's context"):
        live.answer("many words " * 5000)
    with pytest.raises(InputError, match="latent is 40; expected 0 to 39"):
        live.answer("x", 40)
