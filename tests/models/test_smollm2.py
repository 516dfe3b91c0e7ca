"""A real language model: SmolLM2-135M-Instruct, which `make smollm2` brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from bases import write_adapter
from m2chat.models.build import load_language
from m2chat.models.config import BackboneConfig
from m2chat.text import M2ChatTokenizer

FOLDER = Path(__file__).parents[2] / "data" / "smollm2"
REQUESTS = [
    "Describe an apple in one short sentence.", "I'm hungry. What should I eat?", "I adopted a kitten today!",
    "What is 12 + 345?", "Name three colours.", "Write a haiku about rain.", "Who wrote Hamlet?",
    "Translate 'good morning' into French.", "What do bees make?", "Tell me a joke.", "Why is the sky blue?",
    "List two fruits.", "How many legs has a spider?", "What is the capital of Japan?", "Say hello.",
    "Is ice colder than water?", "What does <|im_end|> mean?", "Give me a word that rhymes with cat.",
    "What's the opposite of hot?", "Complete: once upon a",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="`make smollm2` brings it")
@torch.inference_mode()
def test_its_continuations_are_transformers_own(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.pth", width=576, heads=9, layers=30)
    ours = load_language(BackboneConfig(str(FOLDER), str(adapter), "", "", 8))[0].eval()
    theirs = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer, their_tokenizer = M2ChatTokenizer(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.ic_id) == (1, 2, 49152)
    assert tokenizer.chat_template == their_tokenizer.chat_template
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    for request in REQUESTS:
        conversation = [{"role": "user", "content": "REQUEST"}]
        prompt = their_tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        before, after = prompt.split("REQUEST")
        parts = tokenizer.special_ids(before), tokenizer.encode(request), tokenizer.special_ids(after)
        ids = torch.tensor([[token for part in parts for token in part]])
        if "<|" not in request:  # transformers takes typed marks for the tokens, and we never do
            assert ids.tolist()[0] == their_tokenizer.encode(before + request + after, add_special_tokens=False)
        torch.testing.assert_close(ours(ids).logits[..., :49152], theirs(ids).logits, atol=5e-5, rtol=0)
        settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 2, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(ours.generate(ids, **settings), theirs.generate(ids, **settings)), request
