"""The order of imports: pure torch below, Lightning above, one place that knows both data and training."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
ROOT = PROJECT / "src" / "m2chat"
FILES = sorted(ROOT.rglob("*.py"))
EVERYWHERE = {
    "schema",
    "batch",
    "places",
    "errors",
    "ranges",
    "files",
    "checksums",
    "integrity",
    "_compat",
    "vocabulary",
    "tokenizer_settings",
    "world",
    "textfiles",
    "shares",
    "shipped",
    "host_memory",
}

# What of ours each part may import, besides itself and EVERYWHERE. The parts that are not named may import anything.
OURS: dict[str, set[str]] = {
    "__init__": {"pipeline"},
    "_compat": set(),
    "errors": set(),
    "ranges": {"errors"},
    "files": {"errors"},
    "textfiles": {"errors"},
    "shares": {"errors"},
    "shipped": {"errors"},
    "host_memory": set(),
    "schema": set(),
    "batch": {"places", "schema"},
    "places": set(),
    "world": {"errors", "schema"},
    "text": set(),
    "models": {"text.clip_tokenizers"},  # a decoder encodes the empty prompt, the negative condition of some
    "losses": set(),
    "planning": {"models", "losses"},
    "metrics": {"models.weights"},  # networks that measure are read as those that are measured
    "evaluation": {"metrics", "data.images", "data.network_inputs"},  # pictures on disk are decoded as everywhere
    "data": {"text"},
    # Validation generates replies, and replies are words; the log has the share of the GPU's peak.
    "training": {"models", "losses", "text", "pipeline", "planning"},
    "baselines": {"models", "losses", "text", "pipeline", "training"},
    "callbacks": {"metrics", "evaluation", "planning.gpus"},
    "pipeline": {
        "text",
        "models",
        "data.images",
        "data.network_inputs",
    },  # pictures are resized and normalised as in training
    "benchmarks": {"pipeline", "evaluation", "data"},
    "app": {"pipeline", "data.images", "data.network_inputs", "evaluation.names"},  # plain names, as in reports
    # Generated worlds are found by name, through `world`: nothing but commands may import one.
    "worlds": {"text", "models", "losses", "metrics", "evaluation", "data", "pipeline"},
}
LOWEST = {
    "_compat",
    "batch",
    "errors",
    "files",
    "host_memory",
    "places",
    "schema",
    "shares",
    "shipped",
    "textfiles",
    "world",
}

# What of others' each part must not import.
FORBIDDEN: dict[str, set[str]] = {
    "places": {"lightning", "transformers", "diffusers", "open_clip"},
    "schema": {"torch", "lightning"},
    "batch": {"lightning", "transformers", "diffusers", "open_clip"},
    "world": {"torch", "lightning"},
    "worlds": {"lightning"},
    "text": {"lightning", "torch.nn"},
    "models": {"lightning", "webdataset"},
    "planning": {"lightning", "webdataset"},
    "losses": {"lightning", "transformers", "diffusers"},
    "metrics": {"lightning"},
    "evaluation": {"lightning"},
    "pipeline": {"lightning"},
    "benchmarks": {"lightning"},
}


def imports(source: str) -> set[str]:
    """Dotted names that a module imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def faults(part: str, source: str) -> list[str]:
    """Imports that the order forbids to a part."""
    wrong = []
    for name in sorted(imports(source)):
        top, *rest = name.split(".")
        if top == "m2chat":
            target = rest[0] if rest else "__init__"
            free = EVERYWHERE if part not in LOWEST else set()
            version = target == "__version__"
            allowed = {target, ".".join(rest[:2])} & (OURS.get(part, set()) | free | {part})
            if part in OURS and not allowed and not version:
                wrong.append(name)
        elif any(f"{name}.".startswith(f"{other}.") for other in FORBIDDEN.get(part, set())):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not faults(part, path.read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    names = {path: path.relative_to(ROOT.parent).with_suffix("").as_posix().replace("/", ".") for path in FILES}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imported(sources: dict[str, str]) -> dict[str, set[str]]:
    """Modules that each module imports, at any depth: inside functions and under TYPE_CHECKING too.

    Args:
        sources: Source text of each module, by dotted name.
    """
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        # `from m2chat.text import Layout` imports the package, `from m2chat.text import layout` the module in it.
        names = {name if name in sources else name.rpartition(".")[0] for name in imports(source)}
        graph[module] = (names & sources.keys()) - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that import each other around a circle."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        waiting, seen = list(graph[start]), set[str]()
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        reach[start] = seen
    return {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}


def two_way(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Pairs of parts that import each other."""

    def part(module: str) -> str:
        return [*module.split("."), "__init__"][1]

    pairs = {(part(a), part(b)) for a, names in graph.items() for b in names if part(a) != part(b)}
    return {(a, b) for a, b in pairs if (b, a) in pairs and a < b}


def test_no_circle_between_files_and_no_two_way_pair_of_packages() -> None:
    graph = imported({name: path.read_text(encoding="utf-8") for name, path in modules().items()})
    assert two_way(graph) == set()
    assert circles(graph) == set()


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, set[str]] = {}
    for module, path in modules().items():
        names = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        for name in names:
            role = re.sub(r"^(m2chat\.worlds\.)\w+", r"\1*", module)  # two worlds have the same roles
            places.setdefault(name, set()).add(role)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_circles_and_two_way_pairs_are_seen() -> None:
    sources = {
        "m2chat.a.x": "if TYPE_CHECKING:\n    from m2chat.a.y import Y",
        "m2chat.a.y": "def f():\n    from m2chat.b import z",
        "m2chat.b.z": "import m2chat.a.x",
        "m2chat.b": "",
        "m2chat.c": "from m2chat.a.x import X",
    }
    graph = imported(sources)
    assert circles(graph) == {frozenset({"m2chat.a.x", "m2chat.a.y", "m2chat.b.z"})}
    assert two_way(graph) == {("a", "b")}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("models", "from m2chat.text import layout"),
        ("models", "import lightning.pytorch"),
        ("data", "def f():\n    from m2chat.models import gate"),
        ("world", "from m2chat import data"),
        ("data", "from m2chat.worlds.shapes.shards import write_world"),
        ("worlds", "from m2chat.training import optim"),
        ("training", "from m2chat.data.datamodule import M2ChatDataModule"),
        ("pipeline", "from m2chat.training import strategy"),
        ("pipeline", "from m2chat.data.datamodule import M2ChatDataModule"),
        ("text", "from torch.nn import Linear"),
    ],
)
def test_a_forbidden_import_is_seen(part: str, source: str) -> None:
    assert faults(part, source)


def test_what_scripts_and_benchmarks_import_exists() -> None:
    missing = []
    for file in chain.from_iterable((PROJECT / name).rglob("*.py") for name in ("scripts", "benchmarks", "examples")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m2chat"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    is_package = hasattr(module, "__path__")
                    if not hasattr(module, alias.name) and not (
                        is_package and find_spec(f"{node.module}.{alias.name}")
                    ):
                        missing.append(f"{file.name}: {node.module}.{alias.name}")
    assert missing == []
