"""The sections of an experiment: the schema of configs/, a section a stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lavit.benchmarks.geneval import GenEvalConfig
from lavit.benchmarks.inception import FidConfig
from lavit.benchmarks.protocol import BenchmarksConfig
from lavit.config import overlaid
from lavit.data.mixture import MixtureConfig
from lavit.data.prepare import DataConfig
from lavit.data.text import TextTokenizerConfig, TrainedTextConfig
from lavit.generation.episodes import InContextConfig
from lavit.generation.plans import ImagePlan, TextPlan
from lavit.model import ModelConfig
from lavit.renderers.autoencoder import AutoencoderConfig
from lavit.renderers.diffusion import DiffusionConfig
from lavit.renderers.vocoder import VocoderConfig
from lavit.runs import ChecksConfig, DemoConfig
from lavit.tokenizers.pyramid_autoencoder import PyramidConfig
from lavit.tokenizers.pyramid_objective import PyramidLossConfig
from lavit.tokenizers.relevance import RelevanceConfig
from lavit.tokenizers.speech import SpeechConfig
from lavit.tokenizers.tokenizer import TokenizerConfig
from lavit.tokenizers.word_codebook import WordCodebookConfig
from lavit.training.engine import TrainConfig


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

    ``input`` takes a folder of images or of img2dataset's tars, or one tar, in place of the run's own data, and makes
    words of it alone. What is set here may change from one extraction to the next; another ``features`` needs the run's
    own codes to be made anew.
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
