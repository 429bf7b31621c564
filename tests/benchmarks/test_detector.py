"""Detectors of transformers with random weights, and colours by a CLIP of random weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
    SwinConfig,
)

from lavit.benchmarks.detector import ColourJudge, Detection, Detector, cut_out
from lavit.tokenizers.relevance import Clip
from tests.tokenizers.tiny_clip import tiny_clip

LABELS = {0: "person", 1: "mouse", 2: "cat"}


def tiny_detr(folder):
    """A DETR of random weights that calls everything a mouse."""
    backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], out_features=["stage2"])
    size = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16, "num_queries": 3}  # fmt: skip
    config = DetrConfig(backbone_config=backbone, id2label=LABELS, label2id={v: k for k, v in LABELS.items()}, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DetrForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.bias[1] = 20
    model.save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return folder


def tiny_mask2former(folder):
    """A Mask2Former of random weights."""
    backbone = SwinConfig(image_size=64, embed_dim=4, depths=[1] * 4, num_heads=[1] * 4, window_size=2,
                          out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=8,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=8, num_queries=3, id2label=LABELS,
        label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_boxes_of_a_detr(tmp_path):
    detector = Detector(str(tiny_detr(tmp_path)))
    found = detector.detect(PICTURE)
    assert list(found) == ["computer mouse"] and len(found["computer mouse"]) == 3, "by GenEval's name"
    inputs = detector.processor(images=PICTURE, return_tensors="pt")
    with torch.no_grad():
        x, y, width, height = detector.model(**inputs).pred_boxes[0, 0].tolist()
    expected = ((x - width / 2) * 60, (y - height / 2) * 40, (x + width / 2) * 60, (y + height / 2) * 40)
    assert found["computer mouse"][0].box == pytest.approx(expected, abs=1e-3)
    assert found["computer mouse"][0].score > 0.99 and found["computer mouse"][0].mask is None
    detector.check_classes(["cat", "person", "cat"])
    with pytest.raises(ValueError, match="detector knows no dog, tv remote; take one that was trained on COCO"):
        detector.check_classes(["tv remote", "cat", "dog"])


def test_masks_of_a_mask2former(tmp_path):
    detector = Detector(str(tiny_mask2former(tmp_path)))
    assert detector.segments and isinstance(detector.detect(PICTURE), dict)
    # Its own queries are of no use: here one whose mask is a rectangle, and one that is unsure.
    masks = torch.full((1, 2, 40, 60), -20.0)
    masks[0, 0, 10:20, 30:50] = 20
    classes = torch.tensor([[[0.0, 0, 9, 0], [0, 0, 0, 0]]])
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    ((label, found),) = detector._masks(outputs, [(40, 60)])
    assert label == 2 and found.score > 0.99 and found.box == (30, 10, 50, 20)
    assert found.mask.shape == (40, 60) and found.mask[11:20, 31:50].all() and 199 <= found.mask.sum() <= 200
    nothing = SimpleNamespace(class_queries_logits=classes[:, 1:], masks_queries_logits=masks[:, 1:])
    assert detector._masks(nothing, [(40, 60)]) == []


def test_folders_that_are_no_detectors(tmp_path):
    with pytest.raises(ValueError, match="evaluation.geneval.detector: no folder nowhere"):
        Detector("nowhere")
    with pytest.raises(ValueError, match="evaluation.geneval.detector: .* cannot be opened as a detector"):
        Detector(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be opened as a detector"):
        Detector(str(tiny_clip(tmp_path)))


def test_a_cut_out_is_the_object_on_grey():
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:20, 30:40] = True
    cut = np.array(cut_out(PICTURE, Detection((30, 10, 50, 20), 1.0, mask)))
    assert cut.shape == (10, 20, 3) and (cut[:, 10:] == 0x99).all()
    assert (cut[:, :10] == np.array(PICTURE)[10:20, 30:40]).all()
    assert cut_out(PICTURE, Detection((3.4, 4.0, 3.4, 4.2), 1.0)).size == (1, 1)


def test_colours_are_those_whose_texts_are_nearest(tmp_path):
    class Plain:
        """Vectors of a picture are its mean colour, and those of a text name a colour; templates are noticed."""

        said: list[str] = []

        def texts(self, texts):
            self.said += texts
            return torch.tensor([[float(word in text) for word in ("red", "green", "blue")] for text in texts])

        def pixels(self, pictures):
            return torch.tensor(np.stack([np.array(picture).mean((0, 1)) for picture in pictures]))

        def images(self, batches):
            return torch.cat(list(batches)).float()

    clip = Plain()
    judge = ColourJudge(clip, ["red", "green", "blue"])
    picture = Image.new("RGB", (20, 10), (200, 10, 10))
    picture.paste((0, 0, 220), (10, 0, 20, 10))
    objects = [Detection((0, 0, 10, 10), 1.0), Detection((10, 0, 20, 10), 1.0)]
    assert judge(picture, "bus", objects) == ["red", "blue"] == judge(picture, "bus", objects)
    assert len(clip.said) == 9, "texts are read once"
    assert {"a photo of a red bus", "a photo of a green-colored bus", "a photo of a blue object"} <= set(clip.said)
    real = ColourJudge(Clip(str(tiny_clip(tmp_path))), ["red", "blue"])
    assert set(real(picture, "cat", objects)) <= {"red", "blue"}
