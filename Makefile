# make demo          see it work: the bundled pair on fresh scenes and on photographs, a picture and a page
# make test          all tests
# make test-fast     the tests but the slow ones: what a developer runs at each change
# make test-lowest   the tests of test-fast and those marked `versions`, under the lowest versions that pyproject.toml admits
# make lint          ruff and mypy
# make docs          the documentation site, in build/website/site
# make sbom          what the wheel pulls in, with versions and licences: build/tokensieve.cdx.json (CycloneDX)
# make bench         the figures in results/ (real weights where ../shared has them; some hours on two cores)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
DOCS := .venv-docs
SBOM := .venv-sbom
# A process for each core; a file's tests stay together, since some count what others saw.
WORKERS := -n auto --dist loadfile

.PHONY: demo test test-fast test-lowest lint docs sbom bench clean

demo: $(VENV)/installed
	$(BIN)/tokensieve demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(WORKERS)

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest $(WORKERS) -m "not slow or versions"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS)/installed
	$(DOCS)/bin/python website/build.py

# Two environments: the tool's own, and one that holds the wheel and what it pulls in, not even pip.
sbom:
	rm -rf $(SBOM)
	$(PYTHON) -m venv $(SBOM)/tool
	$(PYTHON) -m venv --without-pip $(SBOM)/wheel
	$(SBOM)/tool/bin/python -m pip install --quiet "cyclonedx-bom>=7"
	$(SBOM)/tool/bin/python -m pip --python $(SBOM)/wheel/bin/python install --quiet .
	mkdir -p build
	$(SBOM)/tool/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --gather-license-texts \
	    --output-reproducible --output-format JSON --output-file build/tokensieve.cdx.json $(SBOM)/wheel/bin/python

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/macs.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/correctness.py
	$(BIN)/python benchmarks/speed.py --hosts vit_base_patch16_224,vit_small_patch16_224
	$(BIN)/python benchmarks/speed.py --hosts vit_large_patch16_224 --rounds 3 --out speed_large.csv
	$(BIN)/python benchmarks/speed.py --hosts vit_base_patch16_224 --batches 8 --prepack --out speed_prepacked.csv
	$(BIN)/python benchmarks/compiled.py
	$(BIN)/python benchmarks/scenes.py
	$(BIN)/python benchmarks/training_loop.py
	$(BIN)/python benchmarks/maps.py
	$(BIN)/python benchmarks/dense_heads.py
	$(BIN)/python benchmarks/exported.py
	$(BIN)/python benchmarks/waterfall.py
	$(BIN)/python benchmarks/hosts.py
	$(BIN)/python benchmarks/graphs.py
	$(BIN)/python benchmarks/odd_folder.py
	$(BIN)/python benchmarks/odd_clips.py
	$(BIN)/python benchmarks/jobs.py broken
	$(BIN)/python benchmarks/jobs.py kill
	$(BIN)/python benchmarks/jobs.py kill --engine ray
	$(BIN)/python benchmarks/jobs.py speed
	$(BIN)/python -m pip install --quiet -r examples/serve/requirements.txt
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/serve.py --model vit_base_patch16_224 --recipe "papr(keep=0.5)"
	$(BIN)/python benchmarks/video_macs.py
	$(BIN)/python benchmarks/video_depthwise.py
	$(BIN)/python benchmarks/video_speed.py
	$(BIN)/python benchmarks/slim.py
	$(BIN)/python benchmarks/compare_methods.py
	$(BIN)/python benchmarks/compare_methods.py --time
	$(BIN)/python benchmarks/speed_methods.py
	$(BIN)/python benchmarks/speed_stages.py
	$(BIN)/python benchmarks/speed_stages.py --batches 1 --prepack --out speed_stages_prepacked.csv
	$(BIN)/python benchmarks/compiled.py --host convnext_tiny --recipes "papr(keep=0.65)" --out compile_stages.csv
	$(BIN)/python benchmarks/hierarchical.py
	$(BIN)/python benchmarks/tuned.py nano_vit
	$(BIN)/python benchmarks/fresh_clone.py
	$(BIN)/python benchmarks/picture.py
	$(BIN)/python benchmarks/readme.py

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokensieve needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(DOCS)/installed: website/requirements.txt
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --requirement website/requirements.txt
	@touch $@

$(LOWEST)/installed: pyproject.toml tests/lowest.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "the lowest versions are there for Python 3.11 and 3.12: make test-lowest PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(DOCS) $(SBOM) build .pytest_cache .mypy_cache .ruff_cache
