from __future__ import annotations

import pytest
import torch

from lavit.config import ConfigError
from lavit.renderers.conditioning import (
    AttentionPool,
    ConditioningConfig,
    SDConditioning,
    SDConfig,
    SDXLConditioning,
    SDXLConfig,
    new_conditioning,
)

FEATURES = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
DROP = torch.tensor([False, True, False])
XL = SDXLConfig([6, 8], heads=2, time=16)


@pytest.mark.parametrize("positions", [True, False])
def test_one_projection_stands_in_the_place_of_text(positions):
    torch.manual_seed(0)
    made = new_conditioning(ConditioningConfig(sd=SDConfig(6, positions)), 5, 4)
    assert isinstance(made, SDConditioning) and (made.position is not None) == positions
    states, added = made(FEATURES, DROP, (16, 16))
    expected = FEATURES @ made.project.weight.T + made.project.bias + (made.position if positions else 0)
    torch.testing.assert_close(states[~DROP], expected[~DROP])
    torch.testing.assert_close(states[1], made.unconditional.expand(4, 6))
    assert added is None


def test_unknown_features_may_have_a_vector_a_patch():
    made = new_conditioning(ConditioningConfig(sd=SDConfig(6, unconditional=4)), 5, 4)
    assert torch.equal(made(FEATURES, DROP, (16, 16)).states[1], made.unconditional)
    assert made.unconditional.shape == (4, 6)
    with pytest.raises(ValueError, match=r"sd\.unconditional is 3; choose 1, or 4, one a patch"):
        new_conditioning(ConditioningConfig(sd=SDConfig(6, unconditional=3)), 5, 4)


def test_two_projections_stand_side_by_side_and_zeros_are_the_negatives():
    torch.manual_seed(0)
    made = new_conditioning(ConditioningConfig(sdxl=XL), 5, 4)
    assert isinstance(made, SDXLConditioning)
    states, added = made(FEATURES, DROP, (16, 24))
    assert states.shape == (3, 4, 14) and added["text_embeds"].shape == (3, 8)
    torch.testing.assert_close(states[0], torch.cat([project(FEATURES[0]) for project in made.project], dim=-1))
    torch.testing.assert_close(added["text_embeds"][~DROP], made.pool(made.project[1](FEATURES))[~DROP])
    assert not states[1].any() and not added["text_embeds"][1].any()
    assert added["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 3


def test_pooling_is_attention_of_the_mean():
    torch.manual_seed(0)
    pool = AttentionPool(8, 4, heads=1)
    x = torch.randn(2, 4, 8)
    seen = torch.cat([x.mean(1, keepdim=True), x], dim=1) + pool.position
    weights = (pool.query(seen[:, :1]) @ pool.key(seen).transpose(1, 2) / 8**0.5).softmax(-1)
    torch.testing.assert_close(pool(x), pool.out(weights @ pool.value(seen))[:, 0])


def test_the_unet_is_told_what_it_reads():
    assert ConditioningConfig(sd=SDConfig(6)).unet_options() == {"cross_attention_dim": 6, "addition_embed_type": None}
    assert ConditioningConfig(sdxl=SDXLConfig()).unet_options() == {
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with pytest.raises(ConfigError, match="exactly one of sd, sdxl"):
        ConditioningConfig().unet_options()
