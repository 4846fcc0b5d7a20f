from palinka.callbacks.dashboard import LAYOUT, flattened


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


def test_one_page_tells_the_story_of_the_run() -> None:
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
