"""LLaMA-Adapter V2 against a second writing of its equations, on the official files' own names and row orders.

The second writing shares no code with ours: complex rotation of neighbouring channels, a loop over heads, double
precision. It reads the tensors as released, so the loaders and their permutations are on trial too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m2chat.models.adapter_file import from_official
from m2chat.models.build import load_clip, load_language
from m2chat.models.config import BackboneConfig
from m2chat.models.weights.llama import from_meta

VARIANTS = ["bias", "lora-bias", "caption"]
TOLERANCE: dict[str, Any] = {"atol": 5e-5, "rtol": 0}


class Textbook:
    """The method's equations, one sequence at a time.

    Args:
        sizes: Numbers of the miniature.
        llama: Meta's tensors.
        adapter: The adapter file's.
        clip: OpenAI's.
    """

    def __init__(
        self, sizes: Any, llama: dict[str, Tensor], adapter: dict[str, Tensor], clip: dict[str, Tensor]
    ) -> None:
        self.s = sizes
        self.p = {f"llama.{name}": value for name, value in llama.items()} | adapter | clip

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def affine(self, x: Tensor, name: str) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def everyone(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Attention of all tokens to all tokens."""
        parts = []
        for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            parts.append((a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c)
        return torch.cat(parts, -1)

    def look(self, pixels: Tensor) -> Tensor:
        """CLIP's tokens of a picture, every one normalised and projected."""
        s, p = self.s, self.p
        patches = pixels.unfold(1, s.patch, s.patch).unfold(2, s.patch, s.patch)  # (3, rows, columns, patch, patch)
        patches = patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
        x = patches @ p["visual.conv1.weight"].flatten(1).T
        x = torch.cat([p["visual.class_embedding"][None], x]) + p["visual.positional_embedding"]
        x = self.norm(x, "visual.ln_pre")
        for layer in range(s.tower_layers):
            at = f"visual.transformer.resblocks.{layer}"
            y = self.norm(x, f"{at}.ln_1") @ p[f"{at}.attn.in_proj_weight"].T + p[f"{at}.attn.in_proj_bias"]
            x = x + self.affine(self.everyone(*y.chunk(3, -1), heads=s.tower_width // 64), f"{at}.attn.out_proj")
            y = self.affine(self.norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
            x = x + self.affine(y * torch.sigmoid(1.702 * y), f"{at}.mlp.c_proj")
        return self.norm(x, "visual.ln_post") @ p["visual.proj"]

    def visual_query(self, pixels: Tensor) -> Tensor:
        """v: (K, D)."""
        f = self.norm(self.affine(self.look(pixels), "clip_proj"), "clip_proj_norm")
        x = torch.cat([self.p["visual_query.weight"], f])
        for block in range(self.s.visual_depth):
            at = f"visual_blocks.{block}"
            y = self.affine(self.norm(x, f"{at}.norm1"), f"{at}.attn.qkv")
            x = x + self.affine(self.everyone(*y.chunk(3, -1), heads=self.s.clip_width // 48), f"{at}.attn.proj")
            y = self.affine(self.norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
            x = x + self.affine(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), f"{at}.mlp.fc2")
        return self.norm(self.affine(x[: self.s.prompts], "visual_proj"), "visual_proj_norm")

    def linear(self, x: Tensor, name: str, with_lora: bool = True) -> Tensor:
        y = x @ self.p[f"{name}.weight"].T
        if f"{name}.bias" in self.p:
            y = y + self.p[f"{name}.bias"]
        stem, _, last = name.rpartition(".")
        if with_lora and f"{stem}.lora_{last}_l1.weight" in self.p:
            y = y + x @ self.p[f"{stem}.lora_{last}_l1.weight"].T @ self.p[f"{stem}.lora_{last}_l2.weight"].T
        return y

    def rms(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.s.eps).sqrt() * self.p[f"{name}.weight"]

    def rotate(self, x: Tensor) -> Tensor:
        """(T, d): neighbouring channels are the parts of a complex number."""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        rates = 10000.0 ** (-torch.arange(0, x.shape[-1], 2, dtype=torch.double) / x.shape[-1])
        angles = torch.arange(len(x), dtype=torch.double)[:, None] * rates
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(1)

    def read(self, ids: Tensor, visual_query: Tensor) -> tuple[list[Tensor], Tensor]:
        """States after the embedding, every layer (the last after the norm), and logits."""
        s, p = self.s, self.p
        h = p["llama.tok_embeddings.weight"][ids]
        states = [h]
        causal = torch.full((len(ids), len(ids)), -math.inf, dtype=torch.double).triu(1)
        for layer in range(s.layers):
            at = f"llama.layers.{layer}"
            x = self.rms(h, f"{at}.attention_norm")
            q, k, v = (self.linear(x, f"{at}.attention.w{kind}").chunk(s.heads, -1) for kind in "qkv")
            outputs = []
            offset = layer - (s.layers - s.with_prompts)
            for head in range(s.heads):
                query, key = self.rotate(q[head]), self.rotate(k[head])
                scale = math.sqrt(query.shape[-1])
                output = (query @ key.T / scale + causal).softmax(-1) @ v[head]
                if offset >= 0:
                    prompt = p["adapter_query.weight"][offset * s.prompts : (offset + 1) * s.prompts] + visual_query
                    pk = self.linear(prompt, f"{at}.attention.wk", with_lora=False).chunk(s.heads, -1)[head]
                    pv = self.linear(prompt, f"{at}.attention.wv", with_lora=False).chunk(s.heads, -1)[head]
                    gate = torch.tanh(p[f"{at}.attention.gate"][0, head, 0, 0])
                    gate = gate * p[f"{at}.attention.new_gate"].sum() if f"{at}.attention.new_gate" in p else gate
                    output = output + gate * ((query @ pk.T / scale).softmax(-1) @ pv)
                outputs.append(output)
            h = h + self.linear(torch.cat(outputs, -1), f"{at}.attention.wo")
            x = self.rms(h, f"{at}.ffn_norm")
            inner = self.linear(x, f"{at}.feed_forward.w1")
            inner = inner * torch.sigmoid(inner) * self.linear(x, f"{at}.feed_forward.w3")
            h = h + self.linear(inner, f"{at}.feed_forward.w2")
            states.append(h)
        states[-1] = self.rms(h, "llama.norm")
        return states, states[-1] @ p["llama.output.weight"].T

    @torch.no_grad()
    def greedy(self, ids: list[int], pixels: Tensor, steps: int) -> list[int]:
        seen = self.visual_query(pixels)
        for _ in range(steps):
            ids = [*ids, int(self.read(torch.tensor(ids), seen)[1][-1].argmax())]
        return ids


def textbook(official: Any, variant: str, requires_grad: bool = False) -> Textbook:
    """On the released numbers: LLaMA in fp16, the rest in fp32."""
    llama = {name: value.half() for name, value in official.llama().items() if "rope" not in name}
    parts = (llama, official.adapter(variant), official.clip())
    doubles = [{n: value.double().requires_grad_(requires_grad) for n, value in part.items()} for part in parts]
    return Textbook(official.sizes, *doubles)


@pytest.fixture(scope="module", params=VARIANTS)
def loaded(request: pytest.FixtureRequest, official: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A variant's name, our networks as loaded from miniature official files, and the textbook."""
    root: Path = tmp_path_factory.mktemp(request.param)
    torch.save(official.clip(), root / "ViT.pt")
    official.write_meta(root)
    official.write_adapter(root / "adapter.pth", request.param)
    backbone = BackboneConfig(str(root), str(root / "adapter.pth"), str(root / "ViT.pt"), "", 8)
    llama, visual_query = load_language(backbone)
    return request.param, llama.eval(), visual_query, load_clip(backbone), textbook(official, request.param)


def pictures(rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def words(rows: int = 2, length: int = 7, seed: int = 4) -> Tensor:
    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_the_eye(loaded: Any) -> None:
    _, _, visual_query, clip, book = loaded
    with torch.no_grad():
        f_img = clip(pictures())
        torch.testing.assert_close(
            f_img.double(), torch.stack([book.look(one.double()) for one in pictures()]), **TOLERANCE
        )
        expected = torch.stack([book.visual_query(one.double()) for one in pictures()])
        torch.testing.assert_close(visual_query(f_img).double(), expected, **TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_of_every_layer_and_logits(loaded: Any, attention: str) -> None:
    _, llama, visual_query, clip, book = loaded
    llama.set_attn_implementation(attention)
    with torch.no_grad():
        output = llama(words(), visual_query=visual_query(clip(pictures())), output_hidden_states=True)
        blind = llama(words()).logits
    assert len(output.hidden_states) == 1 + book.s.layers
    for row, (ids, picture) in enumerate(zip(words(), pictures(), strict=True)):
        states, logits = book.read(ids, book.visual_query(picture.double()))
        for ours, expected in zip(output.hidden_states, states, strict=True):
            torch.testing.assert_close(ours[row].double(), expected, **TOLERANCE)
        torch.testing.assert_close(output.logits[row, :, :640].double(), logits, **TOLERANCE)
    assert (blind - output.logits).abs().max() > 0.1, "the picture must matter, or nothing was compared"
    llama.set_attn_implementation("sdpa")


class _Backward(torch.nn.Module):
    """A pass and its backward pass, which computes checkpointed layers again, on borrowed parameters."""

    def __init__(self, llama: Any, weight: Tensor) -> None:
        super().__init__()
        self.llama, self.weight = llama, weight

    def forward(self, ids: Tensor, seen: Tensor) -> None:
        logits = self.llama(ids, visual_query=seen, use_cache=False).logits
        (logits[..., :640] * self.weight).sum().backward()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_every_official_tensor(loaded: Any, official: Any, checkpointing: bool) -> None:
    variant, llama, visual_query, clip, _ = loaded
    book = textbook(official, variant, requires_grad=True)
    weight = torch.randn(2, 7, 640, generator=torch.Generator().manual_seed(5)).double()
    expected = torch.stack([
        book.read(ids, book.visual_query(one.double()))[1] for ids, one in zip(words(), pictures(), strict=True)
    ])  # fmt: skip
    (expected * weight).sum().backward()

    # Ours: the official tensors are the leaves, and renaming and re-ordering are part of the graph.
    parts = ({n: t.half() for n, t in official.llama().items() if "rope" not in n}, official.adapter(variant))
    base, adapter = ({n: t.float().requires_grad_() for n, t in part.items()} for part in parts)
    named = {f"llama.{n}": t for n, t in from_meta(base, book.s.heads, book.s.heads)[0].items()}
    named |= from_official(adapter, book.s.heads, book.s.layers)
    own, eye = (
        {n.removeprefix(part): t for n, t in named.items() if n.startswith(part)}
        for part in ("llama.", "visual_query.")
    )
    llama.train()
    if checkpointing:
        llama.activation_checkpointing_enable({"use_reentrant": False})
    try:
        seen = torch.func.functional_call(visual_query, eye, (clip(pictures()),))
        within = {f"llama.{name}": tensor for name, tensor in own.items()}
        torch.func.functional_call(_Backward(llama, weight), within, (words(), seen))
    finally:
        llama.activation_checkpointing_disable()
        llama.eval()
    idle = {"llama.layers.0.attention.gate", "llama.layers.0.attention.new_gate"}
    leaves = {f"llama.{name}": leaf for name, leaf in base.items()} | adapter  # which brings norms of its own
    assert set(leaves) == {name for name in book.p if name not in official.clip()}
    for name, leaf in leaves.items():
        truth = book.p[name].grad
        if name in idle:
            assert leaf.grad is None and truth is None
            continue
        assert leaf.grad is not None and truth is not None and truth.any(), name
        # Against the largest of a tensor's gradients, for those differ by orders of magnitude between tensors.
        scale = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(leaf.grad.double() / scale, truth / scale, msg=name, **TOLERANCE)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_tokens_of_a_left_padded_batch(loaded: Any, attention: str, cache: str) -> None:
    _, llama, visual_query, clip, book = loaded
    llama.set_attn_implementation(attention)
    prompts = [words(1, length, seed=length)[0].tolist() for length in (3, 8, 5)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    said = llama.generate(
        ids, attention_mask=mask, visual_query=visual_query(clip(pictures(3))), max_new_tokens=12, do_sample=False,
        pad_token_id=0, eos_token_id=None, cache_implementation=cache, suppress_tokens=[640, 641],
    )  # fmt: skip
    llama.set_attn_implementation("sdpa")
    for row, (prompt, picture) in enumerate(zip(prompts, pictures(3), strict=True)):
        expected = book.greedy(prompt, picture.double(), 12)
        assert said[row, longest - len(prompt) :].tolist() == expected
    assert len({tuple(row[longest:].tolist()) for row in said}) > 1, "or nothing was told apart"


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_decoding_with_a_static_cache(loaded: Any, backend: str) -> None:
    from transformers import StaticCache

    _, llama, visual_query, clip, book = loaded
    seen = visual_query(clip(pictures(1)))
    step = torch.compile(llama, backend=backend, fullgraph=True)
    cache, said = StaticCache(config=llama.config, max_cache_len=16), words(1, 4)[0].tolist()
    prompt = list(said)
    with torch.no_grad():
        ids = torch.tensor([said])
        for start in (0, *range(4, 9)):
            positions = torch.arange(start, start + ids.shape[1])[None]
            logits = step(ids, position_ids=positions, cache=cache, visual_query=seen, use_cache=True).logits
            said.append(int(logits[0, -1, :640].argmax()))
            ids = torch.tensor([said[-1:]])
    assert said == book.greedy(prompt, pictures(1)[0].double(), 6)
