from __future__ import annotations

import pytest
import torch

from lavit.renderers.sampling import Process, denoise, initial_noise, new_sampler, samplers_of, set_steps

CLEAN = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


def process(prediction: str, schedule: str = "squaredcos_cap_v2", clip: bool = True) -> Process:
    return Process(prediction, 1000, schedule, 0.00085, 0.012, clip)


def perfect(prediction: str, scheduler):
    """What a network that knows the clean picture predicts."""

    def predict(x, time, rows, drop):
        clean, t = CLEAN[rows], time.view(-1, 1, 1, 1)
        if prediction == "flow_prediction":
            return (x - clean) / (t / 1000)
        signal = scheduler.alphas_cumprod[t.long()]
        noise = (x - signal.sqrt() * clean) / (1 - signal).sqrt()
        known = {"sample": clean, "epsilon": noise}
        return known.get(prediction, signal.sqrt() * noise - (1 - signal).sqrt() * clean)

    return predict


@pytest.mark.parametrize("steps", [2, 8, 20])
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction", "flow_prediction"])
def test_a_perfect_predictor_is_denoised_to_what_it_knows(prediction, schedule, steps):
    for name in samplers_of(prediction):
        scheduler = new_sampler(process(prediction, schedule), name)
        found = denoise(perfect(prediction, scheduler), initial_noise([0, 1], (3, 4, 4)), scheduler, steps, 1.0)
        # Time is in whole thousandths; of the noise alone a division by little remains.
        torch.testing.assert_close(found, CLEAN, atol=3e-2, rtol=0)


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_the_number_of_steps_is_that_asked_for(prediction, steps):
    for name in samplers_of(prediction):
        scheduler = new_sampler(process(prediction, "scaled_linear"), name)
        set_steps(scheduler, steps)
        assert len(scheduler.timesteps) == steps
        assert scheduler.timesteps[0] >= 990 and (scheduler.timesteps[:-1] > scheduler.timesteps[1:]).all()


def test_both_branches_of_guidance_are_one_call():
    calls = []

    def predict(x, time, rows, drop):
        calls.append((len(x), rows.tolist(), drop.tolist()))
        return torch.where(drop.view(-1, 1, 1, 1), 0.1, 0.3).expand_as(x)

    scheduler = new_sampler(process("sample"), "ddim")
    found = denoise(predict, initial_noise([0, 1], (3, 4, 4)), scheduler, 3, 2.0)
    assert calls == [(4, [0, 1, 0, 1], [False, False, True, True])] * 3
    torch.testing.assert_close(found, torch.full_like(found, 0.1 + 2.0 * (0.3 - 0.1)), atol=1e-5, rtol=0)
    calls.clear()
    denoise(predict, initial_noise([0, 1], (3, 4, 4)), scheduler, 3, 1.0)
    assert calls == [(2, [0, 1], [False, False])] * 3, "none at one"


@pytest.mark.parametrize("name", ["ddim", "dpm"])
def test_pixels_are_clipped_and_latents_are_not(name):
    ends = []
    for clip in (True, False):
        scheduler = new_sampler(process("sample", clip=clip), name)
        ends.append(denoise(lambda x, *_: torch.full_like(x, 3.0), torch.zeros(1, 3, 4, 4), scheduler, 3, 1.0).mean())
    assert ends[0].item() == pytest.approx(1.0, abs=1e-3) and ends[1].item() == pytest.approx(3.0, abs=1e-3)


def test_initial_noise_is_of_each_seed_by_itself():
    noise = initial_noise([4, 9], (2, 3))
    assert noise.shape == (2, 2, 3) and torch.equal(noise[1], initial_noise([9], (2, 3))[0])
    assert not torch.equal(noise[0], noise[1])
