import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional

from palinka.autoencoders import distributed
from palinka.autoencoders.base import Autoencoder, AutoencoderOutput
from palinka.autoencoders.kernels.topk import keep_top_k
from palinka.autoencoders.ksparse import KSparseAutoencoder
from palinka.errors import InputError

# The parameters with one row for each latent; every process holds all of the others.
SLICED = frozenset({"encoder.weight", "encoder.bias", "decoder_weight"})


class ShardedAutoencoder:
    """Forward pass of one autoencoder, each process with its own slice of the latents.

    The parameters of a k-sparse autoencoder, with the same settings on every process, are replaced
    by `DTensor`s, with the values of the first process that holds a slice, so that optimizers,
    gradient clipping and checkpoints see them whole; it can no longer compute by itself. A process
    encodes to its own latents, the processes agree on the k-th largest value of each row, and the
    parts of the reconstruction are summed. The mesh has the dimensions `data_parallel` and
    `tensor_parallel`; all processes of the latter take the same rows.

    Source:
        Shoeybi et al. (2019), Megatron-LM, arXiv 1909.08053.
    """

    def __init__(self, autoencoder: Autoencoder, mesh: DeviceMesh) -> None:
        # A subclass may compute something else.
        if type(autoencoder) is not KSparseAutoencoder:
            fault = f"a {type(autoencoder).__name__} cannot be divided over devices"
            raise InputError(f"{fault}: use a KSparseAutoencoder, or another trainer.strategy")
        self.autoencoder: KSparseAutoencoder = autoencoder
        self.sharding = distributed.Sharding(
            _group(mesh, "data_parallel"), _group(mesh, "tensor_parallel")
        )
        devices = distributed.world_size(self.sharding.latents)
        if autoencoder.latent_dim % devices:
            fault = f"latent_dim {autoencoder.latent_dim} cannot be divided over {devices} devices"
            raise InputError(f"{fault}: make it a multiple, or change tensor_parallel_size")
        for name, parameter in list(autoencoder.named_parameters()):
            owner, _, attribute = name.rpartition(".")
            divided = self._divided(parameter, mesh, sliced=name in SLICED)
            setattr(autoencoder.get_submodule(owner), attribute, divided)

    def __call__(self, x: Tensor) -> AutoencoderOutput:
        """Reconstruction `(…, output_dim)` of activations `(…, input_dim)`, and the own latents."""
        latents = self.encode(x)
        return AutoencoderOutput(reconstruction=self.decode(latents), latents=latents)

    forward_sparse = __call__

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to the own latents `(…, latent_dim / devices)`."""
        autoencoder, group = self.autoencoder, self.sharding.latents
        autoencoder.check_width(x, autoencoder.input_dim, "activations")
        if autoencoder.decoder_bias is not None and autoencoder.subtract_decoder_bias:
            x = x - distributed.copy_to_tensor_parallel(_local(autoencoder.decoder_bias), group)
        bias = None if autoencoder.encoder.bias is None else _local(autoencoder.encoder.bias)
        values = torch.relu(functional.linear(x, _local(autoencoder.encoder.weight), bias))
        return keep_top_k(values, autoencoder.k, group)

    def decode(self, latents: Tensor) -> Tensor:
        """The own latents `(…, latent_dim / devices)` to activations `(…, output_dim)`."""
        part = functional.linear(latents, _local(self.autoencoder.dictionary).T)
        whole = distributed.reduce_from_tensor_parallel(part, self.sharding.latents)
        bias = self.autoencoder.decoder_bias
        return whole if bias is None else whole + _local(bias).to(whole.dtype)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Average gradients over the processes with other rows, after each backward pass."""
        if self.sharding.rows is None:
            return
        for parameter in self.autoencoder.parameters():
            if parameter.grad is not None:
                own = _local(parameter.grad).div_(distributed.world_size(self.sharding.rows))
                distributed.all_reduce(own, self.sharding.rows)

    def check_rows(self, x: Tensor) -> None:
        """Reject, on all processes of `sharding.latents`, rows that differ between them."""
        numbers = x.detach().double().nan_to_num()
        mark = torch.stack([numbers.sum(), numbers.new_tensor(len(x))])[:, None]
        marks = distributed.gather_columns(mark, self.sharding.latents)
        if not torch.equal(marks, mark.expand_as(marks)):
            fault = "the devices that hold one dictionary's latents were given different rows"
            raise InputError(f"{fault}: divide rows by trainer.distributed_sampler_kwargs")

    @torch.no_grad()
    def _divided(self, parameter: nn.Parameter, mesh: DeviceMesh, *, sliced: bool) -> nn.Parameter:
        own = self.sharding.own(len(parameter)) if sliced else slice(None)
        local = parameter.detach()[own].to(mesh.device_type, copy=True)
        # Processes with the same slice begin with the same values, however they were seeded.
        distributed.broadcast(local, self.sharding.rows)
        distributed.broadcast(local, None if sliced else self.sharding.latents)
        placements = [Replicate(), Shard(0) if sliced else Replicate()]
        tensor = DTensor.from_local(local, mesh, placements)
        return nn.Parameter(tensor, requires_grad=parameter.requires_grad)


def _group(mesh: DeviceMesh, dimension: str) -> distributed.Group:
    part = mesh[dimension]
    return part.get_group() if part.size() > 1 else None


def _local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter, not a copy; the gradient passes."""
    assert isinstance(parameter, DTensor)
    local: Tensor = parameter.to_local()
    return local
