"""Generated worlds: found by name, and added by one folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import m2chat.worlds
from m2chat.data.dataset import Source, SourceConfig
from m2chat.errors import UserError
from m2chat.world import find_world, generate_shards, world_names

DUMMY = """
from pathlib import Path

import numpy as np

from m2chat.data.shards import write_shards
from m2chat.data.sources import caption_sample
from m2chat.schema import Image
from m2chat.world import Judged


class Greys:
    name, image_size, licence, shards, max_error = "greys", 8, "CC0-1.0", Path("data/greys"), 1.0
    attributes = ("level",)

    def write_shards(self, root):
        for split in ("train", "val"):
            samples = [caption_sample(f"{split}/{k}", "plain", Image(np.full((8, 8, 3), k, np.uint8), f"grey {k}"), {})
                       for k in range(3 if split == "train" else 2)]
            write_shards(iter(samples), root / "plain" / split, "plain", 10)

    def judge(self, targets):
        return Judged(all_right=[target.generated is not None for target in targets])


WORLD = Greys()
"""


def test_the_shapes_world_is_known() -> None:
    assert "shapes" in world_names()
    assert find_world("shapes").name == "shapes"


def test_an_unknown_world_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"world='moon' is no generated world: choose one of .*shapes"):
        find_world("moon")


def test_a_new_world_is_one_folder_and_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greys").mkdir()
    (tmp_path / "greys" / "__init__.py").write_text(DUMMY, encoding="utf-8")
    monkeypatch.setattr(m2chat.worlds, "__path__", [*m2chat.worlds.__path__, str(tmp_path)])
    assert "greys" in world_names()
    source = {"name": "plain", "path": str(tmp_path / "data" / "plain" / "train"), "world": "greys"}
    (tmp_path / "greys.yaml").write_text(yaml.safe_dump(source), encoding="utf-8")

    config = SourceConfig(**yaml.safe_load((tmp_path / "greys.yaml").read_text(encoding="utf-8")))
    config.generate()
    assert len(Source(config)) == 3
    from m2chat.callbacks.judge import Judge

    assert Judge(world="greys").protocol() == {"world": "greys", "judge_max_error": 1.0}


def test_a_folder_with_anything_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "work" / "pictures").mkdir(parents=True)
    (tmp_path / "work" / "thesis.txt").write_text("years")
    for root in (tmp_path / "work", tmp_path / "work" / "thesis.txt"):
        with pytest.raises(UserError, match=r"would replace .* which holds something else"):
            generate_shards("shapes", root)
    with pytest.raises(UserError, match="would replace"):
        SourceConfig("mine", str(tmp_path / "work" / "pictures" / "train"), world="shapes").generate()
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"


@pytest.mark.filterwarnings("ignore")
def test_a_source_takes_nothing_over_from_the_one_that_it_replaces() -> None:
    """jsonargparse would merge lists of one length: weight, kinds and world of the sources in the configuration."""
    from m2chat.lightning_cli import read_config

    config = str(Path(__file__).parent.parent / "configs" / "stage1.yaml")
    replaced = ("--data.train=[{name: a, path: x}, {name: b, path: y, weight: 2}]", "--data.val=[{name: c, path: z}]")
    data = read_config([config], replaced)[0].data
    assert data.train == [SourceConfig("a", "x"), SourceConfig("b", "y", weight=2.0)]
    assert data.val == [SourceConfig("c", "z")]
    for text, message in (
        ("[{name: a, path: x, wieght: 1}]", "Option 'wieght' is not accepted. Did you mean 'weight'"),
        ("[{name: a}]", r"^data\.val\.path='null': expected a text$"),
        ("[{name: a, path: x, weight: much}]", r"^data\.val\.weight='much': expected a number$"),
        (
            "[{name: a, path: x, stream: sequentiel}]",
            "data.val.stream='sequentiel': expected 'auto', 'random', 'sequential'",
        ),
        ("[a]", "expected a table of settings"),
    ):
        with pytest.raises(UserError, match=message):
            read_config([config], (f"--data.val={text}",))
