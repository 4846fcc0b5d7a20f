from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.image import metadata
from torch.utils.tensorboard import SummaryWriter

from palinka.training.callbacks.tensorboard import LAYOUT, add_figure, flattened


def test_nested_settings_become_names_with_slashes() -> None:
    settings = {"a": {"b": 1, "c": {"d": None}}, "e": "text", "f": (0.9, 0.99)}
    assert dict(flattened(settings)) == {
        "a/b": 1,
        "a/c/d": "None",
        "e": "text",
        "f": "(0.9, 0.99)",
    }


def test_no_chart_of_the_layout_is_empty() -> None:
    charts = [chart for category in LAYOUT.values() for chart in category.values()]
    assert charts
    assert all(kind == "Multiline" and tags for kind, tags in charts)


def test_one_page_is_an_overview_of_the_run() -> None:
    (story,) = LAYOUT.values()
    shown = {tag.removesuffix("$") for _, tags in story.values() for tag in tags}
    assert shown >= {
        "loss/total",
        "reconstruction/fvu",
        "sparsity/l0",
        "val/dead",
        "val/ce_delta",
        "throughput/tokens_per_second",
    }
    # Each is a regular expression that must not match `val/fvu_legacy` and the like.
    assert all(tag.endswith("$") for _, tags in story.values() for tag in tags)


def test_a_figure_is_logged_with_its_caption(tmp_path: Path) -> None:
    figure = Figure((3, 2), dpi=50)
    figure.set_label("What it shows.")
    writer = SummaryWriter(tmp_path)
    add_figure(writer, "analyses/one/score", figure, 7)
    writer.close()
    (path,) = tmp_path.iterdir()
    # As TensorBoard's server reads it.
    values = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    (value,) = values
    assert value.tag == "analyses/one/score"
    assert value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
    assert value.metadata.summary_description == "What it shows."
    width, height, png = value.tensor.string_val
    assert (width, height) == (b"150", b"100")
    assert png.startswith(b"\x89PNG")
