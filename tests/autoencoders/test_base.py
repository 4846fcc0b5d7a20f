"""Every architecture: equations, shapes, saving and loading, and transcoders."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import Buffer
from torchmetrics import SumMetric

import palinka.autoencoders
from palinka.autoencoders import Autoencoder, KSparseAutoencoder
from palinka.autoencoders.base import FullPrecisionState, InputScaling
from palinka.errors import InputError

SETTINGS: dict[str, dict[str, Any]] = {
    "KSparseAutoencoder": {"tied": False, "encoder_bias": True, "decoder_bias": True},
    "MatryoshkaAutoencoder": {"group_fractions": [0.5, 0.5]},
    "LayerNormalizedAutoencoder": {"tied": False, "encoder_bias": True, "decoder_bias": True},
}
ARCHITECTURES = [
    kind
    for kind in vars(palinka.autoencoders).values()
    if inspect.isclass(kind) and issubclass(kind, Autoencoder) and kind is not Autoencoder
]


class Own(KSparseAutoencoder):
    """An architecture of a user's own."""

    def __init__(self, input_dim: int, factor: float = 0.5, **settings: Any) -> None:
        super().__init__(input_dim, **settings)
        self.factor = factor


@pytest.fixture(scope="session", params=ARCHITECTURES, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def make(kind: Any, output_dim: int | None = None, **settings: Any) -> Autoencoder:
    torch.manual_seed(0)
    chosen = {**SETTINGS.get(kind.__name__, {}), **settings}
    made: Autoencoder = kind(6, 20, output_dim=output_dim, **chosen)
    return made


def transcription(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The papers' equations, in training; ties with the smallest kept value are all kept."""
    name, mean, deviation = type(sae).__name__, 0.0, 1.0
    if name == "LayerNormalizedAutoencoder":
        mean, deviation = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        x = (x - mean) / (deviation + 1e-5)
    encoder_bias, decoder_bias = (
        0.0 if bias is None else bias for bias in (sae.encoder.bias, sae.decoder_bias)
    )
    x = x - decoder_bias
    a = x @ sae.encoder.weight.T
    if name == "GatedAutoencoder":
        w_mag = torch.exp(sae.log_magnitude)[:, None] * sae.encoder.weight
        z = (x @ w_mag.T + sae.magnitude_bias).relu() * (a + sae.gate_bias > 0)
    elif name == "JumpReLUAutoencoder":
        a = a + encoder_bias
        z = torch.where(a > torch.exp(sae.log_threshold), a, 0.0)
    else:
        a = z = (a + encoder_bias).clamp(min=0.0)
        if name in ("BatchTopKAutoencoder", "MatryoshkaAutoencoder"):
            z = a * (a >= sorted(a.flatten().tolist(), reverse=True)[len(x) * sae.k - 1])
        elif name != "ReLUAutoencoder":
            z = a * (a >= a.sort(dim=1, descending=True).values[:, sae.k - 1, None])
    return z, (z @ sae.dictionary + decoder_bias) * deviation + mean


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(2, 12), st.integers(0, 1000), st.data())
def test_it_is_the_paper(kind: Any, d: int, n: int, seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    options = {**SETTINGS.get(kind.__name__, {})}
    if kind is KSparseAutoencoder and data.draw(st.booleans()):
        options.clear()  # tied and without biases, as in the spec
    if "k" in inspect.signature(kind).parameters:
        options["k"] = data.draw(st.integers(1, n))
    sae = kind(d, 2 * n, **options).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, d, dtype=torch.float64)
    x[2] = 0.0
    latents, reconstruction = transcription(sae, x)
    output = sae(x)
    torch.testing.assert_close(output.latents, latents)
    torch.testing.assert_close(output.reconstruction, reconstruction)


def test_leading_dimensions_are_kept(kind: Any) -> None:
    sae = make(kind).eval()
    x = torch.randn(2, 3, 6)
    assert sae.encode(x).shape == (2, 3, 20)
    assert sae(x).reconstruction.shape == x.shape
    torch.testing.assert_close(sae.encode(x)[1, 2], sae.encode(x[1, 2]))
    for mode in (True, False):
        assert sae.train(mode).encode(torch.empty(0, 6)).shape == (0, 20)


def test_nan_is_seen_in_the_reconstruction(kind: Any) -> None:
    x = torch.randn(3, 6)
    x[1, 2] = float("nan")
    found = make(kind).eval()(x).reconstruction.isnan().any(dim=1).tolist()
    assert found == [False, True, False]


def test_bf16_autocast(kind: Any) -> None:
    sae = kind(16, 32, **SETTINGS.get(kind.__name__, {})).eval()
    x = torch.randn(16, 50).T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sae(x)
    output.reconstruction.float().square().sum().backward()
    assert sae.dictionary.grad is not None
    expected = sae(x.contiguous())
    torch.testing.assert_close(sae(x), expected)
    error = (output.reconstruction - expected.reconstruction).norm()
    assert error / expected.reconstruction.norm() < 0.1


def test_another_width_is_named(kind: Any) -> None:
    sae = make(kind)
    with pytest.raises(InputError, match=r"activations of shape \(3, 5\).*dimension must be 6"):
        sae.encode(torch.randn(3, 5))
    with pytest.raises(InputError, match=r"latents of shape \(3, 8\).*dimension must be 20"):
        sae.decode(torch.randn(3, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_dim": 0}, "input_dim must be an integer of at least 1, got 0"),
        ({"input_dim": 8, "output_dim": True}, "output_dim must be an integer of at least 1"),
    ],
)
def test_dimensions_that_cannot_be(kind: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**{**SETTINGS.get(kind.__name__, {}), **arguments})


def test_the_signature_has_the_parents_settings(kind: Any) -> None:
    parameters = inspect.signature(kind).parameters
    assert {"input_dim", "latent_dim", "unit_norm", "output_dim"} <= parameters.keys()
    assert parameters.keys() >= make(kind, 4).config().keys()
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    assert list(inspect.signature(Own).parameters)[:3] == ["input_dim", "factor", "latent_dim"]


@pytest.mark.parametrize("output_dim", [None, 4, 6])
def test_a_saved_autoencoder_comes_back(
    kind: Any, output_dim: int | None, folder: Path, randomized: Callable[[Any], Any]
) -> None:
    sae = make(kind, output_dim, unit_norm=True)
    assert sae.is_transcoder == (output_dim is not None)
    begun_equal = torch.equal(sae.get_parameter("encoder.weight"), sae.dictionary)
    assert begun_equal != sae.is_transcoder
    sae = randomized(sae)
    assert not sae.is_initialized
    KSparseAutoencoder(4).save_pretrained(folder / "new")  # is replaced
    sae.save_pretrained(folder / "new")
    names = {path.name for path in (folder / "new").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    again = Autoencoder.from_pretrained(str(folder / "new"))
    assert type(again) is kind
    assert (again.is_initialized, again.training) == (True, False)
    assert again.config() == sae.config()
    assert kind.from_pretrained(folder / "new").config() == sae.config()
    x = torch.randn(5, 6)
    for mine, theirs in zip(sae(x), again(x), strict=True):
        assert torch.equal(mine, theirs)


def test_a_class_of_ones_own_is_found_by_its_name(folder: Path) -> None:
    Own(4, factor=0.25, latent_dim=7, k=2).save_pretrained(folder)
    again = Autoencoder.from_pretrained(folder)
    assert type(again) is Own
    assert (again.factor, again.latent_dim, again.k) == (0.25, 7, 2)


@pytest.mark.parametrize("output_dim", [4, 6])
def test_a_transcoder_reads_one_width_and_gives_another(kind: Any, output_dim: int) -> None:
    """Also of one width, its output bias is not subtracted."""
    transcoder = make(kind, output_dim).eval()
    assert (transcoder.input_dim, transcoder.output_dim) == (6, output_dim)
    assert transcoder.dictionary.shape == (20, output_dim)
    if transcoder.unit_norm:
        torch.testing.assert_close(transcoder.dictionary.norm(dim=1), torch.ones(20))
    x = torch.randn(5, 6)
    written, before = transcoder(x)
    assert before.any()
    with torch.no_grad():
        transcoder.get_parameter("decoder_bias").add_(3)
    assert torch.equal(transcoder.encode(x), before)
    torch.testing.assert_close(transcoder(x).reconstruction, written + 3)


def refusal(folder: Path, kind: type[Autoencoder] = Autoencoder) -> str:
    with pytest.raises(InputError) as caught:
        kind.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("{", "not a readable JSON file"),
        ("[1]", "JSON object, got list"),
        ("{}", "has no 'class'"),
        ('{"class": "KSparseAutoencoder"}', "missing 1 required positional argument: 'input_dim'"),
        ({"class": 3}, "has no 'class'"),
        ({"class": "KSparseAutoencodr"}, "(did you mean 'KSparseAutoencoder'?); import"),
        ({"class": "os.system"}, "'os.system' is not a known Autoencoder"),
        ({"teid": True}, "no argument 'teid' (did you mean 'tied'?)"),
        ({"k": 11}, "k must be at most latent_dim"),
        ({"k": True}, "k must be a whole number or null, got True"),
        ({"decoder_bias": "false"}, "decoder_bias must be true or false, got 'false'"),
        ({"input_dim": 7}, "'encoder.weight' is of shape (10, 6) in"),
        ({"tied": False}, "'decoder_weight' is absent in"),
    ],
)
def test_a_config_that_does_not_fit(config: Any, expected: str, folder: Path) -> None:
    KSparseAutoencoder(6, 10, 3).save_pretrained(folder)
    path = folder / "config.json"
    if isinstance(config, dict):
        config = json.dumps({**json.loads(path.read_text()), **config})
    path.write_text(config)
    assert expected in refusal(folder)


def test_another_class_than_asked_for_and_damaged_or_missing_weights(folder: Path) -> None:
    KSparseAutoencoder(6, 10, 3).save_pretrained(folder)
    assert "'KSparseAutoencoder' is not a known Own" in refusal(folder, Own)
    path = folder / "model.safetensors"
    save_file({**load_file(path), "extra": torch.zeros(1)}, path)
    assert "'extra' is of shape (1,)" in refusal(folder)
    path.write_bytes(path.read_bytes()[:-7])
    assert "not a complete safetensors file" in refusal(folder)
    path.unlink()
    assert "expected config.json + model.safetensors" in refusal(folder)
    assert "palinka.autoencoders.formats.load" in refusal(folder)
    assert "load_from_checkpoint takes it, and palinka export" in refusal(folder / "last.ckpt")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "config.json").mkdir(parents=True)
    for name in ("file", "taken"):
        with pytest.raises(InputError, match="cannot save into"):
            KSparseAutoencoder(4).save_pretrained(tmp_path / name)
    assert not [path for path in (tmp_path / "taken").iterdir() if path.suffix == ".tmp"]


class Running(FullPrecisionState):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.mean = Buffer(torch.full((2,), 1 / 3, dtype=torch.float32))
        self.count = Buffer(torch.tensor(1001))


class Sum(FullPrecisionState, SumMetric):
    pass


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.bfloat16(),
        lambda m: nn.ModuleList([m]).to(torch.bfloat16)[0],
    ],
)
def test_narrower_dtypes_reach_parameters_alone(convert: Callable[[Any], Any]) -> None:
    module = Running()
    module.inner(torch.ones(1, 2)).sum().backward()
    convert(module)
    weight = module.inner.weight
    assert weight.element_size() == 2
    assert weight.grad is not None
    assert weight.grad.dtype == weight.dtype
    assert torch.equal(module.mean, torch.full((2,), 1 / 3))
    assert module.count.dtype == torch.int64
    total = Sum()
    total.set_dtype(torch.float64)
    total.update(1001.0)
    assert convert(total).compute() == 1001.0
    assert total.sum_value.dtype == torch.float64
    # Wider dtypes and devices are followed.
    assert Running().double().mean.dtype == torch.float64
    moved = Running().to("meta", torch.bfloat16).mean
    assert (moved.device.type, moved.dtype) == ("meta", torch.float32)


def test_scaling_and_back() -> None:
    scaling, x = InputScaling(3), torch.tensor([[3.0, 2.0, 1.0]])
    assert torch.equal(scaling(x), x)
    assert torch.equal(scaling.inverse(x), x)
    scaling.set(torch.tensor([1.0, 2.0, 3.0]), 0.5)
    assert scaling(x).tolist() == [[1.0, 0.0, -1.0]]
    torch.testing.assert_close(scaling.inverse(scaling(x)), x)
    assert set(scaling.state_dict()) == {"mean", "scale"}


def test_input_statistics_that_do_not_fit() -> None:
    scaling = InputScaling(3)
    with pytest.raises(InputError, match=r"width \(4,\).*input_dim 3"):
        scaling.set(torch.zeros(4), 1.0)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="positive scale"):
            scaling.set(torch.zeros(3), scale)
    with pytest.raises(InputError, match="finite"):
        scaling.set(torch.full((3,), float("nan")), 1.0)
    assert torch.equal(scaling.mean, torch.zeros(3))
