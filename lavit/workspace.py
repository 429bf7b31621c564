"""Where everything of a run lives, and how it is opened: one place that knows the folders.

```
run/data/{captions,vqa,speech}      shards                         tokenizer.prepare
run/text                            texts without pictures         tokenizer.prepare
run/features                        cached encoder features        tokenizer.prepare
run/tokenizer                       tokenizer.safetensors          tokenizer.train
run/speech                          speech.safetensors             tokenizer.train_speech
run/extract                         codes and merged features      tokenizer.extract
run/extracted                       codes of other inputs          tokenizer.extract
run/pretrain                        text/, model.safetensors       pretrain.train
run/autoencoder                     vae/                           tokenizer.train_autoencoder
run/decoder                         renderer.safetensors           tokenizer.train_decoder
run/vocoder                         vocoder.safetensors            tokenizer.train_vocoder
run/pyramid                         pyramid.safetensors, words     tokenizer.train_pyramid
run/words                           words of pictures              tokenizer.extract_words
run/eval                            one JSON a task                eval.*
```
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lavit.arguments import batches
from lavit.data.documents import DocumentMaker
from lavit.data.llms import llm_folder
from lavit.data.mixture import Mixture
from lavit.data.order import evenly
from lavit.data.sentences import sentence_vectors
from lavit.data.shards import Shards
from lavit.data.text import open_text_tokenizer
from lavit.data.texts import TextSet
from lavit.experiment import Experiment, PretrainStage, PyramidStage
from lavit.generation.in_context import frozen_llm
from lavit.model import UnifiedLM
from lavit.renderers.diffusion import DiffusionRenderer
from lavit.renderers.latents import open_vae
from lavit.renderers.vocoder import Vocoder
from lavit.runs import Progress, stage_folder
from lavit.tokenizers.codes import CodeSet, PatchCodeSet
from lavit.tokenizers.encoders import Encoder
from lavit.tokenizers.features import (
    BATCH,
    PictureSet,
    cache_features,
    head_path,
    measure_statistics,
    read_pixels,
    write_array,
)
from lavit.tokenizers.patches import PatchSet, PatchTokenizer
from lavit.tokenizers.pyramid_autoencoder import PyramidTokenizer
from lavit.tokenizers.relevance import Alignment, Clip, centred, fit_alignment, in_templates, mean_over_templates
from lavit.tokenizers.speech import SpeechTokenizer, read_centres
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.tokenizers.word_codebook import WordList, word_list, word_vectors
from lavit.vocabulary import Vocabulary
from lavit.weights import file_digest, load_weights, read_tensors, write_tensors

SPLITS = ("train", "validation", "test")
SEARCHED = 20000  # training pictures among which a nearest neighbour is looked for


class Workspace:
    """The folders of one run of one experiment. ``part`` below is "captions", "vqa" or, of some, "speech"."""

    def __init__(self, experiment: Experiment, run: Path):
        self.experiment, self.run = experiment, run
        self._shards: dict[tuple[str, str], Shards] = {}

    def folder(self, stage: str) -> Path:
        return stage_folder(self.run, stage)

    def shards(self, part: str, split: str) -> Shards:
        """The shards of a split, opened once."""
        if (part, split) not in self._shards:
            self._shards[part, split] = Shards(self.run / "data" / part, split)
        return self._shards[part, split]

    def parts(self) -> list[str]:
        """Which sets of pictures the experiment has."""
        return ["captions"] + (["vqa"] if self.experiment.data.vqa else [])

    def all_parts(self) -> list[str]:
        """Those and, where the experiment has clips, speech."""
        return self.parts() + (["speech"] if self.experiment.data.speech else [])

    def pictures(self, part: str, split: str) -> PictureSet:
        """A split with its features where the experiment caches them."""
        cached, shards = self.experiment.tokenizer.cache_features, self.shards(part, split)
        path = self.features_path(part, split, shards)
        if cached and not path.is_file():
            raise ValueError(f"no features {path}; run tokenizer.prepare first")
        return PictureSet(shards, path if cached else None, self.experiment.tokenizer.model.encoder.fit)

    def features_path(self, part: str, split: str, shards: Shards) -> Path:
        """Named after the pictures and the encoder, so that those of others are never taken for theirs."""
        return self.run / "features" / f"{part}-{split}-{shards.digest}-{self.encoder_digest}.npy"

    @functools.cached_property
    def encoder_digest(self) -> str:
        """Twelve digits that differ for encoders of other settings or weights."""
        config = self.experiment.tokenizer.model.encoder
        told = json.dumps(dataclasses.asdict(config), sort_keys=True)
        if config.weights.file:
            told += file_digest(Path(config.weights.file))
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def head_features(self, part: str, split: str, numbers: Sequence[int] | None = None) -> Tensor:
        """(n, C) float32 pooled pre-classifier features of a split's pictures, of all or of those with ``numbers``.

        They are kept beside the run's features, but for a few of a large split, which are computed anew.
        """
        shards = self.shards(part, split)
        path = head_path(self.features_path(part, split, shards))
        if numbers is not None and len(shards) > SEARCHED and not path.is_file():
            return self._heads(shards, numbers)
        if not path.is_file():
            write_array(path, self._heads(shards, range(len(shards))).numpy())
        found = torch.from_numpy(np.load(path))
        return found if numbers is None else found[list(numbers)]

    def searched(self) -> tuple[list[int], Tensor]:
        """The training pictures among which a nearest one is looked for, and their features as :meth:`head_features`.

        They are all, or of a large split some at even steps, whose features are kept too.
        """
        shards = self.shards("captions", "train")
        numbers, path = evenly(range(len(shards)), SEARCHED), self.features_path("captions", "train", shards)
        if len(numbers) == len(shards) or head_path(path).is_file():
            return numbers, self.head_features("captions", "train", numbers)
        path = head_path(path.with_stem(f"{path.stem}-{len(numbers)}"))
        if not path.is_file():
            write_array(path, self._heads(shards, numbers).numpy())
        return numbers, torch.from_numpy(np.load(path))

    @torch.no_grad()
    def _heads(self, shards: Shards, numbers: Sequence[int]) -> Tensor:
        encoder = self.encoder().eval()
        config, parts = encoder.config, batches(list(numbers), BATCH)
        read = (read_pixels(shards, part, config.image_size, config.fit) for part in parts)
        return torch.cat([encoder.raw_and_head(pixels)[1] for pixels in read])

    def codes(self, part: str, split: str) -> CodeSet | PatchSet:
        """The extracted tokens of a split, by the numbers of its pictures, with what the port reads of them.

        They are patches without codes where the port merges nothing, and words of the text where there is a pyramid.
        """
        if self.experiment.pyramid is not None:
            return self.pyramid_codes(split, part)
        port = self.experiment.pretrain.model.port
        folders = [self.code_folder(part, tar) for tar in self.shards(part, split).paths]
        if port == "features" or part == "speech":
            return CodeSet(folders)
        pictures, encoder = self.pictures(part, split), self.experiment.tokenizer.model.encoder

        def inputs(number: int) -> Tensor:
            return pictures.inputs([number], encoder.image_size)[0]

        if port == "unmerged":
            cached = self.experiment.tokenizer.cache_features
            return PatchSet(len(self.shards(part, split)), inputs, encoder.patches, cached)
        return PatchCodeSet(folders, inputs, encoder.patches)

    def code_folder(self, part: str, tar: Path) -> Path:
        """Where the codes of a tar of pictures are."""
        return self.run / "extract" / part / tar.stem

    def encoder(self) -> Encoder:
        """The frozen encoder with its standardization measured on the training pictures."""
        encoder = Encoder(self.experiment.tokenizer.model.encoder)
        if encoder.config.clip:
            shards = self.shards("captions", "train")
            path = self.run / "features" / f"statistics-{shards.digest}-{self.encoder_digest}.npy"
            measure_statistics(shards, encoder, path)
        return encoder

    def cache_features(self) -> None:
        """Compute what the experiment keeps of the encoder, resuming at the split that was cut."""
        encoder = self.encoder().eval()
        if not self.experiment.tokenizer.cache_features:
            return
        sets = [(part, split, self.shards(part, split)) for part in self.parts() for split in SPLITS]
        progress = Progress(self.folder("data"), sum(len(s) for _, _, s in sets), "pictures")
        done = 0
        for part, split, shards in sets:
            done = cache_features(shards, encoder, self.features_path(part, split, shards), progress, done)

    def new_tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer(self.experiment.tokenizer.model, self.experiment.seed, pretrained=False)
        tokenizer.encoder = self.encoder()
        return tokenizer

    def tokenizer(self) -> Tokenizer | PatchTokenizer:
        """The trained tokenizer, in evaluation mode; the encoder alone where the port merges nothing."""
        if self.experiment.pretrain.model.port == "unmerged":
            return PatchTokenizer(self.experiment.tokenizer.model, self.encoder()).eval()
        blank = Tokenizer(self.experiment.tokenizer.model, self.experiment.seed, pretrained=False)
        return load_weights(blank, self.run / "tokenizer" / "tokenizer.safetensors")

    def speech_tokenizer(self) -> SpeechTokenizer:
        """The speech tokenizer with its centres.

        Raises:
            ValueError: the experiment has none, or it is not trained yet.
        """
        if self.experiment.tokenizer.speech is None:
            raise ValueError("tokenizer.speech is not set; give it, e.g. {codes: 512}, with data.speech")
        return SpeechTokenizer(self.experiment.tokenizer.speech).load(self._speech_path)

    @property
    def _speech_path(self) -> Path:
        return self.run / "speech" / "speech.safetensors"

    def speech_centres(self) -> Tensor:
        """(K, D) float32 centres of the speech tokenizer."""
        return read_centres(self._speech_path)["codebook"]

    def text_tokenizer(self):
        text = self.experiment.pretrain.text
        given = llm_folder(text.asset) if text.asset else text.folder
        return open_text_tokenizer(given or self.run / "pretrain" / "text")

    def new_model(self) -> UnifiedLM:
        e, model = self.experiment, self.experiment.pretrain.last().model
        port, config = model.port, e.tokenizer.model
        sounds = e.tokenizer.speech.codes if e.tokenizer.speech else 0
        vocabulary, width = config.vocabulary(len(self.text_tokenizer()), port, sounds), config.fed_width(port)
        merger = encoder = None
        if port != "features":
            tokenizer = self.tokenizer()
            # The port's merger begins as the tokenizer's, whose own stays as it is and makes the ids.
            merger = tokenizer.merger if port == "patches" else None
            encoder = None if e.tokenizer.cache_features else tokenizer.encoder
        made = UnifiedLM(model, vocabulary, width, e.seed, merger=merger, encoder=encoder)
        if model.factored and model.factored.codebook:
            speech = self.speech_centres() if sounds else None
            made.start_from_codebooks(self.tokenizer().quantizer.codebook, speech)
        return made

    def model(self) -> UnifiedLM:
        """The pretrained language model, in evaluation mode."""
        return load_weights(self.new_model(), self.run / "pretrain" / "model.safetensors")

    def frozen_llm(self) -> UnifiedLM:
        """The language model as it was before anything was trained here, for what it does in context."""
        e = self.experiment
        precision = e.evaluation.in_context.precision
        return frozen_llm(e.pretrain.model, len(self.text_tokenizer()), e.seed, precision)

    def mixture(self, vocabulary: Vocabulary, split: str = "train", stage: PretrainStage | None = None) -> Mixture:
        """A split's documents of captioned pictures and of those with questions, for a phase or all of stage 2."""
        stage = stage or self.experiment.pretrain
        sets = {part: (self.codes(part, split), self.shards(part, split).describe) for part in self.parts()}
        maker = DocumentMaker(vocabulary, self.text_tokenizer(), stage.row, stage.read)
        texts = TextSet(self.run / "text", split) if self.experiment.data.text else None
        speech = None
        if self.experiment.data.speech:
            speech = self.codes("speech", split), self.shards("speech", split).describe
        return Mixture(maker, sets["captions"], sets.get("vqa"), stage.mixture, texts, speech)

    def vae(self) -> AutoencoderKL | None:
        """The VAE whose latents the pixel decoder works on: the run's own or a given one; None where it folds pixels.

        Raises:
            ValueError: it is not there yet, or it has another shape.
        """
        config = self.experiment.decoder.model.latents.vae
        if config is None:
            return None
        own = self.run / "autoencoder" / "vae"
        if config.folder is None and not own.is_dir():
            raise ValueError(f"no VAE at {own}; run tokenizer.train_autoencoder first")
        return open_vae(config.folder or str(own), config)

    def new_renderer(self) -> DiffusionRenderer:
        """An untrained pixel decoder, its U-Net as the folder has it that the configuration may name."""
        renderer, folder = self._blank_renderer(), self.experiment.decoder.model.unet.folder
        if folder:
            renderer.begin_from(folder)
        return renderer

    def renderer(self) -> DiffusionRenderer:
        """The trained pixel decoder, in evaluation mode."""
        return load_weights(self._blank_renderer(), self.run / "decoder" / "renderer.safetensors")

    def new_vocoder(self) -> Vocoder:
        """An untrained vocoder of the run's codes of speech."""
        e = self.experiment
        return Vocoder(e.vocoder.model, self.speech_centres(), e.tokenizer.speech.frames, e.seed)

    @property
    def has_vocoder(self) -> bool:
        return (self.run / "vocoder" / "vocoder.safetensors").is_file()

    def vocoder(self) -> Vocoder:
        """The trained vocoder, in evaluation mode."""
        return load_weights(self.new_vocoder(), self.run / "vocoder" / "vocoder.safetensors")

    def _blank_renderer(self) -> DiffusionRenderer:
        e = self.experiment
        encoder = e.tokenizer.model.encoder
        return DiffusionRenderer(e.decoder.model, encoder.width, encoder.patches, e.seed, self.vae())

    # ------------------------------------------------------------------------------------------------------ pyramid

    @property
    def pyramid_stage(self) -> PyramidStage:
        """The settings of the run's pyramid.

        Raises:
            ValueError: there is none.
        """
        if self.experiment.pyramid is None:
            raise ValueError(f"{self.run} has no pyramid: pyramid is not set; configs/spae/demo.yaml has one")
        return self.experiment.pyramid

    def word_list(self) -> WordList:
        """The words that a pyramid names pictures with, in the order of its codes; chosen once in a run."""
        config = self.pyramid_stage.words
        path = self.folder("pyramid") / "words.json"
        if not path.is_file():
            word_list(self.text_tokenizer(), config).save(path)
        return WordList.load(path)

    def new_pyramid(self) -> PyramidTokenizer:
        """An untrained pyramid over the frozen vectors of its words."""
        llm = self.experiment.pretrain.model.llm
        folder = llm_folder(llm.asset) if llm.asset else Path(llm.folder)
        return self._pyramid(word_vectors(folder, self.word_list(), self.pyramid_stage.words))

    def pyramid(self) -> PyramidTokenizer:
        """The trained pyramid, in evaluation mode."""
        blank = torch.zeros(len(self.word_list().ids), self.pyramid_stage.words.width)
        return load_weights(self._pyramid(blank), self.run / "pyramid" / "pyramid.safetensors")

    def _pyramid(self, codebook: Tensor) -> PyramidTokenizer:
        e = self.experiment
        encoder = self.encoder().eval() if e.pyramid.model.pooled else None
        pooled = encoder.backbone.head_hidden_size if encoder else 0
        return PyramidTokenizer(e.pyramid.model, codebook, pooled, e.seed, encoder)

    def pyramid_codes(self, split: str, part: str = "captions") -> CodeSet:
        """The words of a split's pictures as indices into :meth:`word_list`, N a picture, layer by layer.

        Raises:
            ValueError: they are not extracted yet.
        """
        if not (self.run / "words" / "words.json").is_file():
            raise ValueError(f"no words of pictures in {self.run / 'words'}; run tokenizer.extract_words first")
        return CodeSet([self.words_folder(part, tar) for tar in self.shards(part, split).paths])

    def words_folder(self, part: str, tar: Path) -> Path:
        """Where the words of a tar of pictures are."""
        return self.run / "words" / part / tar.stem

    def word_meanings(self) -> Tensor:
        """(K, E) unit vectors of the words in the space in which they are relevant to pictures; made once in a run."""
        config, path = self.experiment.pyramid.relevance, self.folder("pyramid") / "meanings.safetensors"
        if not path.is_file():
            texts = in_templates(self.word_list().words, config.templates)
            # An alignment is centred on what is usual, which would else be the nearest to every picture.
            found = Clip(config.clip).texts(texts) if config.clip else centred(sentence_vectors(texts))
            meanings = mean_over_templates(found, len(config.templates))
            write_tensors({"words": torch.nn.functional.normalize(meanings, dim=-1)}, path)
        return read_tensors(path)["words"]

    def alignment(self) -> Alignment:
        """From the frozen encoder's pooled features to sentence vectors, fitted on the training split once in a run."""
        path = self.folder("pyramid") / "alignment.safetensors"
        if not path.is_file():
            captions = PictureSet(self.shards("captions", "train")).captions
            labels = [caption.partition(": ")[2] or caption for caption in captions]
            place = {label: number for number, label in enumerate(sorted(set(labels)))}
            vectors = sentence_vectors(list(place))[[place[label] for label in labels]]
            ridge = self.experiment.pyramid.relevance.ridge
            write_tensors(fit_alignment(self.head_features("captions", "train"), vectors, ridge)._asdict(), path)
        return Alignment(**read_tensors(path))

    def picture_meanings(self, split: str) -> Tensor:
        """(n, E) unit vectors of a split's pictures in the space of :meth:`word_meanings`."""
        clip = self.experiment.pyramid.relevance.clip
        if clip is None:
            return self.alignment()(self.head_features("captions", split))
        path = self.folder("pyramid") / f"clip-{split}.npy"
        if not path.is_file():
            model, pictures = Clip(clip), PictureSet(self.shards("captions", split))
            starts = range(0, len(pictures), BATCH)
            batches = (list(range(start, min(start + BATCH, len(pictures)))) for start in starts)
            write_array(path, model.images(pictures.pixels(part, model.image_size) for part in batches).numpy())
        return torch.from_numpy(np.load(path))
