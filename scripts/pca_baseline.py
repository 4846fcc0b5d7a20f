"""PCA baseline of the variance that a dictionary explains.

Fits the principal components on the training rows of a configuration and reports the fraction
of variance unexplained (FVU) on its validation rows, about their own mean, for comparison with
the `val/fvu` of a fit:

    python scripts/pca_baseline.py --config configs/smollm2.yaml --components 64
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

import palinka.data  # noqa: F401  (its classes may be named in the configuration)
from palinka.data import ActivationDataModule
from palinka.errors import track


def centered_moments(batches: Iterator[Tensor], width: int) -> tuple[int, Tensor, Tensor]:
    """Rows, mean `(width,)` and scatter about the mean `(width, width)`, in float64.

    The sums are taken about the first batch's mean, so that a large mean costs no digits.
    """
    rows = 0
    shift = None
    total = torch.zeros(width, dtype=torch.float64)
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for batch in batches:
        values = batch.double()
        shift = values.mean(dim=0) if shift is None else shift
        values = values - shift
        rows += len(values)
        total += values.sum(dim=0)
        scatter += values.T @ values
    assert shift is not None
    return rows, shift + total / rows, scatter - torch.outer(total, total) / rows


def pca_fvu(
    training: tuple[int, Tensor, Tensor], validation: tuple[int, Tensor, Tensor], components: int
) -> float:
    """The FVU of validation rows reconstructed from the training rows' leading components.

    Args:
        training: Moments of the training rows, as `centered_moments` gives them.
        validation: Those of the validation rows.
        components: How many components are kept.
    """
    _, mean, scatter = training
    rows, own_mean, own_scatter = validation
    basis = torch.linalg.eigh(scatter).eigenvectors[:, -components:]
    # Scatter of the validation rows about the training mean, which the PCA reconstructs from.
    offset = own_mean - mean
    about_training_mean = own_scatter + rows * torch.outer(offset, offset)
    explained = (basis * (about_training_mean @ basis)).sum()
    return float((about_training_mean.trace() - explained) / own_scatter.trace())


def main() -> None:
    """Read the configuration, harvest what its cache lacks, and print the FVU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="a configuration of palinka fit")
    parser.add_argument("--components", type=int, default=64)
    arguments = parser.parse_args()

    settings = ArgumentParser()
    settings.add_class_arguments(ActivationDataModule, "data")
    given = yaml.safe_load(arguments.config.read_text())["data"]
    data = settings.instantiate(settings.parse_object({"data": given})).data
    data.prepare_data()
    data.setup("fit")
    moments = [
        centered_moments(track(loader, f"summing {name} rows", len(loader)), data.width)
        for name, loader in [
            ("training", data.train_dataloader()),
            ("validation", data.val_dataloader()),
        ]
    ]
    fvu = pca_fvu(moments[0], moments[1], arguments.components)
    print(
        f"PCA with {arguments.components} components fitted on {moments[0][0]:,} rows: "
        f"FVU {fvu:.4f} on {moments[1][0]:,} validation rows"
    )


if __name__ == "__main__":
    main()
