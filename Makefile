.PHONY: help book chapter watch pdf test strip bench lock audit clean
PYTHON ?= python3
PROFILE ?= quick
ENV := .venv/bin
# CPU-only torch: make TORCH_INDEX=https://download.pytorch.org/whl/cpu book
TORCH_INDEX ?=
# Cells keep their ids; what papermill, Jupyter and Colab write about a run goes, and metadata.colab.gpuType, by which Colab
# opens a chapter on a GPU, stays. The same in .pre-commit-config.yaml.
STRIP := --keep-id --extra-keys "metadata.papermill metadata.language_info metadata.colab.name metadata.colab.version \
metadata.colab.views metadata.colab.default_view metadata.colab.provenance metadata.colab.collapsed_sections \
metadata.colab.toc_visible metadata.colab.private_outputs metadata.colab.include_colab_link metadata.colab.authorship_tag \
metadata.colab.machine_shape metadata.colab.background_execution metadata.colab.last_runtime metadata.colab.gpuClass \
metadata.colab.history_visible metadata.colab.cell_execution_strategy cell.metadata.papermill cell.metadata.execution \
cell.metadata.id cell.metadata.colab cell.metadata.executionInfo cell.metadata.outputId"
# The chapter that make chapter and make watch run: make chapter N=03
N ?=

help:             ## list the commands
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

book: .venv/done  ## set up .venv, run the chapters that are not done (PROFILE=quick), build build/html/index.html
	$(ENV)/python -m lib book --profile $(PROFILE)

chapter: .venv/done ## run one chapter and rebuild the site (make chapter N=03)
	@test -n "$(N)" || { echo "which chapter? make chapter N=03"; exit 2; }
	$(ENV)/python -m lib book --profile $(PROFILE) --only $(N)

watch: .venv/done ## the same whenever a file in book/ or lib/ is saved, until Ctrl-C (make watch N=03)
	@test -n "$(N)" || { echo "which chapter? make watch N=03"; exit 2; }
	$(ENV)/watchfiles "$(ENV)/python -m lib book --profile $(PROFILE) --only $(N)" book lib

pdf: .venv/done   ## run the chapters that are not done, print the whole book to build/book.pdf; needs Chromium
	$(ENV)/python -m tools.pdf --profile $(PROFILE)

test: .venv/done  ## set up .venv, run the tests, the quick book among them
	$(ENV)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

strip: .venv/done ## take the outputs out of the notebooks, as they are committed
	$(ENV)/nbstripout $(STRIP) book/notebooks/*.ipynb

bench: .venv/done ## set up .venv, time our code beside its peers, an hour; the machine must be quiet
	for name in loss views training probe pictures; do $(ENV)/python -m benchmarks $$name || exit 1; done

lock: .venv/done  ## write requirements.lock, every package with its hash, for this Python and platform
	$(ENV)/python -m tools.lock

audit: lock       ## look up known vulnerabilities of what is locked; needs the network
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install -q pip-audit
	build/audit/bin/pip-audit --require-hashes --disable-pip -r requirements.lock

clean:            ## delete the built book and the environment; runs/ and data/ stay
	rm -rf .venv build

.venv/done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up .venv: some minutes, 6 GB with a CUDA build of torch"
	@$(PYTHON) -m venv .venv
	@$(ENV)/python -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[book,test]'
	@touch $@
