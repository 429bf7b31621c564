"""What the exported tasks ask of lmms-eval's documents; copied beside them, with the pictures (`eval.export_tasks`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavit.data.images import open_image
from lavit.metrics.captions import caption_scores, category_accuracy, category_of, label_of
from lavit.metrics.vqa import vqa_accuracy

Document = dict[str, Any]


def picture(document: Document) -> list[Any]:
    path = Path(__file__).parent / document["picture"]
    return [open_image(path, document["picture"])]


def answer_scores(document: Document, written: list[str]) -> dict[str, float]:
    return {"accuracy": vqa_accuracy(written[0], document["answers"])}


def right_choice(document: Document) -> int:
    return document["choices"].index(document["answers"][0])


def written_caption(document: Document, written: list[str]) -> dict[str, Any]:
    pair = {"id": document["id"], "truth": document["caption"], "written": written[0]}
    return {"category_accuracy": pair, "cider": pair}


def category(pairs: list[Document]) -> float | None:
    """The share of right class words; None where captions have none."""
    truth = [pair["truth"] for pair in pairs]
    return category_accuracy([pair["written"] for pair in pairs], truth) if all(map(category_of, truth)) else None


def cider(pairs: list[Document]) -> float:
    """Of the label alone; whichever process wrote them, in one order, since the sum of floats depends on it."""
    pairs = sorted(pairs, key=lambda pair: pair["id"])
    references = {str(pair["id"]): [label_of(pair["truth"])] for pair in pairs}
    return caption_scores(references, {str(pair["id"]): label_of(pair["written"]) for pair in pairs})["cider"]
