"""libvirt's RELAX NG schema, as far as it tells which elements and attributes there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

SCHEMAS = Path("/usr/share/libvirt/schemas")
_NS = "{http://relaxng.org/ns/structure/1.0}"

Definitions = dict[str, list[ElementTree.Element]]


def paths(element: str, directory: Path = SCHEMAS) -> set[str]:
    """All that the element of a domain may hold, such as 'source/@file' and 'readonly'; what has attributes or children
    is not named beside them.

    An element within one of its own name, as layers of an image are, is not followed.
    """
    definitions: Definitions = {}
    _load(directory, "domain.rng", definitions, set())
    found = {path for define in definitions[element] for path in _walk(define, (), definitions)}
    inner = {path[:length] for path in found for length in range(len(path))}
    return {"/".join(path[1:]) for path in found - inner}


def _load(directory: Path, name: str, definitions: Definitions, loaded: set[str]) -> None:
    if name in loaded:
        return
    loaded.add(name)
    grammar = ElementTree.parse(directory / name).getroot()
    for include in grammar.iter(f"{_NS}include"):
        _load(directory, include.attrib["href"], definitions, loaded)
    for define in grammar.iter(f"{_NS}define"):
        definitions.setdefault(define.attrib["name"], []).append(define)


def _walk(node: ElementTree.Element, path: tuple[str, ...], definitions: Definitions) -> Iterator[tuple[str, ...]]:
    for child in node:
        kind, name = child.tag.removeprefix(_NS), child.get("name", "")
        if kind == "attribute":
            yield (*path, f"@{name}")
        elif kind == "element":
            yield (*path, name)
            if name not in path:
                yield from _walk(child, (*path, name), definitions)
        elif kind == "ref":
            for define in definitions[name]:
                yield from _walk(define, path, definitions)
        else:
            yield from _walk(child, path, definitions)
