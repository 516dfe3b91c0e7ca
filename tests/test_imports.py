"""The order of imports: pure torch below, Lightning above, one place that knows both data and training."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "m2chat"
EVERYWHERE = {"schema", "errors", "files", "checksums", "integrity", "_compat", "world"}

# What of ours each part may import, besides itself and EVERYWHERE. The parts that are not named may import anything.
OURS: dict[str, set[str]] = {
    "__init__": {"pipeline"},
    "_compat": set(),
    "errors": set(),
    "files": {"errors"},
    "schema": set(),
    "world": {"errors", "schema"},
    "text": set(),
    "models": set(),
    "losses": set(),
    "planning": {"models", "losses"},
    "metrics": {"models.weights"},  # networks that measure are read as those that are measured
    "evaluation": {"metrics"},
    "data": {"text"},
    "training": {"models", "losses", "text", "pipeline"},  # validation generates replies, and replies are words
    "baselines": {"models", "losses", "text", "pipeline", "training"},
    "callbacks": {"metrics", "evaluation"},
    "pipeline": {"text", "models", "data.images"},  # pictures are resized and normalised as in training
    "app": {"pipeline", "data.images"},
    # Generated worlds are found by name, through `world`: nothing but commands may import one.
    "worlds": {"text", "models", "losses", "metrics", "evaluation", "data", "pipeline"},
}
LOWEST = {"_compat", "errors", "files", "schema", "world"}

# What of others' each part must not import.
FORBIDDEN: dict[str, set[str]] = {
    "schema": {"lightning", "transformers", "diffusers", "open_clip"},
    "world": {"torch", "lightning"},
    "worlds": {"lightning"},
    "text": {"lightning", "torch.nn"},
    "models": {"lightning", "webdataset"},
    "planning": {"lightning", "webdataset"},
    "losses": {"lightning", "transformers", "diffusers"},
    "metrics": {"lightning"},
    "evaluation": {"lightning"},
    "pipeline": {"lightning"},
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


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not faults(part, path.read_text(encoding="utf-8"))


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
