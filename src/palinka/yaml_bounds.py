"""How deep and how large a YAML document may be, known before anything is made of it.

Twenty lines of YAML whose aliases name each other can stand for billions of words, and ten
thousand brackets in a row exhaust the stack of whoever builds lists from them.
"""

import yaml

DEEPEST = 40


class UnboundedError(yaml.YAMLError):
    """A document beyond the bounds, in one line."""


def check_bounds(text: str, most: int, longest: int | None = None) -> None:
    """Go through a YAML document event by event, which builds nothing.

    Texts inside of the document are held to the same bounds: an option's text may be read as
    YAML once more.

    Args:
        text: The document. What is wrong with it otherwise is left to its reader.
        most: How many values it may stand for once its aliases are written out.
        longest: How many values a single list or mapping may have, keys included.

    Raises:
        UnboundedError: If it is nested more than forty levels deep, stands for more values,
            has a longer list, or an alias inside of what the alias stands for.
    """
    if len(text) <= DEEPEST:
        return
    sizes: dict[str, int] = {}  # of what each finished anchor stands for
    # The open collections: anchor, values so far at any depth, and members.
    pending: list[tuple[str | None, int, int]] = []
    total = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            size = 0
            if isinstance(event, yaml.CollectionStartEvent):
                pending.append((event.anchor, 1, 0))
                if len(pending) > DEEPEST:
                    raise UnboundedError(f"nested more than {DEEPEST} levels deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size, _ = pending.pop()
                if anchor is not None:
                    sizes[anchor] = size
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
                if len(event.value) < len(text):
                    check_bounds(event.value, most, longest)
            elif isinstance(event, yaml.AliasEvent):
                name = str(event.anchor)
                if any(anchor == name for anchor, *_ in pending):
                    raise UnboundedError(f"the alias *{name} stands inside of itself")
                size = sizes.get(name, 1)
            if pending and size:
                anchor, before, members = pending[-1]
                pending[-1] = (anchor, before + size, members + 1)
                total = before + size
                if longest is not None and members >= longest:
                    raise UnboundedError(f"it has a list of more than {longest} values")
            if total > most:
                raise UnboundedError(f"it stands for more than {most} values")
    except UnboundedError:
        raise
    except (yaml.YAMLError, ValueError):
        return
