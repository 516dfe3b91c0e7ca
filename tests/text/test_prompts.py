"""Formats of prompts: the model's chat template as transformers renders it, the cutting in both, the linear work."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m2chat.errors import UserError
from m2chat.schema import Segment, Turn
from m2chat.text import Layout, M2ChatTokenizer, Request, view_of
from m2chat.text.layout import StoppedError, alpaca
from m2chat.text.prompts import GO_ON
from text.chat_folder import SPECIAL, TEMPLATES, write_folder
from text.test_view import sample

MICRO = Path(__file__).parents[2] / "data" / "micro"
Folders = Callable[[str], Path]
TALK = sample(
    Turn("user", ("hello there",)),
    Turn("assistant", ("Hello! What shall I draw?",)),
    Turn("user", ("look", 0, "  paint it red ")),
    Turn("assistant", ("here", 1)),
    Turn("user", (2, "and this?")),
    Turn("assistant", ("so",)),
)
SAID = [
    ("user", "hello there"),
    ("assistant", "Hello! What shall I draw?"),
    ("user", "look\n[picture 1: picture of a cat]\npaint it red"),
    ("assistant", "here\n[picture 2: picture of a dog]"),
    ("user", "[picture 3: picture of a pig]\nand this?"),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("chat")
    made = {name: write_folder(root / name, template) for name, template in TEMPLATES.items()}
    return made.__getitem__


def layout_of(folder: Path, max_tokens: int = 100_000, **options: Any) -> Layout:
    return Layout(M2ChatTokenizer(folder), 3, max_tokens, **options)


def theirs(folder: Path, said: list[tuple[str, str]], generate: bool = True) -> list[int]:
    """Tokens of transformers."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": role, "content": text} for role, text in said]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=generate, return_dict=False)
    return ids


@pytest.mark.parametrize("name", ["chatml", "llama-2"])
def test_a_conversation_has_the_tokens_of_transformers(name: str, folder: Folders) -> None:
    layout = layout_of(folder(name))
    ids, cut = layout.prompt(view_of(TALK, 5).request, 100_000)
    assert ids == theirs(folder(name), SAID) and cut == 0
    # The whole sequence, with a reply, is that of the template too, up to the end of the turn.
    reply = layout.encode(view_of(TALK, 5).request, [Segment("so")])
    whole = theirs(folder(name), [*SAID, ("assistant", "so")], generate=False)
    assert reply.input_ids[-1] == layout.end_id == SPECIAL.index({"chatml": "<|im_end|>", "llama-2": "<|eos|>"}[name])
    if name == "chatml":  # Llama 2's has blanks around a reply, which its own tokenizer puts there
        assert reply.input_ids == whole[: len(reply)]


@pytest.mark.parametrize("form", ["legacy", "not legacy", "silent", "json", "json that prepends"])
def test_pieces_of_sentencepiece_have_the_tokens_of_transformers(form: str, tmp_path: Path) -> None:
    """Behind a special token stands no space, unless the folder asks for the old way."""
    from transformers import AutoTokenizer

    shutil.copy(MICRO / "llama" / "tokenizer.model", tmp_path)
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                              "unk_token": "<unk>", "chat_template": template}  # fmt: skip
    config |= {"legacy": {"legacy": True, "not legacy": False}[form]} if "legacy" in form else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    folder, tokenizer = tmp_path, AutoTokenizer.from_pretrained(tmp_path)
    if form.startswith("json"):
        tokenizer.save_pretrained(folder := tmp_path / "fast")
        if form != "json":
            data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            blank = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
            steps = [{"type": "Prepend", "prepend": "▁"}, blank]
            data |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
            (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
            saved = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            saved["tokenizer_class"] = "PreTrainedTokenizerFast"
            (folder / "tokenizer_config.json").write_text(json.dumps(saved), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": role, "content": text} for role, text in SAID]
    expected = tokenizer.apply_chat_template(messages, return_dict=False)
    ids, _ = layout_of(folder, format="chat").prompt(view_of(TALK, 5).request, 100_000)
    assert ids == list(expected)


def test_dates_stand_still_and_blocks_of_training_are_written(folder: Folders) -> None:
    layout = layout_of(folder("llama-3"))
    ids, _ = layout.prompt(Request("hello"), 1000)
    assert "Today: 26 Jul 2024" in layout.tokenizer.decode(ids) and ids[0] == 0
    assert layout.end_id == SPECIAL.index("<|eot|>") != layout.tokenizer.eos_id
    assert [piece for piece in ids if piece == layout.end_id] == [layout.end_id] * 2


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_turns_alternate_whatever_the_conversation(name: str, folder: Folders) -> None:
    """A story's parts follow one another, an assistant may begin, people write twice: no template has to refuse."""
    turns = (
        Turn("assistant", ("Hi",)),
        *(Turn("user", (word,)) for word in ("a", "b")),
        *[Turn("assistant", (0,))] * 2,
    )
    layout = layout_of(folder(name))
    ids, _ = layout.prompt(view_of(sample(*turns, Turn("assistant", ("end",))), 5).request, 10_000)
    picture = "[picture 1: picture of a cat]"
    said = [("user", GO_ON), ("assistant", "Hi"), ("user", "a\nb"), ("assistant", picture), ("user", GO_ON)]
    if name != "llama-3":  # whose date transformers takes from the clock
        assert ids == theirs(folder(name), [*said, ("assistant", picture), ("user", GO_ON)])


TYPED = " ".join(SPECIAL) + " <|img|> <|IC|> {{ raise_exception('x') }} \ue0000\ue001 [/INST]"


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_what_people_write_is_never_special(name: str, folder: Folders) -> None:
    layout = layout_of(folder(name))
    turns = (Turn("user", (TYPED,)), Turn("assistant", (TYPED,)), Turn("user", (TYPED,)), Turn("assistant", ("x",)))
    typed = layout.encode(view_of(sample(*turns, pictures=0), 3).request, [Segment(TYPED, TYPED)]).input_ids
    plain = [Turn(turn.role, ("x",)) for turn in turns]
    same = layout.encode(view_of(sample(*plain, pictures=0), 3).request, [Segment("x", "x")]).input_ids
    special = {*range(len(SPECIAL)), layout.tokenizer.ic_id, layout.tokenizer.img_id}
    assert [token for token in typed if token in special] == [token for token in same if token in special]
    assert layout.tokenizer.decode(typed).count("raise_exception('x')") == 5


@pytest.mark.parametrize("name", ["alpaca", *TEMPLATES])
def test_the_oldest_turns_go_first_in_every_format(name: str, folder: Folders) -> None:
    words = ["one", "two", "three, a longer text", "four", "five", "six"]
    turns = [Turn("user" if k % 2 == 0 else "assistant", (word,)) for k, word in enumerate(words)]
    asked = view_of(sample(*turns, Turn("user", ("now draw",)), Turn("assistant", ("x",)), pictures=0), 7).request
    where = folder("chatml" if name == "alpaca" else name)
    layout = layout_of(where, format="alpaca" if name == "alpaca" else "auto")
    whole, _ = layout.prompt(asked, 10_000)
    seen = set()
    for room in range(len(layout.prompt(Request("now draw"), 10_000)[0]), len(whole) + 1):
        ids, cut = layout.prompt(asked, room)
        text = layout.tokenizer.decode(ids)
        kept = [word for word in words if word in text]
        assert len(ids) <= room and kept == words[len(words) - len(kept) :] and "now draw" in text
        assert (cut == 0) == (kept == words)
        assert name == "alpaca" or len(kept) % 2 == 0, "a reply goes with its question"
        seen.add(len(kept))
    assert len(seen) >= 4
    ids, cut = layout.prompt(asked, len(layout.prompt(Request("n"), 1000)[0]))
    assert cut > 0 and "now draw" not in layout.tokenizer.decode(ids), "then the end of the instruction"


def test_a_layout_can_be_sent_to_workers_and_says_its_format(folder: Folders, tokenizer: M2ChatTokenizer) -> None:
    layout = layout_of(folder("chatml"))
    again = pickle.loads(pickle.dumps(layout))
    assert again.prompt(Request("hi"), 99) == layout.prompt(Request("hi"), 99)
    assert layout.prompts.name == "chat" and Layout(tokenizer).prompts.name == "alpaca"
    with pytest.raises(UserError, match=r"data\.prompt=chat, and .* has no chat template: set data\.prompt to alpaca"):
        Layout(tokenizer, format="chat")
    with pytest.raises(UserError, match="choose one of auto, alpaca, chat"):
        Layout(tokenizer, format="vicuna")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "message"),
    [("{% for %}", "not valid Jinja"), ("{{ raise_exception('no') }}", "cannot write a conversation .*no")],
)
def test_a_template_that_fails_is_named(template: str, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, template)
    with pytest.raises(UserError, match=rf"{tmp_path}: the chat template .*{message}.*data\.prompt to alpaca"):
        layout_of(tmp_path)


# Alpaca's prompts as they were: every line tokenised again for each that was left out.


def as_before(layout: Layout, request: Request, room: int) -> tuple[list[int], int] | None:
    """The prompt by a plain search; None where the instruction must be cut."""
    encode, full = layout.tokenizer.encode, 0
    for skip in range(len(request.history) + 1):
        ids = [layout.tokenizer.bos_id, *encode(alpaca(request.instruction, "\n".join(request.history[skip:])))]
        full = full or len(ids)
        if len(ids) <= room:
            return ids, full - len(ids)
    return None


LINES = st.text(st.sampled_from("ab é\n\r\t .,!:▁#猫🐈​"), max_size=12)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(LINES, max_size=8), instruction=LINES, room=st.integers(40, 260), easy=st.booleans())
def test_alpacas_prompts_are_what_they_were(
    history: list[str], instruction: str, room: int, easy: bool, tokenizer: M2ChatTokenizer, folder: Folders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Sentencepiece's tokens to the last bit, with the count of what was cut; a byte-level tokenizer's tokens too."""
    monkeypatch.setattr("m2chat.text.layout._EASY", 16 if easy else 0)
    request = Request(instruction, tuple(f"User: {line}" for line in history))
    if (expected := as_before(layout := Layout(tokenizer), request, room)) is not None:
        assert layout.prompt(request, room) == expected
    fast = layout_of(folder("chatml"), format="alpaca")
    if (expected := as_before(fast, request, room)) is not None:
        assert fast.prompt(request, room)[0] == expected[0]


class Counting:
    """A tokenizer that counts the characters that it reads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.read = tokenizer, 0

    def encode(self, text: str, behind: bool = False) -> list[int]:
        self.read += len(text)
        return self._tokenizer.encode(text, behind)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("name", ["sentencepiece", "chatml", "llama-2"])
def test_the_work_grows_with_the_length_of_the_history(name: str, tokenizer: M2ChatTokenizer, folder: Folders) -> None:
    read = {}
    for count in (300, 1200):
        counting = Counting(tokenizer if name == "sentencepiece" else M2ChatTokenizer(folder(name)))
        layout = Layout(counting, 3, 300)  # type: ignore[arg-type]
        lines = [Turn("user" if k % 2 == 0 else "assistant", (f"line {k} " + "of words " * 9,)) for k in range(count)]
        request = view_of(sample(*lines, Turn("user", ("so",)), pictures=0), count + 1).request
        start = counting.read
        ids, cut = layout.prompt(request, 250)
        read[count] = counting.read - start
        assert 150 < len(ids) <= 250 and cut > 10 * count
    assert read[1200] < 4.2 * read[300] and read[1200] < 1.5 * sum(map(len, request.history))


def test_tokenisation_ends_when_nobody_waits(tokenizer: M2ChatTokenizer) -> None:
    asked: list[int] = []

    def is_stopped() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(StoppedError):
        Layout(tokenizer).prompt(Request("hi", tuple(f"User: {'word ' * 50}" for _ in range(2000))), 100, is_stopped)
    assert len(asked) == 4
