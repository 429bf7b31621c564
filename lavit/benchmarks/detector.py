"""Objects in pictures by a detector of a local folder, and their colours by CLIP: what GenEval's rules are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
)

from lavit.tokenizers.relevance import Clip
from lavit.weights import open_whole, opening

KEY = "evaluation.geneval.detector"
LEAST = 0.3  # no rule looks at a detection with a lower score
SEGMENTS = ("mask2former", "maskformer")  # models of instances' masks, by transformers' model_type
GREY = "#999"  # what stands in the place of all that is not the object
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
# GenEval's names of classes where COCO, or a folder's list of them, has other ones.
RENAMED = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


class Detection(NamedTuple):
    """An object: ``box`` is left, top, right, bottom in pixels; ``mask`` (H, W) bool, None of a detector of boxes."""

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


class Detector:
    """A detector of transformers, object detection (DETR) or instance segmentation (Mask2Former), of a local folder.

    Attributes:
        classes: the names that it knows, as GenEval has them.

    Raises:
        ValueError: no such folder, or it holds no such model.
    """

    def __init__(self, folder: str, device: torch.device | str = "cpu"):
        with opening(folder, KEY, "a detector"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self.segments = config.model_type in SEGMENTS
            kind: Any = AutoModelForUniversalSegmentation if self.segments else AutoModelForObjectDetection
            self.model = open_whole(kind, folder)
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.model.to(device)
        self.names = {int(number): RENAMED.get(name, name) for number, name in config.id2label.items()}
        self.classes = frozenset(self.names.values())

    def check_classes(self, wanted: Sequence[str]) -> None:
        """Raises ValueError, naming them, for classes that the detector does not know."""
        if missing := sorted(set(wanted) - self.classes):
            raise ValueError(f"{KEY} knows no {', '.join(missing[:5])}; take one that was trained on COCO's classes")

    @torch.no_grad()
    def detect(self, picture: Image.Image) -> dict[str, list[Detection]]:
        """The objects of each class in an RGB picture."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
        outputs, size = self.model(**inputs), [(picture.height, picture.width)]
        rows = self._masks(outputs, size) if self.segments else self._boxes(outputs, size)
        found: dict[str, list[Detection]] = {}
        for label, detection in rows:
            found.setdefault(self.names[label], []).append(detection)
        return found

    def _boxes(self, outputs: Any, size: list[tuple[int, int]]) -> list[tuple[int, Detection]]:
        (its,) = self.processor.post_process_object_detection(outputs, threshold=LEAST, target_sizes=size)
        rows = zip(its["labels"].tolist(), its["boxes"].tolist(), its["scores"].tolist(), strict=True)
        return [(label, Detection(tuple(box), score)) for label, box, score in rows]

    def _masks(self, outputs: Any, size: list[tuple[int, int]]) -> list[tuple[int, Detection]]:
        (its,) = self.processor.post_process_instance_segmentation(
            outputs, threshold=LEAST, target_sizes=size, return_binary_maps=True
        )
        rows = []
        for mask, about in zip(its["segmentation"], its["segments_info"], strict=False):  # without any: one empty map
            mask = mask.cpu().numpy() == 1
            (ys,), (xs,) = mask.any(1).nonzero(), mask.any(0).nonzero()
            box = (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))
            rows.append((about["label_id"], Detection(box, about["score"], mask)))
        return rows


class ColourJudge:
    """Which of some colours an object has, by CLIP: the one whose texts are the most like the object's cut-out."""

    def __init__(self, clip: Clip, colours: Sequence[str]):
        self.clip, self.colours = clip, tuple(colours)
        self._texts: dict[str, torch.Tensor] = {}

    def __call__(self, picture: Image.Image, name: str, objects: Sequence[Detection]) -> list[str]:
        """The colour of each of some objects of the class ``name`` in an RGB picture."""
        if name not in self._texts:
            said = [form.format(colour, name) for form in TEMPLATES for colour in self.colours]
            vectors = self.clip.texts(said).unflatten(0, (len(TEMPLATES), -1)).mean(0)
            self._texts[name] = F.normalize(vectors, dim=-1)
        cut = self.clip.pixels([cut_out(picture, one) for one in objects])
        return [self.colours[best] for best in (self.clip.images([cut]) @ self._texts[name].T).argmax(1).tolist()]


def cut_out(picture: Image.Image, found: Detection) -> Image.Image:
    """The object's box, at least a pixel of it, with grey around the object where its mask is known."""
    if found.mask is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, GREY), Image.fromarray(found.mask))
    left, top, right, bottom = (round(side) for side in found.box)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
