"""What can be seen to be wrong in an experiment before its first stage takes its time."""

from __future__ import annotations

from dataclasses import replace

from lavit.benchmarks.geneval import check_geneval
from lavit.benchmarks.inception import check_fid
from lavit.benchmarks.protocol import check_benchmarks
from lavit.data.llms import LLMS
from lavit.experiment.schema import DecoderStage, Experiment, PretrainStage, TokenizerStage
from lavit.generation.episodes import check_in_context
from lavit.generation.plans import check_plan
from lavit.layers.port import PROJECTORS
from lavit.model import FITS, ModelConfig, check_reading
from lavit.renderers.autoencoder import check_autoencoder
from lavit.renderers.diffusion import check_diffusion
from lavit.tokenizers.pyramid_autoencoder import check_pyramid
from lavit.tokenizers.pyramid_objective import check_pyramid_loss
from lavit.tokenizers.relevance import check_relevance
from lavit.tokenizers.selector import GainSelector
from lavit.tokenizers.word_codebook import check_word_codebook
from lavit.training.engine import TrainConfig, check_train

LEAST_TEXT = 16  # tokens that must fit into a row beside an image


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
        check_phase(e, part, last, key)
    check_text(e.pretrain)
    check_evaluation(e)
    if e.tokens_from and e.finetune.start:
        raise ValueError("tokens_from and finetune.start are both set; finetune.start takes that run's tokens itself")
    check_tokenizer(e.tokenizer)
    if (e.tokenizer.speech is None) != (e.data.speech is None):
        raise ValueError("data.speech and tokenizer.speech go together: set both, or neither")
    if e.decoder != DecoderStage():  # a file that is about a tokenizer alone may leave the decoder out
        check_diffusion(e.decoder.model, patches)
    check_autoencoder(e.autoencoder.model)
    least_one = {"autoencoder.scale_sample": e.autoencoder.scale_sample, "extraction.batch": e.extraction.batch}
    for key, number in least_one.items():
        if number < 1:
            raise ValueError(f"{key} is {number}; it must be at least 1")
    if e.pyramid is not None:
        check_pyramid_stage(e)
    for name in ("tokenizer", "autoencoder", "decoder", "vocoder", *(["pyramid"] if e.pyramid else [])):
        train = getattr(e, name).train
        check_train(train, f"{name}.train")
        check_batch(e, train, name)
    check_stages(e)


def check_phase(experiment: Experiment, part: PretrainStage, last: ModelConfig, key: str) -> None:
    """Check a phase of stage 2, or the stage itself, beside the other sections and the model of the last phase.

    Raises:
        ValueError: naming the keys.
    """
    e = experiment
    patches, factored, codes = e.tokenizer.model.encoder.patches, part.model.factored, e.tokenizer.model
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
    check_batch(e, part.train, key)
    alike = replace(part.model, word_head=last.word_head) == last
    if not alike or (part.model.word_head is None) != (last.word_head is None):
        raise ValueError(f"{key}.model: a phase trains the model of the others; it may set word_head alone")
    if part.model.word_head and part.model.word_head.fit == "vectors" != last.word_head.fit:
        raise ValueError(f"{key}.model.word_head.fit is vectors; the last phase has to have it too")
    if part.text != e.pretrain.text:
        raise ValueError(f"{key}.text: all phases have one text tokenizer; set pretrain.text")


def check_stages(experiment: Experiment) -> None:
    """Check that the stages of ``make demo`` find what they are about.

    Raises:
        ValueError: naming a stage and the key that is not set.
    """
    last = experiment.pretrain.last().model
    draws = experiment.pyramid is None and last.port != "unmerged"
    words = ("pyramid", "words", "eval/in_context", "eval/pyramid")
    needs = {
        **dict.fromkeys(words, ("pyramid", experiment.pyramid is not None)),
        **dict.fromkeys(("speech", "vocoder", "eval/speech"), ("data.speech", experiment.data.speech is not None)),
        **dict.fromkeys(("eval/reconstruction", "eval/text_to_image"), ("a model that draws", draws)),
        "eval/visual_words": ("pretrain.model.word_head, with port: unmerged,", names_patches(last)),
    }
    for stage in experiment.demo.stages or ():
        key, is_set = needs.get(stage, ("", True))
        if not is_set:
            raise ValueError(f"demo.stages has {stage}, but {key} is not set; set it, or leave the stage out")


def names_patches(model: ModelConfig) -> bool:
    """Whether every patch of a picture has words: a head for them, and nothing that merges patches."""
    return model.word_head is not None and model.port == "unmerged"


def check_batch(experiment: Experiment, train: TrainConfig, key: str) -> None:
    """Raise ValueError where a batch, of the section ``key``, cannot be divided among processes and micro-batches."""
    processes = experiment.demo.processes
    if train.batch % (processes * train.accumulate):
        raise ValueError(
            f"{key}.train.batch {train.batch} is not a multiple of demo.processes {processes} × "
            f"{key}.train.accumulate {train.accumulate}"
        )


def check_text(stage: PretrainStage) -> None:
    """Check that the language model and its text tokenizer go together.

    Raises:
        ValueError: naming the keys.
    """
    llm, text = stage.model.llm, stage.text
    if llm.asset != text.asset:
        raise ValueError(
            f"pretrain.model.llm.asset is {llm.asset} and pretrain.text.asset is {text.asset}; "
            "a packaged language model goes with its own text tokenizer: set both alike"
        )
    if text.words and llm.scratch is None:
        raise ValueError("pretrain.text.words is for a language model from scratch; set pretrain.model.llm.scratch")
    if llm.asset not in (None, *LLMS):
        raise ValueError(f"pretrain.model.llm.asset '{llm.asset}' is unknown; choose {', '.join(LLMS)}")


def check_evaluation(experiment: Experiment) -> None:
    """Check how a run is evaluated, on its own data and on standard sets.

    Raises:
        ValueError: naming the keys.
    """
    its = experiment.evaluation
    for name in ("text", "answer", "image", "transcript", "speech"):
        check_plan(getattr(its, name), f"evaluation.{name}")
    check_in_context(its.in_context)
    check_benchmarks(experiment.benchmarks)
    if its.fid is not None:
        check_fid(its.fid)
    if its.geneval is not None:
        check_geneval(its.geneval)
    if its.candidates < 1 or its.curve < 0:
        raise ValueError(f"evaluation: candidates {its.candidates} must be at least 1 and curve {its.curve} 0")
    if its.split not in ("validation", "test"):
        raise ValueError(f"evaluation.split is '{its.split}'; choose validation or test")
    for name in ("batch", "retrieval", "derangements"):
        if getattr(its, name) < 1:
            raise ValueError(f"evaluation.{name} is {getattr(its, name)}; it must be at least 1")
    for name in ("captions", "questions", "reconstructions", "drawings", "clips", "spoken"):
        if getattr(its, name) < 2:  # what is said is shuffled too
            raise ValueError(f"evaluation.{name} is {getattr(its, name)}; it must be at least 2")


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


def check_tokenizer(stage: TokenizerStage) -> None:
    """Check what would be found out only after minutes or hours of training.

    Raises:
        ValueError: naming the keys.
    """
    model, quantizer = stage.model, stage.model.quantizer
    if not 0 <= stage.plain_steps < stage.train.steps:
        raise ValueError(
            f"tokenizer.plain_steps {stage.plain_steps} leaves no step for the codebook; "
            f"keep it under tokenizer.train.steps {stage.train.steps}"
        )
    if stage.train.ema:
        raise ValueError(
            "tokenizer.train.ema averages weights, but the codebook moves with those of the last step: set it to 0"
        )
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
