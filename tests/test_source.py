"""The rules that the source keeps: ruff, mypy, and which module may import and do what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "snapmount"
MAX_LINES = 400

# What of the standard library neither reads nor changes anything outside the process.
PURE = frozenset(
    {
        "__future__", "abc", "array", "base64", "bisect", "collections", "dataclasses", "datetime", "difflib", "enum",
        "functools", "hashlib", "heapq", "ipaddress", "itertools", "json", "math", "operator", "re", "shlex", "stat",
        "string", "struct", "textwrap", "types", "typing", "urllib.parse", "uuid", "xml.etree", "zlib",
    }
)  # fmt: skip


@dataclass
class Imports:
    """The names of the modules that a module imports while it is loaded, and later, within functions."""

    at_load: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)

    def all(self) -> set[str]:
        return self.at_load | self.later


def sources() -> dict[str, ast.Module]:
    """Each module of the package by its full name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), filename=str(path))
    return found


MODULES = sources()


def imports(name: str, source: ast.AST, is_package: bool, known: frozenset[str]) -> Imports:
    """What the module imports, but for the type checker alone.

    `from . import a` is an import of the module a where there is one of that name (`known`), else of the package.
    """
    found = Imports()
    for node, in_function in _nodes(source, in_function=False):
        into = found.later if in_function else found.at_load
        if isinstance(node, ast.Import):
            into |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, node, is_package)
            modules = {f"{base}.{alias.name}" for alias in node.names} & known
            into |= modules
            if len(modules) < len(node.names):
                into.add(base)
    return found


def _nodes(node: ast.AST, in_function: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below, and whether each is within a function; not what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other, in_function
                yield from _nodes(other, in_function)
            continue
        yield child, in_function
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _nodes(child, in_function or is_function)


def _absolute(name: str, node: ast.ImportFrom, is_package: bool) -> str:
    """The module that an import names, whose relative names are from the module `name`."""
    if not node.level:
        return node.module or ""
    up = node.level - 1 if is_package else node.level
    parents = name.split(".")
    base = parents[: len(parents) - up]
    return ".".join([*base, node.module] if node.module else base)


def imports_of(name: str) -> Imports:
    is_package = name == PACKAGE or (ROOT / Path(*name.split("."))).is_dir()
    return imports(name, MODULES[name], is_package, frozenset(MODULES))


def is_within(module: str, *packages: str) -> bool:
    """Whether the module is one of these or lies below one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def importers(library: str) -> set[str]:
    return {name for name in MODULES if any(is_within(module, library) for module in imports_of(name).all())}


def called(name: str) -> set[str]:
    """What a module calls, as it is written there: 'print', 'sys.exit'."""
    return {ast.unparse(node.func) for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)}


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# -- linters -----------------------------------------------------------------------------------------------------------


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "--quiet")


def test_the_source_is_formatted() -> None:
    run("ruff", "format", "--check", "--quiet", "--diff")


def test_mypy_finds_nothing() -> None:
    run("mypy", "--no-error-summary")


# -- the reader of imports ---------------------------------------------------------------------------------------------

SAMPLE = '''
"""import nothing"""
import a, b.c as d
from e import f
from . import sibling, VERSION
from .. import uncle
from ..core.tree import File
if TYPE_CHECKING:
    import for_types
else:
    import not_for_types
try:
    import maybe
except ImportError:
    import instead
class Class:
    import in_class
    def method(self):
        import later
        async def inner():
            from . import later_sibling
'''


def test_the_reader_of_imports_sees_every_form() -> None:
    known = frozenset({"p.q", "p.q.sibling", "p.q.later_sibling", "p.uncle", "p.core.tree"})
    module = imports("p.q.me", ast.parse(SAMPLE), is_package=False, known=known)
    assert module.at_load == {
        *("a", "b.c", "e", "p.q.sibling", "p.q", "p.uncle", "p.core.tree"),
        *("not_for_types", "maybe", "instead", "in_class"),
    }
    assert module.later == {"later", "p.q.later_sibling"}


def test_a_package_s_relative_imports_are_from_itself() -> None:
    package = imports("p.q", ast.parse("from . import x\nfrom .. import y"), True, frozenset({"p.q.x", "p.y"}))
    assert package.at_load == {"p.q.x", "p.y"}


def test_all_modules_are_looked_at() -> None:
    assert {
        "snapmount",
        "snapmount.cli.commands",
        "snapmount.core",
        "snapmount.publish.tree",
        "snapmount.publish.fuse.filesystem",
    } <= set(MODULES)
    assert imports_of("snapmount.core.plan").at_load >= {"snapmount.errors", "snapmount.core.names", "dataclasses"}
    assert imports_of("snapmount.sources.pull.job").at_load >= {
        "snapmount.hypervisor",
        "snapmount.core.domainxml",
        "trio",
    }


# -- which way imports point -------------------------------------------------------------------------------------------


# What does no input or output: all of the core, and what is pure of other packages.
PURE_MODULES = (
    "snapmount.core",
    *("snapmount.boot.definition", "snapmount.boot.hardware", "snapmount.doctor.health", "snapmount.publish.tree"),
    "snapmount.doctor.service",
    *("snapmount.publish.initiators", "snapmount.sources.pull.refusals", "snapmount.sources.pull.scratch.place"),
    *("snapmount.host.fuseconf", "snapmount.records.kept", "snapmount.sources.pull.space"),
    *("snapmount.storage.driver", "snapmount.storage.hookdocument", "snapmount.storage.shapes"),
)
PURE_NAMES = [name for name in MODULES if is_within(name, *PURE_MODULES)]


def test_what_shall_be_pure_is_there() -> None:
    assert {name for name in PURE_MODULES if name not in MODULES} == set()


@pytest.mark.parametrize("name", PURE_NAMES)
def test_what_is_pure_imports_nothing_that_could_do_input_or_output(name: str) -> None:
    allowed = (*PURE, *PURE_MODULES, "snapmount.errors")
    assert {module for module in imports_of(name).all() if not is_within(module, *allowed)} == set()


@pytest.mark.parametrize("name", PURE_NAMES)
def test_what_is_pure_opens_no_files(name: str) -> None:
    assert called(name) & {"open", "input", "print", "exec", "eval", "__import__"} == set()


def test_the_errors_rest_on_nothing() -> None:
    assert imports_of("snapmount.errors").all() == {"__future__"}


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("libvirt", "snapmount.hypervisor"),
        ("pyfuse3", "snapmount.publish.fuse.filesystem"),
        ("nbd", "snapmount.images.nbd"),
        ("argparse", "snapmount.cli.arguments"),
    ],
)
def test_a_library_is_imported_in_one_place(library: str, only: str) -> None:
    places = importers(library)
    assert places
    assert {name for name in places if not is_within(name, only)} == set()


# Imports point down this list only.
HOUSE = (
    *(
        "__main__",
        "cli",
        "doctor",
        "lifecycle",
        "boot",
        "attach",
        "publish",
        "sources",
        "storage",
        "images",
        "hypervisor",
        "records",
    ),
    *("host", "core", "errors"),
)


def room(name: str) -> int:
    """The place in the house of the package that a module belongs to."""
    return HOUSE.index(name.split(".")[1])


@pytest.mark.parametrize("name", [name for name in MODULES if name != PACKAGE])
def test_imports_point_down(name: str) -> None:
    ours = {module for module in imports_of(name).all() if is_within(module, PACKAGE) and module != PACKAGE}
    assert {module for module in ours if room(module) < room(name)} == set()


def test_no_module_lies_flat_beside_the_packages() -> None:
    flat = {path.name for path in (ROOT / PACKAGE).glob("*.py")}
    assert flat == {"__init__.py", "__main__.py", "errors.py"}


def test_sources_and_publishers_know_nothing_of_each_other() -> None:
    sources, publishers = "snapmount.sources", "snapmount.publish"
    for name in MODULES:
        for ours, theirs in ((sources, publishers), (publishers, sources)):
            if is_within(name, ours):
                assert not {module for module in imports_of(name).all() if is_within(module, theirs)}, name


def test_only_what_lists_the_sources_and_what_parses_their_options_knows_one_by_name() -> None:
    kinds = {path.name for path in (ROOT / PACKAGE / "sources").iterdir() if (path / "__init__.py").exists()}
    assert kinds
    known = {f"snapmount.sources.{kind}": importers(f"snapmount.sources.{kind}") for kind in kinds}
    asking = {"snapmount.cli.requests"}
    for kind, names in known.items():
        strangers = {name for name in names if not is_within(name, kind, "snapmount.doctor")} - asking
        assert strangers <= {"snapmount.sources.kinds", "snapmount.sources.registry"}


def test_publishers_know_the_image_alone() -> None:
    for name in MODULES:
        if is_within(name, "snapmount.publish"):
            assert not any(is_within(module, "snapmount.images") for module in imports_of(name).all()), name


def test_nothing_rests_on_the_command_line() -> None:
    assert importers("snapmount.cli.commands") == {"snapmount.__main__"}


def test_nothing_but_the_command_line_prints() -> None:
    assert {name for name in importers("snapmount.cli.output") if not is_within(name, "snapmount.cli")} == set()


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name not in ("snapmount.cli.commands", "snapmount.cli.output")]
)
def test_only_the_command_line_prints_or_exits(name: str) -> None:
    assert called(name) & {"print", "sys.exit", "exit", "quit"} == set()


def test_imports_are_made_when_a_module_is_loaded_but_for_what_few_need() -> None:
    later = {name for name in MODULES if imports_of(name).later}
    assert later <= {
        "snapmount.cli.present",
        *(f"snapmount.cli.verbs.{name}" for name in ("common", "doctor", "ending", "show")),
    }


def test_imports_go_round_in_no_circle() -> None:
    graph = {name: {module for module in imports_of(name).all() if module in MODULES} for name in MODULES}
    assert sum(map(len, graph.values())) > 20
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / PACKAGE).rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_too_long_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
