"""What is shipped in data/micro: whole, small enough, and as good as it must be."""

from __future__ import annotations

import inspect
from pathlib import Path

from m2chat.worlds.manifest import read_manifest, verify_manifest
from m2chat.worlds.shapes.recipe.clip import train_clip
from m2chat.worlds.shapes.recipe.fid_net import train_fid_net
from m2chat.worlds.shapes.recipe.llama import ROUNDS, train_language
from m2chat.worlds.shapes.recipe.metric_clip import train_metric_clip
from m2chat.worlds.shapes.recipe.parts import BACKBONES, DENSE_STEPS, PARTS
from m2chat.worlds.shapes.recipe.text_encoders import train_text_encoders
from m2chat.worlds.shapes.recipe.unet import train_unet
from m2chat.worlds.shapes.recipe.vae import train_vae

ROOT = Path(__file__).parents[4] / "data" / "micro"
FLOORS = {
    ("vae", "all_right"): 0.98,
    ("text_encoders", "attributes_readable"): 0.97,
    ("unet", "all_right_one_object"): 0.97,
    ("unet", "all_right_two_objects"): 0.88,
    ("unet_small", "all_right_one_object"): 0.95,
    ("unet_small", "all_right_two_objects"): 0.95,
    ("lcm_lora", "all_right_one_object_4_steps"): 0.95,
    ("lcm_lora", "all_right_two_objects_4_steps"): 0.88,  # the floor of the UNet that it is distilled from
    ("clip", "image_to_text_r1_of_500"): 0.75,
    ("clip", "text_to_image_r1_of_500"): 0.75,
    ("metric_clip", "image_to_text_r1_of_500"): 0.75,
    ("metric_clip", "text_to_image_r1_of_500"): 0.75,
    ("language", "base_copies_exactly"): 0.97,
    # Through an adapter that stage 0 trained on descriptions alone 0.70 were measured; the shipped one is from before.
    ("language", "copies_exactly"): 0.65,
    ("language", "describes_colour_and_shape"): 0.85,
}


def test_files_are_those_of_the_manifest() -> None:
    assert verify_manifest(ROOT, BACKBONES) == []
    manifest = read_manifest(ROOT)
    assert manifest["total_bytes"] <= BACKBONES.limit == 24 * 2**20
    assert PARTS.keys() <= manifest["parts"].keys()


def test_quality_reaches_the_floor() -> None:
    parts = read_manifest(ROOT)["parts"]
    low = {key: parts[key[0]]["quality"][key[1]] for key in FLOORS if parts[key[0]]["quality"][key[1]] < FLOORS[key]}
    assert low == {}


def test_recipes_repeat_the_steps_that_were_taken() -> None:
    parts = read_manifest(ROOT)["parts"]
    recipes = {
        "vae": train_vae,
        "text_encoders": train_text_encoders,
        "unet": train_unet,
        "metric_clip": train_metric_clip,
        "fid": train_fid_net,
    }
    for name, recipe in recipes.items():
        assert inspect.signature(recipe).parameters["steps"].default == parts[name]["steps"], name
    # The conditioning CLIP has steps of contrast, then steps in which all its tokens are read.
    contrast = inspect.signature(train_clip).parameters["steps"].default
    assert parts["clip"]["steps"] == contrast + DENSE_STEPS
    copy_steps = inspect.signature(train_language).parameters["copy_steps"].default
    taken = {name: [getattr(own, name) for own in ROUNDS] for name in ("visual", "reading")}
    # The shipped adapter learned between the rounds, before stage 0 was there to train one.
    assert parts["language"]["steps"] == {"copy": copy_steps, **taken, "adapter": [1200, 700, 500, 500, 500, 500, 400]}
