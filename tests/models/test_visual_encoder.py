from __future__ import annotations

import pytest
import torch
from torch import nn

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder


def test_the_first_token_is_what_open_clip_makes_of_the_picture(
    micro_model: M2ChatModel, backbone: BackboneConfig
) -> None:
    import open_clip

    clip = open_clip.create_model(f"local-dir:{backbone.vision_encoder}").eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = micro_model.clip(pixels)
    patches = 1 + (32 // clip.visual.conv1.stride[0]) ** 2
    assert tokens.shape == (2, patches, micro_model.clip.width)
    with torch.no_grad():
        torch.testing.assert_close(tokens[:, 0], clip.visual(pixels), atol=1e-5, rtol=1e-5)
    other = micro_model.clip(pixels.roll(1, 0))
    torch.testing.assert_close(other.roll(1, 0), tokens, atol=1e-5, rtol=1e-5)


def test_channel_order_is_honoured(micro_model: M2ChatModel) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    swapped = ClipTokens(micro_model.clip.visual, "bgr")(pixels)
    torch.testing.assert_close(swapped, micro_model.clip(pixels[:, [2, 1, 0]]))
    assert not torch.allclose(swapped, micro_model.clip(pixels), atol=1e-2)
    with pytest.raises(UserError, match="channel_order='gbr'"):
        ClipTokens(micro_model.clip.visual, "gbr")


def test_the_eye_is_frozen(micro_model: M2ChatModel) -> None:
    pixels = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not micro_model.clip(pixels).requires_grad


def test_visual_query_equals_a_textbook_transformer() -> None:
    torch.manual_seed(0)
    encoder = VisualQueryEncoder(clip_width=24, width=16, prompts=3, depth=2, heads=4)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    f_img = torch.randn(2, 5, 24)

    tokens = nn.functional.layer_norm(
        f_img @ encoder.clip_proj.weight.T + encoder.clip_proj.bias, (24,),
        encoder.clip_proj_norm.weight, encoder.clip_proj_norm.bias, 1e-5,
    )  # fmt: skip
    x = torch.cat([encoder.visual_query.weight.expand(2, -1, -1), tokens], 1)
    for block in encoder.visual_blocks:
        own = {name: value.detach() for name, value in block.state_dict().items()}
        layer = nn.TransformerEncoderLayer(24, 4, 96, 0.0, "gelu", 1e-5, batch_first=True, norm_first=True)
        named = {
            "self_attn.in_proj_weight": own["attn.qkv.weight"], "self_attn.in_proj_bias": own["attn.qkv.bias"],
            "self_attn.out_proj.weight": own["attn.proj.weight"], "self_attn.out_proj.bias": own["attn.proj.bias"],
            **{f"linear{k}.{kind}": own[f"mlp.fc{k}.{kind}"] for k in (1, 2) for kind in ("weight", "bias")},
            **{f"norm{k}.{kind}": own[f"norm{k}.{kind}"] for k in (1, 2) for kind in ("weight", "bias")},
        }  # fmt: skip
        layer.load_state_dict(named)
        x = layer(x)
    expected = encoder.visual_proj_norm(encoder.visual_proj(x[:, :3]))
    assert expected.shape == (2, 3, 16)
    torch.testing.assert_close(encoder(f_img), expected, atol=1e-5, rtol=1e-5)


def test_the_query_keeps_its_own_precision() -> None:
    encoder = VisualQueryEncoder(clip_width=24, width=16, prompts=3, depth=1, heads=4)
    assert encoder(torch.randn(1, 5, 24).bfloat16()).dtype == torch.float32
