"""Reconstructed features to pixels: a diffusers U-Net conditioned by cross-attention.

LaVIT trains Stable Diffusion's U-Net on reconstructed features in place of text (arXiv 2309.04669, section 3.1). Small
models work on folded pixels, start from a linear draft and predict the clean image; SD-1.5 predicts a VAE's noise.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lavit.renderers.conditioning import ConditioningConfig, SDConfig, new_conditioning
from lavit.renderers.latents import FoldedConfig, Latents, LatentsConfig
from lavit.renderers.sampling import Process, check_sampler, denoise, initial_noise, new_sampler
from lavit.renderers.unet import UNetConfig, check_unet, new_unet, open_unet, unet_options

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("sample", "epsilon", "v_prediction", "flow_prediction")


@dataclass
class DiffusionConfig:
    """``prediction`` is diffusers' name of what the U-Net gives: sample, epsilon, v_prediction or flow_prediction.

    ``sizes`` are heights and widths that may be rendered beside the square of ``image_size`` that it learns. ``draft``
    adds a least-squares linear picture of the features, which the U-Net sees and corrects. ``schedule`` with
    ``beta_start`` and ``beta_end`` is diffusers' beta schedule; the flow has none. ``time_mean`` and ``time_std`` are
    of the logit-normal from which training draws t/T: above 0 means noisier; all times alike without ``time_std``.
    ``min_snr`` is γ of min-SNR weights (arXiv 2303.09556). ``sampler`` is ddim or dpm, of the flow euler or dpm.
    """

    image_size: int = 64
    sizes: list[list[int]] = field(default_factory=list)
    latents: LatentsConfig = field(default_factory=lambda: LatentsConfig(folded=FoldedConfig()))
    unet: UNetConfig = field(default_factory=UNetConfig)
    conditioning: ConditioningConfig = field(default_factory=lambda: ConditioningConfig(sd=SDConfig()))
    draft: bool = True
    prediction: str = "sample"
    schedule: str = "squaredcos_cap_v2"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    timesteps: int = 1000
    time_mean: float = 1.0
    time_std: float | None = 1.2
    min_snr: float | None = None
    drop_condition: float = 0.1
    sampler: str = "ddim"
    sampling_steps: int = 20
    guidance: float = 1.5

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is denoised in training."""
        side = self.image_size // self.latents.factor
        return self.latents.channels, side, side

    @property
    def process(self) -> Process:
        # Pixels have bounds, which a predicted clean image keeps; a VAE's latents have none.
        clip = self.latents.folded is not None
        return Process(self.prediction, self.timesteps, self.schedule, self.beta_start, self.beta_end, clip)


def check_diffusion(config: DiffusionConfig, patches: int, key: str = "decoder.model") -> None:
    """Check that the settings go together, for features of ``patches`` patches.

    Raises:
        ValueError: naming the keys.
    """
    check_numbers(config, key)
    kind, factor = config.latents.chosen()[0], config.latents.factor
    of = f"{key}.latents.folded.patch" if kind == "folded" else f"the factor of {key}.latents.vae.channels,"
    for height, width in [[config.image_size] * 2, *known_sizes(config, key)]:
        if height % factor or width % factor:
            said = f"{key}.image_size {height}" if height == width == config.image_size else f"{key}.sizes"
            raise ValueError(f"{said}: {height} × {width} is not a multiple of {of} {factor}")
    if config.prediction not in PREDICTIONS:
        raise ValueError(f"{key}.prediction '{config.prediction}' is unknown; choose {', '.join(PREDICTIONS)}")
    if config.min_snr is not None and (config.prediction == "flow_prediction" or config.min_snr <= 0):
        raise ValueError(
            f"{key}.min_snr is {config.min_snr} with prediction {config.prediction}: it must be above 0, and the flow "
            "has no such weights; set it to null"
        )
    check_sampler(config.prediction, config.sampler, f"{key}.")
    check_unet(config.unet, f"{key}.unet")
    sdxl = config.conditioning.sdxl
    if sdxl is not None and sdxl.widths[-1] % sdxl.heads:
        raise ValueError(f"{key}.conditioning.sdxl: widths {sdxl.widths[-1]} is no multiple of heads {sdxl.heads}")
    if config.draft and kind != "folded":
        raise ValueError(f"{key}.draft draws pixels, not latents; set it to false beside {key}.latents.vae")
    if config.draft and (config.shape[1] ** 2 != patches or config.sizes):
        raise ValueError(
            f"{key}.draft needs a patch of the picture for each of the {patches} features, not {config.shape[1] ** 2}, "
            f"and no other sizes; change {key}.latents.folded.patch or set {key}.draft to false"
        )


def check_numbers(config: DiffusionConfig, key: str) -> None:
    """Raise ValueError for a number that is out of range, which would be found out in the middle of a training."""
    folded, vae = config.latents.folded, config.latents.vae
    if folded is not None and folded.patch < 1:
        raise ValueError(f"{key}.latents.folded.patch is {folded.patch}; it must be at least 1")
    if vae is not None and (not vae.channels or vae.groups < 1 or any(c % vae.groups or c < 1 for c in vae.channels)):
        raise ValueError(f"{key}.latents.vae: channels {vae.channels} must be multiples of groups {vae.groups}")
    if config.timesteps < 1 or not 1 <= config.sampling_steps <= config.timesteps:
        raise ValueError(
            f"{key}: sampling_steps {config.sampling_steps} must be from 1 to timesteps {config.timesteps}"
        )
    if config.schedule not in SCHEDULES:
        raise ValueError(f"{key}.schedule '{config.schedule}' is unknown; choose {', '.join(SCHEDULES)}")
    if not 0 < config.beta_start <= config.beta_end < 1:
        raise ValueError(f"{key}: 0 < beta_start {config.beta_start} <= beta_end {config.beta_end} < 1 must hold")
    if not 0 <= config.drop_condition <= 1:
        raise ValueError(f"{key}.drop_condition is {config.drop_condition}; it is a chance, from 0 to 1")
    if config.time_std is not None and not config.time_std > 0:
        raise ValueError(f"{key}.time_std is {config.time_std}; it must be above 0, or null for all times alike")
    if not math.isfinite(config.guidance):
        raise ValueError(f"{key}.guidance is {config.guidance}; give a number, 1 for none")


def known_sizes(config: DiffusionConfig, key: str = "decoder.model") -> list[tuple[int, int]]:
    """Heights and widths that may be rendered beside the square of training.

    Raises:
        ValueError: one that is no pair.
    """
    if any(len(size) != 2 or min(size) < 1 for size in config.sizes):
        raise ValueError(f"{key}.sizes is {config.sizes}; give pairs of height and width, e.g. [[768, 1344]]")
    return [(height, width) for height, width in config.sizes]


class DiffusionRenderer(nn.Module):
    """Features (B, P, D), standardized as the tokenizer's, to images (B, 3, H, W) in [0, 1].

    ``vae`` is what the configuration's ``latents`` ask for. It stands beside the weights: neither checkpoints nor
    optimizers know it. Without it the renderer predicts latents, but no images.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        feature_width: int,
        patches: int,
        seed: int = 0,
        vae: AutoencoderKL | None = None,
    ):
        super().__init__()
        check_diffusion(config, patches)
        self.config = config
        channels, height, width = config.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.unet = new_unet(self._options(), (height, width))
            self.conditioning = new_conditioning(config.conditioning, feature_width, patches)
        if config.draft:  # of the features, the image's mean feature and a constant
            self.register_buffer("draft_weight", torch.zeros(2 * feature_width + 1, channels))
        self._beside = (Latents(config.latents, vae),)  # in a tuple, where neither the optimizer nor ZeRO finds it

    def _options(self) -> dict:
        channels = self.config.latents.channels
        return unet_options(
            self.config.unet, (channels * (2 if self.config.draft else 1), channels), self.config.conditioning
        )

    def begin_from(self, folder: str, dtype: torch.dtype | None = torch.float32) -> None:
        """Take the U-Net's weights from a diffusers folder, in ``dtype`` or, with None, in their own.

        Raises:
            ValueError: there is none, or it has another shape than the configuration says.
        """
        self.unet.load_state_dict(open_unet(folder, self._options(), dtype=dtype).state_dict(), assign=True)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def latents(self) -> Latents:
        """What encodes and decodes images, on this module's device."""
        return self._beside[0].to(self.device)

    def predict(
        self, noisy: Tensor, time: Tensor, features: Tensor, drop: Tensor, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The U-Net's prediction (B, C, h, w), and the draft where there is one.

        Args:
            noisy: (B, C, h, w) latents.
            time: (B,) as diffusers tells it a U-Net: an index into the schedule, of a flow t · timesteps.
            features: (B, P, D).
            drop: (B,) bool, where nothing is known of the image.
            size: height and width of the image in pixels, by default those of training.
        """
        dtype = self.unet.dtype  # half a precision where it was opened so; in training autocast sees to that
        context = self.conditioning(features.to(dtype), drop, size or (self.config.image_size, self.config.image_size))
        run = lambda x: self.unet(x.to(dtype), time, context.states, added_cond_kwargs=context.added).sample  # noqa: E731
        if not self.config.draft:
            return run(noisy), None
        draft = self.draft(features) * ~drop[:, None, None, None]
        out = run(torch.cat([noisy, draft], dim=1))
        return (out + draft if self.config.prediction == "sample" else out), draft

    def draft(self, features: Tensor) -> Tensor:
        """The linear picture, folded: (B, C, h, w) in about [-1, 1]."""
        flat = draft_inputs(features) @ self.draft_weight
        return flat.transpose(1, 2).unflatten(2, self.config.shape[1:])

    def draft_images(self, features: Tensor) -> Tensor:
        """The linear picture (B, 3, S, S) in [0, 1]."""
        return self.latents.decode(self.draft(features))

    def check_sampling(self, sampler: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int]]:
        """The sampler, and height and width of images; those of the configuration for None.

        Raises:
            ValueError: one that this configuration does not have.
        """
        config = self.config
        sampler = sampler or config.sampler
        check_sampler(config.prediction, sampler)
        allowed = [(config.image_size, config.image_size), *known_sizes(config)]
        try:
            found = allowed[0] if size is None else tuple(operator.index(side) for side in size)
        except TypeError:
            raise ValueError(f"size is {size}; give two whole numbers, height and width") from None
        if found not in allowed:
            told, wanted = ", ".join(f"{h} × {w}" for h, w in dict.fromkeys(allowed)), " × ".join(map(str, found))
            raise ValueError(f"no images of {wanted}; decoder.model allows {told} (height × width)")
        return sampler, found

    @torch.no_grad()
    def render(
        self,
        features: Tensor,
        seeds: list[int],
        guidance: float | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] of features (B, P, D), on this module's device.

        A picture depends on its features and its seed alone, whatever else is in the batch.

        Args:
            features: of any device.
            seeds: one a picture; from each its initial noise is drawn.
            guidance: the scale s of ``u + s (c − u)``; none at 1.
            steps, sampler: of denoising.
            size: height and width, by default those of training; the configuration's ``sizes`` are the others.

        Raises:
            ValueError: seeds that are not one a picture, or a size or sampler that there is not.
        """
        config = self.config
        sampler, size = self.check_sampling(sampler, size)
        if len(seeds) != len(features):
            raise ValueError(f"{len(seeds)} seeds for {len(features)} pictures; give one a picture")
        features = features.to(self.device)
        factor = config.latents.factor
        noise = initial_noise(seeds, (config.latents.channels, size[0] // factor, size[1] // factor)).to(self.device)
        predict = lambda x, time, rows, drop: self.predict(x, time, features[rows], drop, size)[0]  # noqa: E731
        scheduler = new_sampler(config.process, sampler)
        scale = config.guidance if guidance is None else guidance
        return self.latents.decode(denoise(predict, noise, scheduler, steps or config.sampling_steps, scale))

    @torch.no_grad()
    def fit_draft(self, batches, ridge: float = 1.0) -> None:
        """Set the draft by least squares over an iterable of (features (B, P, D), images (B, 3, S, S) in [-1, 1])."""
        size, channels = self.draft_weight.shape
        gram = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        cross = torch.zeros(size, channels, dtype=torch.float64, device=self.device)
        for features, images in batches:
            x = draft_inputs(features).flatten(0, 1)
            y = self.latents.encode(images).flatten(2).transpose(1, 2).flatten(0, 1)
            gram += (x.T @ x).double()
            cross += (x.T @ y).double()
        gram += ridge * torch.eye(size, dtype=torch.float64, device=self.device)
        self.draft_weight.copy_(torch.linalg.solve(gram, cross).float())


def draft_inputs(features: Tensor) -> Tensor:
    """(B, P, D) features to (B, P, 2D + 1): each patch, the image's mean and a constant."""
    mean = features.mean(1, keepdim=True).expand_as(features)
    return torch.cat([features, mean, torch.ones_like(features[..., :1])], dim=-1)
