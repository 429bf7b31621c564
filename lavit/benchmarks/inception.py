"""FID's extractor, with everything pinned that its figures hang on, and the pictures that it compares with.

FID (arXiv 1706.08500) is a Fréchet distance in the 2,048 pooled features of one network: Inception v3 as TensorFlow
published it in 2015. The network is torch-fidelity's port of it; its weights are a file that is at hand, and nothing is
ever fetched. Two ways to bring a picture to 299 × 299 are in use (arXiv 2104.11222), and give different figures:
``legacy_tensorflow``, bilinear and without antialiasing, as in the first FID, torch-fidelity and ADM's evaluations;
and ``clean``, Pillow's bicubic filter on floats, as in clean-fid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lavit.arguments import batches
from lavit.benchmarks.drawings import DrawingConfig, check_drawing
from lavit.data.images import SUFFIXES, open_image
from lavit.weights import file_digest

SIDE, WIDTH = 299, 2048
RESIZES = ("legacy_tensorflow", "clean")
OFFICIAL = "6726825d"  # what the sha256 of weights-inception-2015-12-05-6726825d.pth begins with
KEY = "evaluation.fid"


@dataclass
class FidConfig:
    """FID of drawings, as it is measured for text-to-image models.

    Attributes:
        weights: torch-fidelity's file ``weights-inception-2015-12-05-6726825d.pth``.
        reference: a folder of pictures, or a .npz with their ``mu`` and ``sigma``, as clean-fid and ADM write them.
        captions: what is drawn: lines of JSON with "caption", or a .json of COCO's captions; by default the run's
            own captions of ``evaluation.split``.
        samples: drawings, each of another caption; 0 takes all. FID falls as they become more.
        resize: ``legacy_tensorflow`` or ``clean``; that of a .npz must have been the same.
        batch: pictures that Inception and CLIP read at a time.
        drawing: how they are drawn.
    """

    weights: str | None = None
    reference: str | None = None
    captions: str | None = None
    samples: int = 30000
    resize: str = "legacy_tensorflow"
    batch: int = 50
    drawing: DrawingConfig = field(default_factory=DrawingConfig)


def check_fid(config: FidConfig) -> None:
    """Raises ValueError, naming the key, for what can be seen to be wrong before anything is opened."""
    if config.resize not in RESIZES:
        raise ValueError(f"{KEY}.resize '{config.resize}' is unknown; choose {' or '.join(RESIZES)}")
    if config.samples < 0 or config.samples == 1:
        raise ValueError(f"{KEY}.samples is {config.samples}; it must be 0 (all) or at least 2")
    if config.batch < 1:
        raise ValueError(f"{KEY}.batch is {config.batch}; it must be at least 1")
    check_drawing(config.drawing, f"{KEY}.drawing")


class Inception:
    """FID's features of pictures.

    Attributes:
        digest: sha256 of the weights.
        official: whether the weights are those that FID is defined with; a distance with others is not FID.

    Raises:
        ValueError: no such file, one that is not this network's, or torch-fidelity is not installed.
    """

    def __init__(self, weights: str, resize: str, device: torch.device | str = "cpu"):
        if not Path(weights).is_file():
            raise ValueError(f"{KEY}.weights: no file {weights}; it is torch-fidelity's, named above its releases")
        self.network = _network(Path(weights))
        self.network.to(device)
        self.device, self.resize, self.digest = torch.device(device), resize, file_digest(Path(weights))
        self.official = self.digest.startswith(OFFICIAL)
        # The network takes whole levels and resizes them by itself. It is given its first layer's input instead,
        # resized here in either way, without rounding.
        self._input = torch.empty(0)
        self.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda layer, given: (self._input,))

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, 2048) float32, on the CPU, of RGB pictures of any sizes."""
        pixels = torch.stack([resized(picture, self.resize) for picture in pictures]).to(self.device)
        self._input = (pixels - 128) / 128
        blank = torch.zeros(pixels.shape, dtype=torch.uint8, device=self.device)
        return self.network(blank)[0].float().cpu()

    def of_files(self, paths: Sequence[Path], batch: int, told: Callable[[int], None] = lambda done: None) -> Tensor:
        """(n, 2048) float32 of picture files; ``told`` hears how many are done.

        Raises:
            ValueError: a picture that cannot be read.
        """
        found: list[Tensor] = []
        for part in batches(list(paths), batch):
            found.append(self.features([open_image(path, str(path)) for path in part]))
            told(sum(map(len, found)))
        return torch.cat(found)


def resized(picture: Image.Image, resize: str) -> Tensor:
    """(3, 299, 299) float32 in [0, 255] of an RGB picture, stretched to it."""
    if resize == "clean":
        channels = [channel.convert("F").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for channel in picture.split()]
        return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).clamp(0, 255)
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)
    return interpolate_bilinear_2d_like_tensorflow1x(pixels[None], size=(SIDE, SIDE), align_corners=False)[0]


def extractor_name() -> str:
    """Extractor, layer and library, for those who read figures.

    Raises:
        ValueError: torch-fidelity is not installed.
    """
    try:
        installed = version("torch-fidelity")
    except PackageNotFoundError:
        raise ValueError(f"{KEY} needs torch-fidelity; install it, or this package with [evaluation]") from None
    return f"Inception v3 of 2015-12-05, {WIDTH} pooled features, torch-fidelity {installed}"


def _network(path: Path) -> nn.Module:
    """torch-fidelity's network with the weights of a file."""
    extractor_name()
    from torch_fidelity import FeatureExtractorInceptionV3

    try:
        torch.load(path, weights_only=True)  # the library would unpickle anything; what passes here holds tensors alone
        network = FeatureExtractorInceptionV3("inception-v3-compat", [str(WIDTH)], str(path))
    except Exception as error:  # of many kinds: no archive, something else than tensors, other names or shapes
        reason = " ".join(str(error).split())[:160]
        reason = "it is no file of tensors" if isinstance(error, UnpicklingError) else reason
        raise ValueError(f"{KEY}.weights: {path} does not hold Inception's weights for FID ({reason} …)") from None
    return network.eval()


def reference_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, in the order of their names.

    Raises:
        ValueError: fewer than two.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise ValueError(f"{KEY}.reference: {len(found)} pictures in {folder}; a distribution needs two or more")
    return found


def reference_digest(path: Path) -> str:
    """sha256 of a .npz; of a folder that of its pictures' names, sizes and times, which tells of any change.

    Raises:
        ValueError: nothing there, or too few pictures.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise ValueError(f"{KEY}.reference: no folder and no file {path}")
    lines = list(_described(path))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _described(folder: Path) -> Iterator[str]:
    for path in reference_files(folder):
        about = path.stat()
        yield f"{path.relative_to(folder).as_posix()} {about.st_size} {about.st_mtime_ns}"


def read_moments(path: Path) -> tuple[Tensor, Tensor]:
    """``mu`` (2048,) and ``sigma`` (2048, 2048), float64, of a .npz.

    Raises:
        ValueError: it cannot be read, lacks one of the two, or is of other features.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(file[name].astype(np.float64)) for name in ("mu", "sigma") if name in file}
    except Exception as error:  # no archive, pickled objects, not numbers
        raise ValueError(f"{KEY}.reference: {path} cannot be read as a .npz ({str(error) or 'empty'})") from None
    if missing := [name for name in ("mu", "sigma") if name not in found]:
        raise ValueError(f"{KEY}.reference: {path} has no {' and no '.join(missing)}")
    mean, covariance = found["mu"].flatten(), found["sigma"]
    if mean.shape != (WIDTH,) or covariance.shape != (WIDTH, WIDTH):
        shapes = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        raise ValueError(f"{KEY}.reference: {path} has {shapes}; those of FID are ({WIDTH},) and ({WIDTH}, {WIDTH})")
    return mean, covariance
