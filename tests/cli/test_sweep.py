import pytest

from palinka.cli.sweep import expand, options
from palinka.errors import InputError


def test_a_list_gives_each_a_name_of_what_it_overrides() -> None:
    listed = [{"k": 16}, {"k": 32, "latent_dim": 4096}, {"seed": 1}, {}]
    assert expand(listed) == dict(
        zip(["k=16", "k=32,latent_dim=4096", "seed=1", "base"], listed, strict=True)
    )


def test_a_grid_gives_every_combination() -> None:
    assert list(expand({"k": [16, 32], "seed": [0, 1]})) == [
        "k=16,seed=0",
        "k=16,seed=1",
        "k=32,seed=0",
        "k=32,seed=1",
    ]


def test_names_are_names_of_folders_and_differ() -> None:
    names = list(expand([{"a": "../x"}, {"a": ".._x"}, {"a": [1, 2]}, {"a": "x" * 500}]))
    assert names == ["a=.._x", "a=.._x,1", "a=_1,_2_", "a=" + "x" * 118]


def test_options_are_those_of_a_command_line_the_class_first() -> None:
    overrides = {"k": 3, "seed": 1, "sparsity_weight": 1e-05, "autoencoder": "TopK", "tied": False}
    assert options(overrides) == [
        "--model.autoencoder=TopK",
        "--model.autoencoder.k=3",
        "--seed_everything=1",
        "--model.sparsity_weight=1e-05",
        "--model.autoencoder.tied=false",
    ]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "gives 0 variants"),
        ({"k": []}, "gives 0 variants"),
        ({"k": list(range(1, 99))}, "gives 98 variants; expected 1 to 64"),
        ([{"k": 1}, {"k": 1}], "gives k=1 twice"),
        ([{"optimizer": "SGD"}], "shared by all variants; give it as model.optimizer"),
        ([{"k=3 --x": 1}], "not an argument"),
    ],
)
def test_what_makes_no_sweep_is_refused(variants: list, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=message):
        expand(variants)
