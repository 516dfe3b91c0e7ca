"""What the scripts that measure the pocket model count, without a model."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from m2chat.worlds.emoji.phrases import everyday, phrases
from m2chat.worlds.emoji.scenes import Scene

SCRIPTS = Path(__file__).parents[1] / "scripts"
SCENES = (
    Scene("guide dog", "noto", label="guide dog", keywords=("blind", "animal")),
    Scene("dog", "noto", label="dog", keywords=("pet", "animal", "puppies")),
    Scene("dancer", "noto", gender="woman", label="woman dancing", keywords=("dance", "party")),
    Scene("dancer", "noto", label="dancer", keywords=("dance",)),
)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lookup_takes_names_before_keywords_and_stems_before_letters() -> None:
    lookup = script("pocket_prompts").Lookup(SCENES)
    assert [lookup(text) for text in ("my dog's ball", "a puppy for a pet", "the blind man", "we danced")] == [
        "dog", "dog", "guide dog", "dancer",
    ]  # fmt: skip
    assert lookup("quite another matter") is None


def test_names_become_what_a_picture_must_show() -> None:
    prompts = script("pocket_prompts")
    assert prompts.wanted("dancer", SCENES) == {"concept": "dancer"}
    assert prompts.wanted("woman dancing", SCENES) == {"concept": "dancer", "gender": "woman"}
    assert prompts.wanted("unicorn", SCENES) is None
    low, high = prompts.wilson(34, 56)
    assert (low, high) == pytest.approx((47.6, 72.4), abs=0.1)


def test_small_talk_is_counted_and_shown(tmp_path: Path) -> None:
    talk = script("pocket_smalltalk")
    assert talk.distinct(["A cat, a cat!", "a dog"], 1) == 0.5 and talk.distinct(["one"], 2) == 0
    rows = [{"question": f"q{k}?", "SmolLM2": "a | b\nc", "pocket": "d"} for k in range(9)]
    facts = {name: {"likelihood of a token": 0.5} for name in ("SmolLM2", "pocket")} | {
        "ratio": 1.0, "replies with a picture": 0,
    }  # fmt: skip
    text = talk.section(rows, facts, "weights")
    assert text.count("? | a") == 3 and r"| q4? | a \| b c | d |" in text and "replies with a picture: 0" in text


def test_the_questions_are_two_hundred_and_none_is_trained_on() -> None:
    questions = (SCRIPTS / "pocket_smalltalk.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(questions)) == len(questions) == 200 and all(question.endswith("?") for question in questions)
    trained = {text for pair in phrases()["small_talk"] for text in pair["said"]} | {said for said, _ in everyday()}

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]+", "", text.lower())

    assert not {plain(text) for text in trained} & {plain(question) for question in questions}


def test_smollm2s_answers_end_with_a_sentence() -> None:
    whole = script("pocket_everyday").whole_sentences
    assert whole('It is red. "Really?" It is 1.5 m') == 'It is red. "Really?"'
    assert whole("Three ways:\n\n1. Walk. It helps.\n2. Ru") == "Three ways:\n\n1. Walk. It helps."
    assert whole("Three ways:\n\n1") == ""
    repeats = script("pocket_everyday").repeats_itself
    assert repeats("Be friendly. " * 6) and not any(repeats(answer) for _, answer in everyday())
    assert len(everyday()) > 500 and all(answer == answer.strip() for _, answer in everyday())
