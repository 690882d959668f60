# One list of commands for people, hooks and CI. `make demo` and `make test` need only Python 3.11, git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# threads that wait by spinning slow each other down on a busy machine
export OMP_WAIT_POLICY ?= PASSIVE
PEERS := .venv-peers/bin

.PHONY: demo test quality format test-peers bench-relevance bench-probing bench-explainers bench-sanity reference notebooks clean

demo: .venv/installed
	$(BIN)/heatproof study run recipes/demo.yaml --out runs/demo

test: .venv/installed
	$(BIN)/python -m pytest

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers (timm, zennit, Quantus, captum, lime ...) as independent references. They bring torchvision, which disturbs
# Lightning and transformers beside a CPU build of torch, so they have an environment of their own.
test-peers: .venv-peers/installed
	$(PEERS)/python -m pytest tests/peers

# Time and memory of the relevance methods beside plain passes and the peers; about half an hour on an idle machine.
bench-relevance: .venv-peers/installed
	$(PEERS)/python benchmarks/relevance.py

# Time and memory of probing and of the metrics beside bare passes and the peers; about half an hour on an idle machine.
# One section again: make bench-probing ONLY='metrics suite'
bench-probing: .venv-peers/installed
	$(PEERS)/python benchmarks/probing.py $(if $(ONLY),--only $(ONLY))

# Time of every explainer beside a bare forward pass and the peers; about twenty minutes on an idle machine.
bench-explainers: .venv-peers/installed
	$(PEERS)/python benchmarks/explainers.py

# Whether heatmaps depend on what a network has learned; about a quarter of an hour.
bench-sanity: .venv/installed
	$(BIN)/python benchmarks/explainer_sanity.py

# The reference pages are written from what methods and metrics say of themselves.
reference: .venv/installed
	$(BIN)/python docs/reference/generate.py

# The notebooks are stored with what they print and draw.
notebooks: .venv/installed
	$(BIN)/jupyter execute --inplace --NotebookClient.record_timing=False docs/notebooks/*.ipynb

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# LXT's own requirements are those of language models, which its rules for vision never import.
.venv-peers/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	$(PEERS)/pip install --quiet --constraint constraints.txt --no-deps lxt
	touch $@

clean:
	rm -rf .venv .venv-peers runs
