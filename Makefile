# Commands of the project; README.md and the guides that it names explain them. CONFIG chooses the experiment, ARGS adds
# key=value overrides.
CONFIG ?= configs/lavit/demo.yaml
GPUS ?=
HOSTFILE ?=
ARGS ?=
RUNS ?=
OFFICIAL ?=
SET ?=
DATA ?=
OUT ?=
PYTHON ?= python3
WORKERS ?= 2
VENV ?= .venv
RUN := $(VENV)/bin/python
LAUNCH = $(RUN) -m lavit.launch
LAUNCHED = $(if $(GPUS),--processes $(GPUS)) $(if $(HOSTFILE),--hostfile $(HOSTFILE)) -- $(CONFIG) $(ARGS)

.PHONY: setup demo test test-slow lint prepare tokenizer convert extract pretrain finetune autoencoder decoder \
	eval-tokenizer eval-caption eval-vqa eval-reconstruction eval-text-to-image eval-fid eval-geneval compare-tokenizers \
	eval speech vocoder pyramid words eval-speech eval-pyramid eval-in-context plan bench report release checks compare

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat -e .  # a path that type checkers follow too
	@touch $@

demo: setup
	@$(RUN) -m eval.demo $(CONFIG) $(ARGS)

lint: setup
	$(RUN) -m ruff check .

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: setup
	$(RUN) -m pytest -m "slow" $(ARGS)

prepare: setup
	@$(RUN) -m tokenizer.prepare $(CONFIG) $(ARGS)

tokenizer: setup
	@$(LAUNCH) tokenizer.train $(LAUNCHED)

convert: setup
	@$(RUN) -m tokenizer.convert $(OFFICIAL) $(CONFIG) $(if $(OUT),--release $(OUT)) $(ARGS)

extract: setup
	@$(LAUNCH) tokenizer.extract $(LAUNCHED)

pretrain: setup
	@$(LAUNCH) pretrain.train $(LAUNCHED)

finetune: setup
	@$(LAUNCH) pretrain.finetune $(LAUNCHED)

autoencoder: setup
	@$(LAUNCH) tokenizer.train_autoencoder $(LAUNCHED)

decoder: setup
	@$(LAUNCH) tokenizer.train_decoder $(LAUNCHED)

eval-tokenizer: setup
	@$(RUN) -m tokenizer.evaluate $(CONFIG) $(ARGS)

# With SET and DATA a standard set, as its owner distributes it; without, the run's own held-out pictures.
eval-caption eval-vqa: setup
ifneq ($(SET),)
	$(if $(DATA),,$(error give DATA, the folder that $(SET) was unpacked into))
	@$(LAUNCH) eval.benchmark $(LAUNCHED) 'benchmarks.data.$(SET)=$(subst ','\'',$(DATA))' 'benchmarks.sets=[$(SET)]' benchmarks.task=$(if $(filter %-caption,$@),caption,question)
else
	$(if $(DATA),$(error give SET, the name of the standard set in $(DATA)))
	@$(RUN) -m eval.$(@:eval-%=%) $(CONFIG) $(ARGS)
endif

# Whatever fails, the table has the rest; the status is that of the last that failed.
eval: setup
	@status=0; \
	$(RUN) -m eval.held_out $(CONFIG) $(ARGS) || status=$$?; \
	for part in benchmark fid geneval; do $(LAUNCH) eval.$$part $(LAUNCHED) || status=$$?; done; \
	$(RUN) -m eval.tables $(CONFIG) $(ARGS) || status=$$?; \
	exit $$status

eval-reconstruction: setup
	@$(RUN) -m eval.reconstruct $(CONFIG) $(ARGS)

eval-text-to-image: setup
	@$(RUN) -m eval.text_to_image $(CONFIG) $(ARGS)

eval-fid: setup
	@$(LAUNCH) eval.fid $(LAUNCHED)

eval-geneval: setup
	@$(LAUNCH) eval.geneval $(LAUNCHED)

compare-tokenizers: setup
	@$(RUN) -m tokenizer.compare $(RUNS) $(ARGS)

speech: setup
	@$(RUN) -m tokenizer.train_speech $(CONFIG) $(ARGS)

vocoder: setup
	@$(LAUNCH) tokenizer.train_vocoder $(LAUNCHED)

eval-speech: setup
	@$(RUN) -m eval.speech $(CONFIG) $(ARGS)

eval-in-context: setup
	@$(RUN) -m eval.in_context $(CONFIG) $(ARGS)

pyramid: setup
	@$(LAUNCH) tokenizer.train_pyramid $(LAUNCHED)

words: setup
	@$(RUN) -m tokenizer.extract_words $(CONFIG) $(ARGS)

eval-pyramid: setup
	@$(RUN) -m eval.pyramid $(CONFIG) $(ARGS)

plan: setup
	@$(RUN) -m eval.plan $(or $(GPUS),1) $(CONFIG) $(ARGS)

bench: setup
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt -c requirements.txt
	@$(RUN) -m eval.bench $(ARGS)

release: demo
	@$(RUN) -m eval.export $(OUT) $(CONFIG) $(ARGS)

checks: setup
	@$(RUN) -m eval.checks $(CONFIG) $(ARGS)

compare: setup
	@$(RUN) -m eval.compare $(if $(RUNS),$(RUNS),$(foreach system,lavit teal visual_words spae,configs/$(system)/demo.yaml))

report: setup
	@$(RUN) -m eval.report $(CONFIG) $(ARGS)
