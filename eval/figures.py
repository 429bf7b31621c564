"""The figures of a run: what goes into metrics.json, and the table that sets each beside its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lavit.pages.html import number
from lavit.runs import read_json, read_seconds

Metrics = dict[str, dict[str, Any]]


class Budget(NamedTuple):
    """What was left of the pictures with so many tokens: ``tokens`` an image, cosine of the features of all evaluated
    ones, R@1 and PSNR of those that were painted."""

    tokens: float
    cosine: float
    r1: float
    psnr: float


BUDGETS = {"eighth": 8, "quarter": 4, "half": 2, "whole": 1}  # tokens of a picture: its patches divided by this
REQUIRED = {
    "tokenizer": "cosine cosine_constant codes_used utilization perplexity patches tokens_mean tokens_std n",
    "caption": "category_accuracy category_shuffled category_nearest cider cider_constant cider_nearest cider_shuffled "
    "retrieval_r1 retrieval_r10 n",
    "vqa": "accuracy question_only majority n",
    "reconstruction": "r1 r5 chance_r5 shuffled_r5 nearest_r5 fd_lite0 n budget_n budget_chance_r1 "
    + " ".join(f"budget_{name}_{figure}" for name in ("own", *BUDGETS) for figure in Budget._fields),
    "text_to_image": "feature_r10 rendered_r10 shuffled_r10 chance_r10 feature_nearest_r10 rendered_nearest_r10 n "
    "image_text_picture_nearer image_text_thing_nearer image_text_chance image_text_n",
    "in_context": "accuracy chance n episodes denoise_accuracy denoise_majority denoise_last denoise_random denoise_n "
    "reconstruct_accuracy reconstruct_given reconstruct_majority reconstruct_n",
    "visual_words": "divergence divergence_constant entropy entropy_mean category_accuracy hit5 hit5_shuffled "
    "hit5_constant patch_hit patch_hit_shuffled patch_hit_constant n",
    "speech": "cer cer_shuffled cer_mixed cer_nearest cer_constant wer retrieval_r1 retrieval_chance_r1 tokens_mean "
    "codes n",
    "pyramid": "mse psnr cosine r5 chance_r5 mse_mean_image psnr_mean_image r5_shuffled r5_nearest cosine_nearest "
    "latent_error_average latent_error_residual latent_error_single similarity similarity_random similarity_shuffled "
    "label_r10 label_r10_shuffled label_r10_chance category alignment_r1 words_used perplexity tokens n",
}
LAVIT = ("tokenizer", "caption", "vqa", "reconstruction", "text_to_image")  # what a run has that names no stages
EVALUATIONS = tuple(f"eval/{group}" for group in REQUIRED)
CLOCKED = (
    "assets",
    "data",
    "tokenizer",
    "speech",
    "extract",
    "pretrain",
    "autoencoder",
    "decoder",
    "vocoder",
    "pyramid",
    "words",
)
CLOCKS = {name: (name,) for name in CLOCKED}
OWN_CLOCKS = ("autoencoder", "speech", "vocoder", "pyramid", "words")  # of stages that only some experiments have
CLOCKS["eval"] = EVALUATIONS


def groups_of(stages: Sequence[str], vqa: bool) -> list[str]:
    """The groups of figures of an experiment with these stages, all of LaVIT's if it names none; ``vqa`` where there
    are questions."""
    named = [name.removeprefix("eval/") for name in stages if name.startswith("eval/")] if stages else LAVIT
    return [name for name in REQUIRED if name in named and (vqa or name != "vqa")]


def read_figures(run: Path, groups: Sequence[str] = LAVIT) -> Metrics:
    """Everything the evaluations of these groups wrote, by group.

    A figure may be null where the evaluation says why, in ``reasons: {figure: words}``.

    Raises:
        ValueError: an evaluation has not run, or lacks a figure that metrics.json promises.
    """
    figures = {name: read_json(run / "eval" / name / "figures.json") for name in groups}
    for group in groups:
        names = REQUIRED[group]
        known = {name for name, value in figures[group].items() if value is not None}
        missing = [name for name in names.split() if name not in known | figures[group].get("reasons", {}).keys()]
        if missing:
            place = run / "eval" / group
            raise ValueError(f"{place}/figures.json has no {', '.join(missing)}; remove {place} and run it again")
    return figures


def metrics_of(figures: Metrics, seconds: dict[str, float | None]) -> Metrics:
    """What metrics.json holds: the single numbers and words of every group (rates are fractions), and the seconds.

    A figure that could not be measured is null, and ``reasons`` of its group says why.
    """
    kept: Metrics = {}
    for group, values in figures.items():
        reasons = values.get("reasons", {})
        kept[group] = dict.fromkeys(reasons) | {k: v for k, v in values.items() if isinstance(v, int | float | str)}
        kept[group] |= {"reasons": reasons} if reasons else {}
    return {**kept, "seconds": seconds}


def stage_seconds(run: Path, stages: Sequence[str] = ()) -> dict[str, float | None]:
    """Wall seconds of each stage; null for one whose clock never ran, nothing for one that the experiment has not.

    ``stages`` are those that it names; one that names none has all of LaVIT's, but an autoencoder only if it ran.

    Stages that ran at the same time count their own seconds each, so that the sum may exceed ``total``, which is the
    clock of the program that ran them all. Where the stages were run one by one there is no such clock, and the total
    is their sum.
    """
    seconds: dict[str, float | None] = {}
    for name, folders in CLOCKS.items():
        ran = [read_seconds(run / folder) for folder in folders if (run / folder / "seconds.json").is_file()]
        if ran or (name in stages if stages else name not in OWN_CLOCKS):
            seconds[name] = round(sum(ran), 1) if ran else None
    known = sum(value for value in seconds.values() if value is not None)
    return {**seconds, "total": round(read_seconds(run) or known, 1)}


class Figure(NamedTuple):
    """One row of the table.

    Attributes:
        group, name: where metrics.json has it.
        title: what the reader is told.
        baselines: words to the names of figures of the same group; those that were not measured are left out.
        ceiling: as ``baselines``, of what cannot be beaten.
        note: a format string over the group's figures.
        lower: whether less is better.
        top: end of the scale; None takes the largest value in the row.
    """

    group: str
    name: str
    title: str
    baselines: dict[str, str] = {}
    ceiling: dict[str, str] = {}
    note: str = ""
    lower: bool = False
    top: float | None = 1.0


GROUPS = {
    "tokenizer": "Tokenizer",
    "caption": "Image to text",
    "vqa": "Questions",
    "reconstruction": "Reconstruction",
    "text_to_image": "Text to image",
    "in_context": "In context",
    "visual_words": "Visual words",
    "speech": "Speech",
    "pyramid": "Pyramid of words",
}
TABLE = (
    Figure("tokenizer", "cosine", "Cosine of the reconstructed features", {"constant mean": "cosine_constant"}),
    Figure("tokenizer", "perplexity", "Codebook perplexity", top=None,
           note="{codes_used} codes in use ({utilization:.0%} of the codebook)"),
    Figure("tokenizer", "tokens_mean", "Tokens an image", top=None, note="± {tokens_std:.1f}, of {patches} patches"),
    Figure("caption", "category_accuracy", "Category of the caption is right",
           {"shuffled": "category_shuffled", "majority": "category_majority", "nearest neighbour": "category_nearest"}),
    Figure("caption", "cider", "CIDEr of the label",
           {"shuffled": "cider_shuffled", "best constant": "cider_constant", "nearest neighbour": "cider_nearest"},
           top=None),
    Figure("caption", "retrieval_r1", "Its caption found first", {"chance": "retrieval_chance_r1"},
           note="among {retrieval_n} captions, R@1"),
    Figure("caption", "retrieval_r10", "Its caption in the first ten", {"chance": "retrieval_chance_r10"},
           note="among {retrieval_n} captions, R@10"),
    Figure("vqa", "accuracy", "Answers right", {
        "majority": "majority", "question only": "question_only", "shuffled": "shuffled"}),
    Figure("reconstruction", "r1", "Original found first", {
        "chance": "chance_r1", "linear draft": "draft_r1", "nearest neighbour": "nearest_r1"},
           note="among {n} by the rendered pixels, R@1"),
    Figure("reconstruction", "r5", "Original in the first five", {
        "chance": "chance_r5", "linear draft": "draft_r5", "shuffled": "shuffled_r5",
        "nearest neighbour": "nearest_r5"},
           note="among {n} by the rendered pixels, R@5"),
    Figure("reconstruction", "fd_lite0", "Fréchet distance over Lite0 features", {
        "linear draft": "draft_fd_lite0", "nearest neighbour": "nearest_fd_lite0"},
           lower=True, top=None, note="not FID; less is better"),
    Figure("reconstruction", "psnr", "PSNR in dB", {
        "mean image": "psnr_mean_image", "linear draft": "draft_psnr", "nearest neighbour": "nearest_psnr"},
           top=None),
    Figure("text_to_image", "feature_r10", "Thing found by the drawn features", {
        "chance": "chance_r10", "shuffled": "feature_shuffled_r10", "nearest neighbour": "feature_nearest_r10"},
           {"its own codes": "real_codes_r10"},
           note="among {n}, R@10"),
    Figure("text_to_image", "rendered_r10", "Thing found by the drawn pixels", {
        "chance": "chance_r10", "shuffled": "rendered_shuffled_r10", "nearest neighbour": "rendered_nearest_r10"},
           note="among {n}, R@10"),
    Figure("text_to_image", "image_text_picture_nearer", "Drawn of picture and text: nearer to the picture", {
        "chance": "image_text_chance", "shuffled": "image_text_picture_shuffled",
        "text alone": "image_text_picture_text_alone"}, note="than to another one, {image_text_n} drawings"),
    Figure("text_to_image", "image_text_thing_nearer", "Drawn of picture and text: nearer to the text's", {
        "chance": "image_text_chance", "shuffled": "image_text_thing_shuffled",
        "text alone": "image_text_thing_text_alone"}, note="than to another one, {image_text_n} drawings"),
    *(Figure("in_context", key, f"{title} in context, {ways} ways", {
        "chance": f"{key}_chance", "words dealt anew": f"{key}_shuffled", "random words": f"{key}_random",
        "shared words, no model": f"{key}_overlap", "similar words, no model": f"{key}_similarity"},
             {"words near the name": f"{key}_named"},
             note=f"± {{{key}_accuracy_error:.3f}}; calibrated {{{key}_calibrated:.3f}}")
      for task, title in (("category", "Class word"), ("label", "Thing"))
      for ways in (2, 5) for key in [f"{task}_{ways}way"]),
    Figure("in_context", "denoise_accuracy", "Words written after corrupted copies", {
        "commonest word": "denoise_majority", "last copy": "denoise_last", "random words": "denoise_random"},
           note="{denoise_n} pictures"),
    Figure("in_context", "reconstruct_accuracy", "Words of a corrupted picture made right", {
        "left as they are": "reconstruct_given", "commonest word": "reconstruct_majority",
        "random words": "reconstruct_random"}, note="after examples of other pictures"),
    Figure("visual_words", "divergence", "Divergence of the predictions from the visual words", {
        "constant distribution": "divergence_constant", "before the last phase": "divergence_before"},
           lower=True, top=None, note="nats, held-out patches"),
    Figure("visual_words", "category_accuracy", "Likeliest class word is that of the caption", {
        "chance": "category_chance", "majority": "category_majority", "shuffled": "category_shuffled"}),
    Figure("visual_words", "hit5", "One of the five most telling words is in the caption", {
        "five commonest words": "hit5_constant", "shuffled": "hit5_shuffled"}),
    Figure("visual_words", "patch_hit", "The likeliest word of a patch is in the caption", {
        "commonest word": "patch_hit_constant", "shuffled": "patch_hit_shuffled"}),
    Figure("visual_words", "entropy", "Entropy of the visual words of a patch", {}, {"of their mean": "entropy_mean"},
           top=None, note="nats; equal to that of their mean where all patches have the same words"),
    Figure("speech", "cer", "Characters written wrong of what is said", {
        "other clips' texts": "cer_shuffled", "codes out of order": "cer_mixed", "best constant": "cer_constant",
        "nearest clip": "cer_nearest"}, {"a recogniser": "recording_cer"},
           lower=True, top=None, note="error rate, {n} clips of {tokens_mean:.0f} codes"),
    Figure("speech", "retrieval_r1", "What is said found first", {"chance": "retrieval_chance_r1"},
           note="among {retrieval_n} texts, R@1"),
    Figure("speech", "round_trip_cer", "Characters that a recogniser mishears after codes and vocoder", {
        "codes out of order": "round_trip_mixed_cer"}, {"the recording": "recording_cer", "Griffin–Lim": "lifted_cer"},
           lower=True, top=None, note="error rate, {spoken_n} clips; a vocoder of our own"),
    Figure("speech", "spoken_cer", "Characters that a recogniser mishears of texts said aloud", {
        "other texts": "spoken_shuffled_cer"}, {"round trip": "round_trip_cer"},
           lower=True, top=None, note="error rate, {spoken_n} texts"),
    Figure("speech", "mel_error", "Error of the spectrogram after codes and vocoder", {
        "constant spectrum": "mel_constant_error", "codes out of order": "mel_mixed_error"},
           {"Griffin–Lim": "mel_lifted_error"}, lower=True, top=None, note="nats of log-mel magnitudes"),
    Figure("pyramid", "psnr", "PSNR of the reconstruction in dB", {
        "mean image": "psnr_mean_image", "nearest neighbour": "psnr_nearest", "shuffled": "psnr_shuffled"},
           top=None, note="all {tokens} words"),
    Figure("pyramid", "cosine", "Cosine of pooled features", {
        "nearest neighbour": "cosine_nearest", "shuffled": "cosine_shuffled"}),
    Figure("pyramid", "r5", "Original in the first five", {
        "chance": "chance_r5", "shuffled": "r5_shuffled", "nearest neighbour": "r5_nearest"},
           note="among {n} by the rebuilt pixels, R@5"),
    Figure("pyramid", "latent_error_average", "Error of the latents", {
        "residual": "latent_error_residual", "one layer": "latent_error_single"},
           lower=True, top=None, note="of their squares; the same latents and numbers of words"),
    Figure("pyramid", "similarity", "Likeness of the upper layers' words and the label", {
        "random words": "similarity_random", "shuffled": "similarity_shuffled"},
           {"most relevant word": "similarity_relevant"}, top=None, note="cosine of sentence vectors"),
    Figure("pyramid", "label_r10", "Label in the first ten", {
        "chance": "label_r10_chance", "shuffled": "label_r10_shuffled"}, {"alignment": "alignment_r10"},
           note="among {n}, by the words of the upper layers"),
    Figure("pyramid", "category", "Category nearest to these words", {
        "random words": "category_random", "shuffled": "category_shuffled", "majority": "category_majority"}),
    Figure("pyramid", "perplexity", "Perplexity of the words", top=None, note="{words_used} of {words} in use"),
)  # fmt: skip


class Mark(NamedTuple):
    """A value on a row's scale: ``place`` in percent; ``kind`` is baseline, better (it beats ours) or ceiling."""

    words: str
    value: str
    place: float
    kind: str


class Row(NamedTuple):
    """A figure ready to show."""

    title: str
    note: str
    value: str
    place: float
    marks: list[Mark]


def table(metrics: Metrics) -> dict[str, list[Row]]:
    """The rows of every group that was measured, by the group's title."""
    rows: dict[str, list[Row]] = {GROUPS[group]: [] for group in metrics if group in GROUPS}
    for figure in TABLE:
        if metrics.get(figure.group, {}).get(figure.name) is not None:
            rows[GROUPS[figure.group]].append(_row(figure, metrics[figure.group]))
    return rows


def budgets(figures: dict[str, Any]) -> dict[str, Budget]:
    """The rows of the table of budgets by name, from the fewest tokens to all patches."""
    rows = {n: Budget(*(figures[f"budget_{n}_{k}"] for k in Budget._fields)) for n in ("own", *BUDGETS)}
    return dict(sorted(rows.items(), key=lambda row: row[1].tokens))


def _row(figure: Figure, values: dict[str, Any]) -> Row:
    ours = values[figure.name]
    named = [(words, values.get(name), "baseline") for words, name in figure.baselines.items()]
    named += [(words, values.get(name), "ceiling") for words, name in figure.ceiling.items()]
    beside = [(words, value, kind) for words, value, kind in named if value is not None]
    top = figure.top or 1.1 * max(ours, *(value for _, value, _ in beside), 1e-9)
    marks = []
    for words, value, kind in beside:
        ahead = value < ours if figure.lower else value > ours
        kind = "better" if kind == "baseline" and ahead else kind
        marks.append(Mark(words, number(value), 100 * min(1, value / top), kind))
    return Row(figure.title, figure.note.format(**values), number(ours), 100 * min(1, ours / top), marks)
