"""When the latents are divided over devices, and what is refused then."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import DeviceMesh

from palinka.autoencoders import Autoencoder
from palinka.autoencoders.sharded import ShardedAutoencoder
from palinka.errors import InputError


def divide(autoencoder: Autoencoder, mesh: DeviceMesh, trainer: Trainer) -> ShardedAutoencoder:
    """Divide an autoencoder's latents over the devices of a mesh.

    Args:
        autoencoder: Its parameters are replaced.
        mesh: What the trainer's strategy has made of the devices.
        trainer: What is about to run.

    Raises:
        InputError: If the autoencoder cannot be divided, or the run cannot be done with divided
            latents.
    """
    if trainer.state.fn == TrainerFn.PREDICTING:
        raise InputError(
            "predict gives whole rows of latents, which no device holds when they are divided:"
            " use --trainer.strategy auto with --trainer.devices 1"
        )
    check_strategy(trainer.strategy, trainer.world_size)
    return ShardedAutoencoder(autoencoder, mesh)


def check_strategy(strategy: Strategy, devices: int) -> None:
    """Refuse, best before any process is started, a strategy that we cannot run.

    Args:
        strategy: A trainer's; one that does not divide latents is let pass.
        devices: The devices of all nodes.

    Raises:
        InputError: If the sizes of its mesh are not those of the devices, it saves checkpoints
            in parts, or its processes are copies of this one.
    """
    # Lightning keeps this to itself.
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise InputError(
            "the strategies ddp_spawn, ddp_fork and ddp_notebook copy this process, and what the"
            " copies find is lost: use trainer.strategy ddp"
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    # So it does these.
    rows, latents = strategy._data_parallel_size, strategy._tensor_parallel_size
    if isinstance(rows, int) and isinstance(latents, int) and rows * latents != devices:
        raise InputError(
            f"data_parallel_size {rows} times tensor_parallel_size {latents} must be the number of"
            f" devices, which is {devices}: change one of them, or trainer.devices"
        )
    if strategy._save_distributed_checkpoint:
        raise InputError(
            "a checkpoint is a single file, which every command reads on any number of devices:"
            " set save_distributed_checkpoint to false in trainer.strategy"
        )
