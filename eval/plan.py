"""What a configuration will need, before anything is started: ``make plan CONFIG=… GPUS=…``

Every model is built of PyTorch's fake tensors, which take no memory, and its forward pass is run on them: parameters,
floating-point operations and what the backward pass keeps are counted, not guessed. Weights need not be there. How long
documents are is read off the run's own tokens once they are extracted, and assumed before.

Left out are what libraries take for themselves and the layers that ZeRO-3 gathers for a moment. Before it spreads them,
weights are whole on every GPU once, 4 bytes each.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import AutoConfig, LlamaForCausalLM, PretrainedConfig

from eval.counting import StagePlan, imagined, mark_frozen, measure, part
from lavit.data.llms import llm_folder
from lavit.data.packing import document_length, next_ids
from lavit.experiment import Experiment, load_experiment
from lavit.model import ModelConfig, UnifiedLM, checkpoint_blocks, llama_of
from lavit.renderers.adversary import Adversary
from lavit.renderers.diffusion import DiffusionRenderer
from lavit.renderers.latents import vae_options
from lavit.renderers.objective import RendererObjective
from lavit.runs import is_done
from lavit.tokenizers.decoder import FeatureDecoder
from lavit.tokenizers.encoders import Encoder
from lavit.tokenizers.merger import Merger
from lavit.tokenizers.pyramid_autoencoder import PyramidTokenizer, check_pyramid
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.tokens import IGNORE, Feed, Rows
from lavit.workspace import Workspace

TEXT_TOKENS = 32  # assumed tokens of a caption, or of a question with its answer, before there are any
SPEECH_SECONDS = 4.0  # of a clip
SAMPLE = 512  # documents whose lengths are read off a run


def plan(experiment: Experiment) -> list[StagePlan]:
    """The trainings of an experiment, stage 2 phase by phase; that of a VAE where it has one of its own.

    Raises:
        ValueError: a language model in a folder whose shape the configuration does not say.
    """
    stages = experiment.demo.stages or ["tokenizer", "pretrain", "decoder"]
    plans = [tokenizer_plan(experiment)] if "tokenizer" in stages else []
    for name, phase in experiment.pretrain.parts().items() if "pretrain" in stages else ():
        plans.append(pretrain_plan(replace(experiment, pretrain=phase), f"pretrain/{name}" if name else "pretrain"))
    if experiment.trains_autoencoder and "autoencoder" in (experiment.demo.stages or ["autoencoder"]):
        plans.append(autoencoder_plan(experiment))
    if experiment.pyramid is not None and "pyramid" in stages:
        plans.append(pyramid_plan(experiment))
    return plans + ([decoder_plan(experiment)] if "decoder" in stages else [])


def tokenizer_plan(experiment: Experiment) -> StagePlan:
    """Stage 1 on images; tokens at the selection's mean rate."""
    train = experiment.tokenizer.train
    config = replace(experiment.tokenizer.model, attention="sdpa")  # xFormers' kernels do not run here
    encoder, kind = config.encoder, config.selection.chosen()
    patches, size = encoder.patches, encoder.image_size
    kept = kind[1].tokens if kind[0] == "even" else max(1, round(kind[1].rho * patches))
    with torch.device("meta"):
        tokenizer = Tokenizer(config, pretrained=False)
    with imagined(train.precision, tokenizer):
        images, features = torch.empty(1, 3, size, size), torch.empty(1, patches, encoder.width)
        words, keep = torch.empty(1, kept, config.quantizer.width), torch.ones(1, kept, dtype=torch.bool)
        position = torch.zeros(1, kept, dtype=torch.int64)
        mark_frozen(tokenizer, train)
        merger, quantizer = tokenizer.merger, tokenizer.quantizer

        def select() -> Tensor:
            selector = tokenizer.selector
            return selector.out(nn.functional.gelu(selector.inner(selector.norm(features))))

        def quantize() -> Tensor:
            unit = quantizer.proj(words.new_empty(kept, config.merger.width))
            return unit @ unit.new_empty(config.quantizer.width, config.quantizer.codes)

        parts = [
            part("encoder", tokenizer.encoder, None if cached(experiment) else lambda: tokenizer.encoder.raw(images))
        ]
        if tokenizer.selector is not None:
            parts.append(part("selector", tokenizer.selector, select))
        parts += [
            part("merger", merger, lambda: merged(merger, features, kept)),
            part("quantizer", quantizer, quantize),
            part("feature decoder", tokenizer.decoder, lambda: tokenizer.decoder(words, keep, position)),
        ]
        return StagePlan("tokenizer", parts, train, "images", train.batch * kept)


def merged(merger: Merger, features: Tensor, kept: int) -> Tensor:
    """What a merger computes of one image, (1, P, D) features of which ``kept`` patches stay; which ones is all one."""
    x = merger.proj_in(merger.norm_in(features))
    out, rest = x[:, :kept], x[:, kept:]
    for block in merger.blocks:
        out = block(out, rest)
    return merger.norm(out)


class Documents(NamedTuple):
    """Means over the documents of a mixture: tokens, tokens to be learned, tokens of images that are read, images."""

    length: float
    learned: float
    read: float
    pictures: float


def assumed_documents(experiment: Experiment, words: int) -> Documents:
    """What a mixture's documents are like if an image has ``words`` words and a text :data:`TEXT_TOKENS`."""
    mixture, text = experiment.pretrain.mixture, TEXT_TOKENS
    image, long = words + 2, experiment.pretrain.row if experiment.data.text else text + 2
    several = mixture.pictures * (image + text) + 2
    speech = experiment.tokenizer.speech
    audio = round(SPEECH_SECONDS * 100 / speech.frames) + 2 if speech else 0
    kinds = {
        "image_text": Documents(image + text + 1, text + 1, words, 1),
        "text_image": Documents(text + 1 + image, text + image, 0, 0),
        "text_only": Documents(long, long - 1, 0, 0),
        "question_answer": Documents(image + text + 1, text / 8 + 1, words, 1),
        "interleaved": Documents(several, several - 1, 0, 0),
        "audio_text": Documents(audio + text + 1, text + 1, 0, 0),
        "text_audio": Documents(text + 1 + audio, text + audio, 0, 0),
    }
    shares = {kind: getattr(mixture, kind) for kind in kinds}
    mean = [sum(shares[k] * kinds[k][i] for k in kinds) / sum(shares.values()) for i in range(4)]
    return Documents(*mean)


def known_documents(experiment: Experiment) -> Documents | None:
    """What the documents of the experiment's run are like; None while it lacks tokens, texts or a text tokenizer."""
    work = Workspace(experiment, Path(experiment.run))
    if not is_done(work.run / "extract"):
        return None
    try:
        speech = experiment.tokenizer.speech
        sounds = speech.codes if speech else 0
        vocabulary = experiment.tokenizer.model.vocabulary(len(work.text_tokenizer()), sounds=sounds)
        drawn = [one.document for one in work.mixture(vocabulary).step(0, SAMPLE, experiment.seed)]
    except (ValueError, OSError):
        return None
    learned = sum(int((next_ids(document) != IGNORE).sum()) for document in drawn)
    read = [len(span.ids) - 2 for document in drawn for span in document if span.feed == Feed.FEATURES]
    sums = (sum(map(document_length, drawn)), learned, sum(read), len(read))
    return Documents(*(total / SAMPLE for total in sums))


def known_shape(config: ModelConfig) -> PretrainedConfig | None:
    """What the language model looks like, None for one from scratch.

    Raises:
        ValueError: it is in a folder that is not there, and the configuration does not say.
    """
    if config.shape is not None:
        return llama_of(config.shape)
    if config.llm.scratch is not None:
        return None
    folder = llm_folder(config.llm.asset) if config.llm.asset else config.llm.folder
    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder} is not there: pretrain.model.shape must say what the model looks like, e.g. {{layers: 32}}"
        )
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def pretrain_plan(experiment: Experiment, name: str = "pretrain") -> StagePlan:
    """Stage 2, or the phase of it with this name, on the documents of the run, or on assumed ones."""
    config, train = experiment.pretrain.model, experiment.pretrain.train
    tokenizer, text = experiment.tokenizer.model, experiment.pretrain.text
    shape = known_shape(config)
    own = text.trained or text.words
    text_size = shape.vocab_size if shape is not None else own.vocabulary if own else 32000
    speech = experiment.tokenizer.speech
    vocabulary = tokenizer.vocabulary(text_size, config.port, speech.codes if speech else 0)
    width = tokenizer.fed_width(config.port)
    kind, choice = tokenizer.selection.chosen()
    words = choice.tokens if kind == "even" else round(choice.rho * tokenizer.encoder.patches)
    words = tokenizer.encoder.patches if config.port == "unmerged" else words
    known = known_documents(experiment)
    mean = known or assumed_documents(experiment, words)
    length, learned, read = (max(1, round(value)) for value in mean[:3])
    encoder, plain = tokenizer.encoder, replace(config, checkpoint_activations=False)
    with torch.device("meta"):
        llm = LlamaForCausalLM(shape) if shape is not None else None
        merger = Merger(encoder.width, encoder.patches, tokenizer.merger) if config.port == "patches" else None
        online = None
        if config.port != "features" and not cached(experiment):
            online = Encoder(encoder, pretrained=False)
        model = UnifiedLM(plain, vocabulary, width, llm=llm, merger=merger)
    with imagined(train.precision, model, *([online] if online else [])):
        states = torch.empty(1, length, model.blocks.config.hidden_size)
        ids = torch.zeros(1, length, dtype=torch.int64)
        patches, fed = torch.empty(1, encoder.patches, encoder.width), torch.empty(read, width)
        images = torch.empty(1, 3, encoder.image_size, encoder.image_size)
        places = torch.arange(length)
        documents = (Rows(places, places, torch.ones(1, length, dtype=torch.bool)),)
        mark_frozen(model, train)

        def blocks() -> Tensor:
            mask = states.new_zeros(1, 1, 1, 1)
            return model.blocks(
                inputs_embeds=states, attention_mask=mask, position_ids=ids, use_cache=False, documents=documents
            )[0]

        def port() -> Tensor:
            return model.port.projected(merged(model.port.merger, patches, words) if model.port.merges else fed)

        head = part("head", model.head, lambda: model.head(states[0, :learned]), known=model.embedding)
        # The loss is taken in chunks, which keep no logits but the gradients of the labelled states and of all rows.
        head.kept, head.kept_once = 4 * learned * states.shape[-1], 4 * sum(p.numel() for p in model.head.parameters())
        head.logits = learned * vocabulary.size
        entry = part("port", model.port, port)
        if merger is not None:
            entry.flops, entry.kept = round(entry.flops * mean.pictures), round(entry.kept * mean.pictures)
        parts = [part("embedding", model.embedding, lambda: model.embedding(ids)), entry]
        if online is not None:
            parts.insert(0, part("encoder", online, lambda: online.raw(images)))
            parts[0].flops = round(parts[0].flops * mean.pictures)
        body = part("blocks", model.blocks, blocks)
        if config.checkpoint_activations:  # what enters each block, and all of the one that is computed again
            layers = model.blocks.config.num_hidden_layers
            checkpoint_blocks(model.blocks)
            body.kept = measure(model.blocks, blocks).kept + body.kept // layers
            body.kept_once //= layers
        parts += [body, head]
        of = "the run's own" if known else "assumed"
        items = f"documents ({of}, {length} tokens)"
        beside = parts[0].parameters if online is not None else 0
        return StagePlan(name, parts, train, items, train.batch * length, beside)


def cached(experiment: Experiment) -> bool:
    """Whether the encoder's features are read from disk."""
    return experiment.tokenizer.cache_features


def decoder_plan(experiment: Experiment) -> StagePlan:
    """Stage 3 on images; the tokenizer's decoder and the VAE stand beside what is trained."""
    config, train = experiment.decoder.model, experiment.decoder.train
    model = replace(experiment.tokenizer.model, attention="sdpa")
    encoder, kind = model.encoder, model.selection.chosen()
    kept = kind[1].tokens if kind[0] == "even" else max(1, round(kind[1].rho * encoder.patches))
    with torch.device("meta"):
        renderer = DiffusionRenderer(config, encoder.width, encoder.patches)
        objective = RendererObjective(renderer, nn.Identity())
        places = bool(model.places)
        size = (model.quantizer.width, encoder.grid, encoder.width)
        reader = FeatureDecoder(*size, model.decoder, places=places).requires_grad_(False)
        vae = None
        if config.latents.vae is not None:
            vae = AutoencoderKL(**vae_options(config.latents.vae)).requires_grad_(False)
    with imagined(train.precision, objective, reader, *([vae] if vae else [])):
        noisy, images = torch.empty(1, *config.shape), torch.empty(1, 3, config.image_size, config.image_size)
        features = torch.empty(1, encoder.patches, encoder.width)
        words, keep = torch.empty(1, kept, model.quantizer.width), torch.ones(1, kept, dtype=torch.bool)
        position = torch.zeros(1, kept, dtype=torch.int64)
        time, drop = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
        mark_frozen(objective, train)
        parts = [part("feature decoder", reader, torch.no_grad()(lambda: reader(words, keep, position)))]
        if vae is not None:
            parts.append(part("VAE", vae, torch.no_grad()(lambda: vae.encode(images))))
        beside = sum(one.parameters for one in parts)
        parts.append(part("U-Net", renderer, lambda: renderer.predict(noisy, time, features, drop)[0]))
        return StagePlan("decoder", parts, train, "images", beside=beside)


def autoencoder_plan(experiment: Experiment) -> StagePlan:
    """The VAE of the pixel decoder, on images; the encoder whose features it is compared in stands beside it."""
    config, train, encoder = experiment.decoder.model, experiment.autoencoder.train, experiment.tokenizer.model.encoder
    with torch.device("meta"):
        vae = AutoencoderKL(**vae_options(config.latents.vae))
        online = Encoder(encoder, pretrained=False) if experiment.autoencoder.model.features else None
    with imagined(train.precision, vae, *([online] if online else [])):
        images = torch.empty(1, 3, config.image_size, config.image_size)
        mark_frozen(vae, train)
        forward = lambda: vae.decode(vae.encode(images).latent_dist.mean).sample  # noqa: E731
        parts = [part("VAE", vae, forward)]
        if online is not None:
            rebuilt = torch.empty(1, 3, encoder.image_size, encoder.image_size, requires_grad=True)
            parts.insert(0, part("encoder", online, lambda: online.differentiable(rebuilt)))
            parts[0].flops *= 3  # of the image and of what was rebuilt, and back through the latter
        beside = parts[0].parameters if online is not None else 0
        return StagePlan("autoencoder", parts, train, "images", beside=beside)


def pyramid_plan(experiment: Experiment) -> StagePlan:
    """SPAE's autoencoder and its critic on images, with as many words as may be; the words' distances are counted once
    a token, as quantization takes them."""
    stage, encoder, train = experiment.pyramid, experiment.tokenizer.model.encoder, experiment.pyramid.train
    words, width, size = stage.words.most, stage.words.width, stage.model.image_size
    geometry = check_pyramid(stage.model, "pyramid.model")
    with torch.device("meta"):
        online = Encoder(encoder, pretrained=False) if stage.loss.features or stage.model.pooled else None
        known = online.backbone.head_hidden_size if stage.model.pooled else 0
        tokenizer = PyramidTokenizer(stage.model, torch.empty(words, width), known)
        critic = Adversary(stage.loss.adversary).critic
    with imagined(train.precision, tokenizer, critic, *([online] if online else [])):
        images, latents = torch.empty(1, 3, size, size), torch.empty(1, width, geometry.side, geometry.side)
        pooled = torch.empty(1, known) if known else None
        tokens, codebook = torch.empty(geometry.tokens, width), torch.empty(width, words)
        parts = []
        if online is not None:
            rebuilt = torch.empty(1, 3, encoder.image_size, encoder.image_size, requires_grad=True)
            parts.append(part("frozen encoder", online, lambda: online.differentiable(rebuilt)))
            # Of what was rebuilt, and back through it; of the image too where its features are not kept.
            parts[0].flops *= 2 if cached(experiment) else 3
        beside = parts[0].parameters if parts else 0
        halves = nn.ModuleList([tokenizer.encoder, *([tokenizer.whole] if tokenizer.whole else [])])
        parts += [
            part("encoder", halves, lambda: tokenizer.latents(images, pooled)),
            part("words", nn.Module(), torch.no_grad()(lambda: tokens @ codebook)),
            part("decoder", tokenizer.decoder, lambda: tokenizer.pixels(latents)),
            part("critic", critic, lambda: (critic(images), critic(images), critic(images))),
        ]
        return StagePlan("pyramid", parts, train, "images", train.batch * geometry.tokens, beside=beside)


def show(stages: list[StagePlan], gpus: int) -> str:
    """The plan as text."""
    lines = []
    for stage in stages:
        train = stage.train
        lines.append(f"{stage.name}: {train.steps:,} steps of {train.batch:,} {stage.items}, {train.precision}")
        lines.append(f"  {'':<18}{'parameters':>18}{'trainable':>18}{'GFLOP a forward pass':>24}")
        rows = [(p.name, p.parameters, p.trainable, p.flops) for p in stage.parts]
        rows.append(("in all", stage.parameters, stage.trainable, sum(p.flops for p in stage.parts)))
        lines += [f"  {name:<18}{all_:>18,}{own:>18,}{flops / 1e9:>24,.2f}" for name, all_, own, flops in rows]
        for zero in range(4):
            states, activations = stage.memory(zero, gpus)
            used = "  <- configured" if zero == train.zero_stage else ""
            on = f"{gpus} GPU{'s' * (gpus > 1)}"
            lines.append(
                f"  ZeRO {zero} on {on}: {gib(states + activations)} a GPU, {gib(states)} of it model states, "
                f"{gib(activations)} kept for the backward pass{used}"
            )
        tokens = f" with {stage.tokens:,} tokens" if stage.tokens else ""
        lines.append(f"  a step: {train.batch:,} {stage.items}{tokens}, {stage.flops:.3g} FLOP\n")
    return "\n".join(lines)


def gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"


def main(argv: list[str]) -> None:
    if len(argv) < 2 or not argv[0].isdigit() or int(argv[0]) < 1:
        raise SystemExit("usage: python -m eval.plan GPUS CONFIG [key=value ...]")
    gpus = int(argv[0])
    try:
        experiment = load_experiment(argv[1], argv[2:])
        print(show(plan(experiment), gpus), end="")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main(sys.argv[1:])
