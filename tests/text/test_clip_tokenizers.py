from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from m2chat.data.collate import CaptionTokens
from m2chat.errors import UserError
from m2chat.text.clip_tokenizers import clip_tokenizers, openai_tokenizers

CAPTIONS = ["a photo of a cat, 3 dogs!", "Zoë's  naïve café — 42", "日本 🎉 </w>", " ".join(["word"] * 200), "", "!"]


def test_sdxl_in_one_file_has_openai_s_tokens(tmp_path: Path) -> None:
    (tmp_path / "sdxl.safetensors").write_bytes(b"")
    first, second = CaptionTokens(tmp_path / "sdxl.safetensors")(CAPTIONS)
    expected = open_clip.get_tokenizer("ViT-L-14")(CAPTIONS)
    assert torch.equal(second, expected), "an exclamation mark is a word, though it is also what fills the row"
    assert torch.equal(first, expected.masked_fill(expected == 0, 49407))


def test_the_two_differ_in_what_fills_a_row() -> None:
    first, second = openai_tokenizers()
    assert len(first) == len(second) == 49408 and first.model_max_length == second.model_max_length == 77
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)


def test_neither_a_folder_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no folder `tokenizer`: give a folder as diffusers saves it, or SDXL in"):
        clip_tokenizers(tmp_path)
