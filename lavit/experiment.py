"""One file is one experiment: the schema of configs/, a section a stage."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lavit.benchmarks.geneval import GenEvalConfig, check_geneval
from lavit.benchmarks.inception import FidConfig, check_fid
from lavit.benchmarks.protocol import BenchmarksConfig, check_benchmarks
from lavit.config import changed_keys, load, overlaid, read_plain_text, to_yaml
from lavit.data.llms import LLMS
from lavit.data.mixture import MixtureConfig
from lavit.data.prepare import DataConfig
from lavit.data.text import TextTokenizerConfig, TrainedTextConfig
from lavit.generation.episodes import InContextConfig, check_in_context
from lavit.generation.plans import ImagePlan, TextPlan, check_plan
from lavit.layers.port import PROJECTORS
from lavit.model import FITS, ModelConfig, check_reading
from lavit.renderers.autoencoder import AutoencoderConfig, check_autoencoder
from lavit.renderers.diffusion import DiffusionConfig, check_diffusion
from lavit.renderers.vocoder import VocoderConfig
from lavit.runs import (
    ChecksConfig,
    DemoConfig,
    FolderLock,
    end_with_parent,
    is_done,
    mark_done,
    open_run,
    stage_clock,
    stage_folder,
    take_over,
)
from lavit.tokenizers.pyramid_autoencoder import PyramidConfig, check_pyramid
from lavit.tokenizers.pyramid_objective import PyramidLossConfig, check_pyramid_loss
from lavit.tokenizers.relevance import RelevanceConfig, check_relevance
from lavit.tokenizers.selector import GainSelector
from lavit.tokenizers.speech import SpeechConfig
from lavit.tokenizers.tokenizer import TokenizerConfig
from lavit.tokenizers.word_codebook import WordCodebookConfig, check_word_codebook
from lavit.training.engine import TrainConfig, check_train

LEAST_TEXT = 16  # tokens that must fit into a row beside an image


@dataclass
class TokenizerStage:
    """Stage 1. The first ``plain_steps`` train without a codebook; then k-means starts it (two phases).

    ``noise_steps`` anneals the Gumbel noise to zero. ``vqa_share`` of a batch comes from pictures with questions.
    ``cache_features`` keeps the frozen encoder's output on disk, which only small sets can afford. ``speech`` makes
    codes of ``data.speech``.
    """

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    plain_steps: int = 250
    noise_steps: int = 250
    vqa_share: float = 0.1
    cache_features: bool = True
    speech: SpeechConfig | None = None


@dataclass
class PretrainStage:
    """Stage 2. A batch is ``train.batch`` documents, packed into rows of ``row`` tokens.

    A text that is too long for a row beside its image is cut at the end. An image that is there to be understood is
    ``read`` as features, as ids, or not at all, for a model to compare with. ``validation`` documents of every kind are
    read where ``train.validate_every`` asks for it. ``phases`` train one after the other, each with an optimizer and a
    folder of its own: by name what is set otherwise than in this section, e.g. ``{align: {train: {steps: 100}}}``, or
    null for one that is left out.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    text: TextTokenizerConfig = field(default_factory=lambda: TextTokenizerConfig(trained=TrainedTextConfig()))
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    row: int = 256
    read: str = "features"
    validation: int = 64
    phases: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, PretrainStage]:
        """The phases in order, each as a stage of its own; without any, the stage itself under no name.

        Raises:
            ValueError: a phase with an unknown key or a wrong value, or with phases of its own.
        """
        whole = replace(self, phases={})
        phases = {name: phase for name, phase in self.phases.items() if phase is not None}
        for name, phase in phases.items():
            if not isinstance(phase, dict):
                raise ValueError(f"pretrain.phases.{name} is {phase!r}; give what the phase sets otherwise, or null")
            if not name.isidentifier() or name in ("text", "checkpoints") or "phases" in phase:
                raise ValueError(f"pretrain.phases.{name}: a phase has a plain word for a name and no phases itself")
        parts = {name: overlaid(whole, phase, f"pretrain.phases.{name}") for name, phase in phases.items()}
        return parts or {"": whole}

    def last(self) -> PretrainStage:
        """The phase that the model comes from."""
        return list(self.parts().values())[-1]


@dataclass
class FinetuneStage:
    """A run that goes on from another one, ``start``, in place of a stage 2 of its own.

    It takes that run's data, tokenizer and extracted tokens, as with ``tokens_from``, and begins with its language
    model's weights; ``pretrain`` says how it is trained further.
    """

    start: str | None = None


@dataclass
class AutoencoderStage:
    """The VAE of the pixel decoder, where ``decoder.model.latents.vae`` has no folder to take one from.

    Its shape is said there; ``scale_sample`` training pictures are what its latents' scale is measured on.
    """

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    scale_sample: int = 1024


@dataclass
class DecoderStage:
    """Stage 3: tokens to pixels."""

    model: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class VocoderStage:
    """Codes of speech to sound."""

    model: VocoderConfig = field(default_factory=VocoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class PyramidStage:
    """SPAE: an autoencoder whose tokens are words of the frozen language model that ``pretrain.model.llm`` names."""

    model: PyramidConfig = field(default_factory=PyramidConfig)
    words: WordCodebookConfig = field(default_factory=WordCodebookConfig)
    relevance: RelevanceConfig = field(default_factory=RelevanceConfig)
    loss: PyramidLossConfig = field(default_factory=PyramidLossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class ExtractionConfig:
    """Pictures to codes, ``batch`` at a time; ``features`` are what a language model reads of small sets.

    ``input`` takes a folder of images or of img2dataset's tars, or one tar, in place of the run's own data. What is set
    here may change from one extraction to the next; another ``features`` needs the run's own codes to be made anew.
    """

    batch: int = 64
    features: bool = True
    input: str | None = None


@dataclass
class EvaluationConfig:
    """What is measured on which split, and how the model writes captions (``text``), answers questions and draws.

    ``candidates`` drawings are made of a text, of which the model keeps the one that it captions best. ``curve``
    reconstructs the first ``curve`` pictures with few and many steps of every sampler too; none at 0. ``batch`` images,
    texts or drawings are worked on at a time. ``clips`` of speech are written down and ``spoken`` sentences said, as
    ``transcript`` and ``speech`` say; ``recogniser`` has a Whisper judge that, which knows the ``language``.
    ``fid`` and ``geneval`` are measured by commands of their own, ``clip`` is the folder of a CLIP that judges there.
    """

    split: str = "test"
    captions: int = 240
    retrieval: int = 100
    questions: int = 2000
    reconstructions: int = 200
    curve: int = 0
    drawings: int = 100
    candidates: int = 1
    clips: int = 100
    spoken: int = 40
    recogniser: str | None = None
    language: str = "es"
    derangements: int = 20
    batch: int = 64
    text: TextPlan = field(default_factory=TextPlan)
    answer: TextPlan = field(default_factory=TextPlan)
    image: ImagePlan = field(default_factory=ImagePlan)
    transcript: TextPlan = field(default_factory=TextPlan)
    speech: ImagePlan = field(default_factory=ImagePlan)
    in_context: InContextConfig = field(default_factory=InContextConfig)
    clip: str | None = None
    fid: FidConfig | None = None
    geneval: GenEvalConfig | None = None


@dataclass
class CardConfig:
    """What a release's model card says of it beside its figures.

    ``name`` is the system's, ``text`` one that it draws well, ``about`` how it wants to be asked, ``limits`` what it
    cannot do.
    """

    name: str = "LaVIT"
    text: str = "a red apple"
    about: str = "Text that is written like the captions that it was trained on is drawn best."
    limits: str = "It knows what pictures like those that it was trained on show, and little else."


@dataclass
class ReportConfig:
    """What the report says above its figures: ``title``, what the system does in a sentence, and its paper."""

    title: str = "Pictures as words of a language model"
    about: str = (
        "A picture becomes a varying number of discrete visual words, one language model reads and writes both these "
        "and text, and a diffusion decoder turns visual words back into pixels."
    )
    paper: str = "arXiv 2309.04669"


@dataclass
class Experiment:
    """Everything of one run.

    ``tokens_from`` names another run, whose data, tokenizer and extracted tokens are this one's too: language models
    and decoders that are to be compared share them.
    """

    run: str = "runs/demo"
    seed: int = 0
    tokens_from: str | None = None
    demo: DemoConfig = field(default_factory=DemoConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerStage = field(default_factory=TokenizerStage)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    pretrain: PretrainStage = field(default_factory=PretrainStage)
    finetune: FinetuneStage = field(default_factory=FinetuneStage)
    autoencoder: AutoencoderStage = field(default_factory=AutoencoderStage)
    decoder: DecoderStage = field(default_factory=DecoderStage)
    vocoder: VocoderStage = field(default_factory=VocoderStage)
    pyramid: PyramidStage | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    card: CardConfig = field(default_factory=CardConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)

    @property
    def trains_autoencoder(self) -> bool:
        """Whether the pixel decoder's VAE is this run's own."""
        vae = self.decoder.model.latents.vae
        return vae is not None and vae.folder is None


# The stage whose work depends on a setting, by the beginning of its key; what is not here concerns the whole run.
# Those of "" change nothing but, with the number of processes, the last digits.
CHANGES_NO_RESULT = tuple(
    f"{stage}.train.{name}"
    for stage in ("tokenizer", "pretrain", "autoencoder", "decoder", "vocoder", "pyramid")
    for name in ("workers", "log_every", "checkpoint_every", "keep_checkpoints")
)
OWNERS = {
    "demo": "",
    **dict.fromkeys(CHANGES_NO_RESULT, ""),
    "data": "data",
    "data.text": "text",
    "tokenizer": "tokenizer",
    "tokenizer.model.encoder": "data",
    "tokenizer.cache_features": "data",
    "tokenizer.speech": "speech",
    "data.speech": "speech",
    "vocoder": "vocoder",
    "extraction": "",
    "extraction.features": "extract",
    "pretrain": "pretrain",
    "finetune": "pretrain",
    "autoencoder": "autoencoder",
    "decoder": "decoder",
    "decoder.model.latents": "autoencoder",
    "pyramid": "pyramid",
    "evaluation": "eval",
    "evaluation.batch": "",
    "benchmarks": "",
    "evaluation.clip": "",
    "evaluation.fid": "",
    "evaluation.geneval": "",
    "card": "",
    "report": "",
    "checks": "",
}


def load_experiment(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """The experiment of a YAML file with ``key=value`` overrides.

    Raises:
        ValueError: see :func:`lavit.config.load` and :func:`check`.
    """
    experiment = load(Experiment, path, overrides)
    check(experiment)
    return experiment


def check(experiment: Experiment) -> None:
    """Check that the sections fit together, before the first stage takes its time.

    Raises:
        ValueError: naming the keys.
    """
    e = experiment
    patches = e.tokenizer.model.encoder.patches
    parts = e.pretrain.parts()
    last = list(parts.values())[-1].model
    for name, part in parts.items():
        key = f"pretrain.phases.{name}" if name else "pretrain"
        check_pretrain(part, key)
        factored, codes = part.model.factored, e.tokenizer.model
        if factored and (codes.places or factored.codebook and factored.width != codes.quantizer.width):
            raise ValueError(
                f"{key}.model.factored: width is {factored.width}, and that of tokenizer.model.quantizer "
                f"{codes.quantizer.width}; make them alike, and set tokenizer.model.places to null"
            )
        if e.tokenizer.speech is None and part.mixture.audio_text + part.mixture.text_audio:
            raise ValueError(f"{key}.mixture has speech and tokenizer.speech is not set; give it, e.g. {{codes: 512}}")
        if e.data.vqa is None and part.mixture.question_answer:
            raise ValueError(f"{key}.mixture.question_answer is above 0 but data.vqa is not set; set it to 0")
        if part.row < patches + LEAST_TEXT:
            raise ValueError(
                f"{key}.row is {part.row}, too short for an image of {patches} patches and a text; "
                f"it must be at least {patches + LEAST_TEXT}"
            )
        if part.mixture.drop_tokens and (part.mixture.learn_read or part.read == "ids"):
            raise ValueError(
                f"{key}.mixture.drop_tokens leaves out tokens of images that are read, whose ids then are no image's: "
                "set it to 0 beside mixture.learn_read or read: ids"
            )
        if part.train.batch % (e.demo.processes * part.train.accumulate):
            raise ValueError(
                f"{key}.train.batch {part.train.batch} is not a multiple of demo.processes {e.demo.processes} × "
                f"{key}.train.accumulate {part.train.accumulate}"
            )
        alike = replace(part.model, word_head=last.word_head) == last
        if not alike or (part.model.word_head is None) != (last.word_head is None):
            raise ValueError(f"{key}.model: a phase trains the model of the others; it may set word_head alone")
        if part.model.word_head and part.model.word_head.fit == "vectors" != last.word_head.fit:
            raise ValueError(f"{key}.model.word_head.fit is vectors; the last phase has to have it too")
        if part.text != e.pretrain.text:
            raise ValueError(f"{key}.text: all phases have one text tokenizer; set pretrain.text")
    for name in ("text", "answer", "image", "transcript", "speech"):
        check_plan(getattr(e.evaluation, name), f"evaluation.{name}")
    check_in_context(e.evaluation.in_context)
    check_benchmarks(e.benchmarks)
    if e.evaluation.fid is not None:
        check_fid(e.evaluation.fid)
    if e.evaluation.geneval is not None:
        check_geneval(e.evaluation.geneval)
    llm, text = e.pretrain.model.llm, e.pretrain.text
    if llm.asset != text.asset:
        raise ValueError(
            f"pretrain.model.llm.asset is {llm.asset} and pretrain.text.asset is {text.asset}; "
            "a packaged language model goes with its own text tokenizer: set both alike"
        )
    if not 0 <= e.tokenizer.plain_steps < e.tokenizer.train.steps:
        raise ValueError(
            f"tokenizer.plain_steps {e.tokenizer.plain_steps} leaves no step for the codebook; "
            f"keep it under tokenizer.train.steps {e.tokenizer.train.steps}"
        )
    if e.tokens_from and e.finetune.start:
        raise ValueError("tokens_from and finetune.start are both set; finetune.start takes that run's tokens itself")
    check_tokenizer(e.tokenizer)
    if e.tokenizer.train.ema:
        raise ValueError(
            "tokenizer.train.ema averages weights, but the codebook moves with those of the last step: set it to 0"
        )
    if e.pretrain.text.words and e.pretrain.model.llm.scratch is None:
        raise ValueError("pretrain.text.words is for a language model from scratch; set pretrain.model.llm.scratch")
    if e.evaluation.candidates < 1 or e.evaluation.curve < 0:
        raise ValueError(
            f"evaluation: candidates {e.evaluation.candidates} must be at least 1 and curve {e.evaluation.curve} 0"
        )
    if (e.tokenizer.speech is None) != (e.data.speech is None):
        raise ValueError("data.speech and tokenizer.speech go together: set both, or neither")
    if e.evaluation.batch < 1:
        raise ValueError(f"evaluation.batch is {e.evaluation.batch}; it must be at least 1")
    if e.decoder != DecoderStage():  # a file that is about a tokenizer alone may leave the decoder out
        check_diffusion(e.decoder.model, patches)
    check_autoencoder(e.autoencoder.model)
    if e.autoencoder.scale_sample < 1:
        raise ValueError(f"autoencoder.scale_sample is {e.autoencoder.scale_sample}; it must be at least 1")
    if e.extraction.batch < 1:
        raise ValueError(f"extraction.batch is {e.extraction.batch}; it must be at least 1")
    if e.pretrain.model.llm.asset not in (None, *LLMS):
        raise ValueError(
            f"pretrain.model.llm.asset '{e.pretrain.model.llm.asset}' is unknown; choose {', '.join(LLMS)}"
        )
    if e.pyramid is not None:
        check_pyramid_stage(e)
    for name in ("tokenizer", "autoencoder", "decoder", "vocoder", *(["pyramid"] if e.pyramid else [])):
        train = getattr(e, name).train
        check_train(train, f"{name}.train")
        if train.batch % (e.demo.processes * train.accumulate):
            raise ValueError(
                f"{name}.train.batch {train.batch} is not a multiple of demo.processes {e.demo.processes} × "
                f"{name}.train.accumulate {train.accumulate}"
            )


def check_pretrain(stage: PretrainStage, key: str) -> None:
    """Check a phase of stage 2, whose dotted ``key`` the message names.

    Raises:
        ValueError: an unknown choice, or what a model that only understands pictures is asked for.
    """
    model, mixture = stage.model, stage.mixture
    check_reading(model.port, stage.read, key)
    if model.projector not in PROJECTORS:
        raise ValueError(f"{key}.model.projector '{model.projector}' is unknown; choose {', '.join(PROJECTORS)}")
    if model.word_head is not None and model.word_head.fit not in ("nothing", *FITS):
        raise ValueError(
            f"{key}.model.word_head.fit '{model.word_head.fit}' is unknown; choose nothing, {', '.join(FITS)}"
        )
    if model.bias_norm and model.lora:
        raise ValueError(f"{key}.model: bias_norm and lora both adapt the blocks; set one of them")
    if model.word_head and model.word_head.pseudo and stage.train.zero_stage == 3:
        raise ValueError(
            f"{key}.model.word_head.pseudo reads the rows of all words at once, which ZeRO-3 has in parts: set "
            f"{key}.train.zero_stage to 2 or less"
        )
    if model.factored and model.port == "unmerged":
        raise ValueError(
            f"{key}.model.factored has rows of codes, and with port: unmerged there are none; leave it out"
        )
    drawn = mixture.text_image + mixture.interleaved
    if model.port == "unmerged" and (drawn or mixture.learn_read or stage.read == "ids"):
        raise ValueError(
            f"{key}.model.port: unmerged understands pictures and cannot draw them: set {key}.mixture.text_image and "
            "interleaved to 0, learn_read to false, and do not read ids"
        )
    check_train(stage.train, f"{key}.train")


def check_pyramid_stage(experiment: Experiment) -> None:
    """Check a pyramid and what it needs of the other sections.

    Raises:
        ValueError: naming the keys.
    """
    stage, pretrain = experiment.pyramid, experiment.pretrain
    geometry = check_pyramid(stage.model, "pyramid.model")
    check_word_codebook(stage.words, "pyramid.words")
    check_relevance(stage.relevance, "pyramid.relevance")
    check_pyramid_loss(stage.loss, len(geometry.counts), "pyramid.loss")
    if pretrain.model.llm.scratch is not None or not (pretrain.text.asset or pretrain.text.folder):
        raise ValueError(
            "pyramid: its words are those of a language model that there is; set pretrain.model.llm and pretrain.text "
            "to its asset (smollm2) or folder"
        )
    if stage.train.zero_stage == 3:
        raise ValueError(
            "pyramid.train.zero_stage 3 has weights in parts, and the critic is read through detached ones: choose 0, "
            "1 or 2"
        )


def check_stored(experiment: Experiment, size: int, key: str) -> None:
    """Raise ValueError, with the dotted ``key``, where a decoder is to draw larger pictures than are stored."""
    if size > experiment.data.image_size:
        raise ValueError(
            f"{key} {size} is more than the pictures are stored at, data.image_size {experiment.data.image_size}: it "
            "would learn enlarged ones; make one fit the other"
        )


def taken_tokens(experiment: Experiment) -> Callable[[Path], None]:
    """What gives a run the tokens of another one, if the experiment takes them from there.

    Raises:
        ValueError: that run has no tokens yet, or they are made otherwise than the experiment says.
    """
    key = "tokens_from" if experiment.tokens_from else "finetune.start"
    start = experiment.tokens_from or experiment.finetune.start
    if start is None:
        return lambda run: None
    if not is_done(Path(start) / "extract"):
        raise ValueError(f"{key}: {start} has no finished extract; make it first")
    sections = ["data", "tokenizer", *(["extraction.features"] if experiment.extraction.features else [])]
    changed = require_alike(key, Path(start), experiment, tuple(sections), ("data.text", *CHANGES_NO_RESULT))
    own_texts = any(name.startswith("data.text") for name in changed)
    return lambda run: take_over(Path(start), run, texts=not own_texts)


def require_alike(
    key: str, start: Path, experiment: Experiment, sections: tuple[str, ...], may_differ: tuple[str, ...]
) -> list[str]:
    """Check that the run ``start``, named by ``key``, has the settings of ``experiment`` in these sections.

    Returns:
        All keys whose values differ, dotted.

    Raises:
        ValueError: naming up to five that must not.
    """

    def under(name: str, beginnings: tuple[str, ...]) -> bool:
        return any(name == first or name.startswith(f"{first}.") for first in beginnings)

    known, own = (read_plain_text(to_yaml(e)) for e in (load_experiment(start / "config.yaml"), experiment))
    changed = changed_keys(known, own)
    wrong = [name for name in changed if under(name, sections) and not under(name, may_differ)]
    if wrong:
        raise ValueError(f"{key}: {start} has other settings of {', '.join(wrong[:5])}; they must be the same here")
    return changed


def check_tokenizer(stage: TokenizerStage) -> None:
    """Check what would be found out only after minutes or hours of training.

    Raises:
        ValueError: naming the keys.
    """
    model, quantizer = stage.model, stage.model.quantizer
    if not 0 <= stage.vqa_share <= 1:
        raise ValueError(f"tokenizer.vqa_share is {stage.vqa_share}, but it is a share, from 0 to 1")
    if model.encoder.grid < 1:
        raise ValueError(f"tokenizer.model.encoder.grid is {model.encoder.grid}; it must be at least 1")
    if quantizer.codes < 1 or not 0 < quantizer.decay < 1:
        raise ValueError(
            f"tokenizer.model.quantizer: codes {quantizer.codes} must be at least 1, decay {quantizer.decay} in (0, 1)"
        )
    learned = model.selection.learned
    if learned is not None and min(learned.temperature, learned.final_temperature) <= 0:
        raise ValueError("tokenizer.model.selection.learned: temperature and final_temperature must be above 0")
    if model.places is not None and model.selection.even is not None:
        raise ValueError("tokenizer.model.places goes with a selection that chooses; set it to null beside even")
    if model.selection.gain is not None:
        places = model.known_places()
        GainSelector(8, model.selection.gain, model.encoder.patches, places.anchors if places else None)


def run_stage(
    main: Callable[[Experiment, Path], None], stage: str | None = None, argv: list[str] | None = None
) -> None:
    """Every run script's command line: ``CONFIG [key=value …]``.

    Opens the run folder and calls ``main(experiment, run)``; a user's mistake ends with one line and status 2. With
    ``stage``, a folder of the run, it also skips what is done, keeps a second writer out, counts the seconds and marks
    the end; the training loop does that for the stages that train.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        spec = sys.modules[main.__module__].__spec__  # a module that is run is called __main__; its spec knows its name
        raise SystemExit(f"usage: python -m {spec.name if spec else main.__module__} CONFIG [key=value ...]")
    end_with_parent()
    try:
        experiment = load_experiment(argv[0], argv[1:])
        take = taken_tokens(experiment)
        run = open_run(Path(experiment.run), experiment, OWNERS)
        take(run)
        if stage is None:
            main(experiment, run)
        elif not is_done(folder := stage_folder(run, stage)):
            with FolderLock(folder), stage_clock(folder):
                main(experiment, run)
                mark_done(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        remedy = "make room and give the same command again: it goes on where it was"
        print(f"error: the disk of {error.filename or 'the run'} is full; {remedy}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    # What a run checks before it makes anything: ``python -m lavit.experiment CONFIG [key=value ...]``.
    try:
        load_experiment(sys.argv[1], sys.argv[2:])
    except ValueError as mistake:
        raise SystemExit(f"error: {mistake}") from None
