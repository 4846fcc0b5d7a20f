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
