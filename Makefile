# Everything runs in .venv; `make demo` and `make test` set up what they need, by the versions in requirements/*.lock.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
SGLANG := .venv-sglang
LMCACHE := .venv-lmcache
LOOK := .venv-look
LOCKS := requirements
BIN := $(VENV)/bin
UV := 0.13.9
NATIVE := hatch_build.py $(wildcard lexico_codec/kernels/native/*.cpp lexico_codec/kernels/native/*.inl lexico_codec/kernels/native/*.h)
PIP := python -m pip install -qq --disable-pip-version-check --no-input
# Three processes share the tests by files, the longest first: while one waits for servers, two cores compute.
# `WORKERS=0` runs them in one process, for a debugger.
WORKERS ?= 3
PYTESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PACKAGES := proto/lexico_proto lexico_codec lexico_store lexico_worker lexico_lab services/lexico_services client/lexico_client

# One thread a process and sleeping waiters: on small and shared machines spinning threads cost more than they give.
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Whoever has it set: the tests start a hundred processes, and each would compile all of this tree again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo docs docs-check test-tutorial test tests lint format proto unit contract integration kernels
.PHONY: goldens bench chaos soak fuzz test-gpu bench-gpu k8s k8s-check k8s-chart k8s-audit lock test-newest
.PHONY: test-oldest compatibility redis compiler clean monitoring-check prometheus test-scale test-hosts image
.PHONY: docs-look image-check k8s-server-check test-vllm test-sglang test-lmcache

help:            ## this list
	@grep -E '^[a-z0-9 -]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

install: $(VENV)/demo ## the service, the Hugging Face adapter and a real model, into .venv

demo: $(VENV)/demo ## two nodes share a prompt cache on a real model
	$(BIN)/python -m examples.two_nodes

test: $(VENV)/dev redis lint k8s-check docs-check tests ## everything that must hold before a change lands

tests: $(VENV)/dev $(VENV)/k8s redis
	$(PYTESTS) $(PYTEST)

lint: $(VENV)/dev  ## ruff, mypy, import directions, generated stubs, README figures
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES) bench examples k8s tests requirements proto/compile_protos.py docs/_site/hooks.py docs/_site/look.py
	$(BIN)/lint-imports
	$(BIN)/python -m requirements.lock --check
	$(BIN)/python proto/compile_protos.py --check
	$(BIN)/python -m bench.readme_figures --check
	$(BIN)/python -m lexico_lab.studies.pages --check
	$(BIN)/python -m tests.compatibility --check

format: $(VENV)/dev ## rewrite sources in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/dev ## generate the gRPC stubs
	$(BIN)/python proto/compile_protos.py

k8s-check: $(VENV)/k8s ## manifests of k8s/ and the chart made of them: schemas, references, policies, settings
	$(BIN)/python -m k8s.monitoring --check
	$(BIN)/python -m k8s.checks
	$(BIN)/python -m k8s.chart --check

k8s-chart: $(VENV)/k8s ## write alerts, dashboards and the Helm chart anew from their sources
	$(BIN)/python -m k8s.monitoring
	$(BIN)/python -m k8s.chart

# It says on stderr what it cannot do: exit code 3 of the program, where a server is not to be had.
k8s-server-check: $(VENV)/k8s ## the same manifests, and broken copies, by real API servers of Debian's sources; builds them once. DEFINITIONS=FOLDER, OUT=FILE
	$(BIN)/python -m k8s.server $(if $(DEFINITIONS),--definitions $(DEFINITIONS)) $(if $(OUT),--out $(OUT))
	LEXICO_TEST_K8S_SERVERS=1 $(PYTESTS) -n 0 tests/k8s_servers $(PYTEST)

k8s-audit: $(VENV)/k8s ## the same manifests by checkov, in an environment of its own
	$(BIN)/python -m k8s.audit

monitoring-check: $(VENV)/k8s redis prometheus ## alerts and dashboards against a real run under a real Prometheus and Alertmanager
	LEXICO_TEST_MONITORING=1 $(PYTESTS) tests/monitoring $(PYTEST)

image: $(VENV)/k8s ## an image, by buildah: FLAVOUR=cpu or cuda, BASE=IMAGE@sha256:..., SOURCE=URL
	$(BIN)/python -m k8s.images.build $(or $(FLAVOUR),cpu) $(if $(BASE),--base=$(BASE)) $(if $(SOURCE),--source=$(SOURCE))

image-check: $(VENV)/k8s ## the CPU image, built and run as k8s/ would; needs root, buildah, debootstrap, runc
	$(BIN)/python -m k8s.images.check

k8s: $(VENV)/k8s redis ## tests of k8s/
	$(PYTESTS) tests/k8s $(PYTEST)

docs: $(VENV)/docs ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-check: $(VENV)/docs ## the site can be built: every link leads somewhere, every page is in the navigation
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site

docs-look: docs chromium $(LOOK)/ready ## every page of the site in headless Chromium, at a desk's width, light, and a phone's, dark; SHOTS=FOLDER keeps pictures
	$(LOOK)/bin/python docs/_site/look.py site $(if $(SHOTS),--shots $(SHOTS))

test-tutorial: $(VENV)/dev redis ## docs/tutorial.md from a fresh clone, timed
	$(BIN)/python -m bench.tutorial

unit contract integration kernels: $(VENV)/dev redis ## one category of tests
	$(PYTESTS) tests/$@ $(PYTEST)

test-scale: $(VENV)/dev redis ## Ray Serve's autoscaler up and down under load, some minutes; every page compared
	LEXICO_TEST_SCALE=1 $(PYTESTS) -n 0 tests/scale $(PYTEST)

test-hosts: $(VENV)/dev redis ## each part on a host of its own, in network namespaces: slow links, hosts cut off; some minutes, as root
	LEXICO_TEST_HOSTS=1 $(PYTESTS) -n 0 tests/hosts $(PYTEST)

test-vllm: $(VENV)/dev $(VLLM)/ready ## vLLM's connector and tier in the real engine on the CPU: some minutes, and an environment of 2.5 GB
	LEXICO_TEST_VLLM=$(abspath $(VLLM)/bin/python) $(PYTESTS) -n 0 tests/vllm $(PYTEST)

test-sglang: $(VENV)/dev $(SGLANG)/ready ## SGLang's storage backend in the real engine on the CPU: some minutes, and an environment of 2.5 GB
	LEXICO_TEST_SGLANG=$(abspath $(SGLANG)/bin/python) $(PYTESTS) -n 0 tests/sglang $(PYTEST)

test-lmcache: $(VENV)/dev $(LMCACHE)/ready ## LMCache's server and vLLM on the CPU: some minutes, and an environment of 2.5 GB
	LEXICO_TEST_LMCACHE=$(abspath $(LMCACHE)/bin/python) $(PYTESTS) -n 0 tests/lmcache $(PYTEST)

goldens: $(VENV)/dev ## write golden frames where there are none; --rewrite is by hand
	$(BIN)/python -m tests.support.goldens

bench: $(VENV)/bench ## every benchmark and the short study, results into bench/results/
	for name in bench.startup bench.wire bench.reload bench.encode bench.codec_speed bench.compile_report bench.fleet bench.telemetry lexico_lab.studies.fidelity; do \
	  $(BIN)/python -m $$name || exit 1; done

chaos: $(VENV)/dev redis ## ten minutes of faults under eight nodes; SEED=1
	$(BIN)/python -m bench.endurance chaos --seed $(or $(SEED),1)

soak: $(VENV)/dev redis ## thirty minutes under eight nodes: does anything grow?
	$(BIN)/python -m bench.endurance soak --seed $(or $(SEED),1)

fuzz: $(VENV)/fuzz ## ten minutes of attacks on whatever reads bytes of others; SEED=1
	$(BIN)/python -m tests.fuzz --seed $(or $(SEED),1)

# On a machine with a CUDA device, whose python3 has torch, triton, numpy and pytest: nothing is installed.
GPU_PYTHON ?= python3
GPU_RUN := PYTHONPATH=.:proto PYTHONUNBUFFERED=1 $(GPU_PYTHON)

test-gpu:        ## kernels on a CUDA device against their twins
	LEXICO_TEST_GPU=1 $(GPU_RUN) -m pytest -c tests/gpu/pytest.ini --rootdir=. tests/gpu $(PYTEST)

bench-gpu: test-gpu ## kernels on a CUDA device: against the hardware's limits and peers
	$(GPU_RUN) -m bench.gpu $(BENCH)

lock: .venv-lock/uv-$(UV) ## ranges of pyproject.toml to exact versions; LOCK=--upgrade takes the newest
	.venv-lock/bin/python -m requirements.lock $(LOCK)

test-newest: LOCK += --upgrade
test-oldest: LOCK += --oldest
test-newest test-oldest: test-%: .venv-lock/uv-$(UV) ## all tests on the newest, the oldest releases of the ranges
	.venv-lock/bin/python -m requirements.lock $(LOCK) --out .venv-$*/locks
	$(MAKE) tests VENV=.venv-$* LOCKS=.venv-$*/locks

compatibility: $(VENV)/k8s redis .venv-lock/uv-$(UV) ## docs/compatibility.md: other versions, one at a time; ONLY="Ray torch" picks
	$(BIN)/python -m tests.compatibility $(ONLY)

redis: | $(VENV)/python
	@command -v redis-server >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends redis-server; } \
	  || { echo "make: install redis-server 7 by hand (Debian: redis-server), the tests need it" >&2; exit 1; }

MONITORS := prometheus promtool prometheus-alertmanager jq curl openssl

# Debian starts both services where systemd runs: there it is left to whoever owns the machine.
prometheus: | $(VENV)/python
	@(for each in $(MONITORS); do command -v $$each >/dev/null || exit 1; done) \
	  || { test ! -d /run/systemd/system && apt-get update -q \
	    && RUNLEVEL=1 apt-get install -yq --no-upgrade --no-install-recommends prometheus prometheus-alertmanager jq curl openssl; } \
	  || { echo "make: install by hand: $(MONITORS) (Debian: prometheus prometheus-alertmanager jq curl openssl)," \
	    "and end what it starts: systemctl disable --now prometheus prometheus-alertmanager" >&2; exit 1; }

chromium: | $(VENV)/python
	@command -v chromium >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends chromium fonts-dejavu-core; } \
	  || { echo "make: install chromium by hand (Debian: chromium fonts-dejavu-core)" >&2; exit 1; }

compiler: | $(VENV)/python
	@command -v $${CXX:-c++} >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends g++ libc6-dev; } \
	  || echo "make: no C++ compiler: sparse coding on the CPU will be plain PyTorch, several times slower" >&2

# The locks name whole trees of packages, so pip resolves nothing. Only torch brings more: a CUDA build brings CUDA.
install = @echo "Installing $$(grep -c == $(LOCKS)/$(1).lock) packages of $(LOCKS)/$(1).lock$(2)" \
	&& $(BIN)/$(PIP) --no-deps --no-build-isolation -r $(LOCKS)/$(1).lock

$(VENV)/python:
	@$(PYTHON) -m requirements.fits
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo: $(LOCKS)/demo.lock $(LOCKS)/torch.lock pyproject.toml $(NATIVE) | $(VENV)/python compiler
	$(call install,demo, (300 MB))
	@echo "Installing $$(grep == $(LOCKS)/torch.lock) (CPU build: 200 MB, CUDA build: 3 GB)"
	@$(BIN)/$(PIP) -r $(LOCKS)/torch.lock
	@echo "Compiling the CPU kernels"
	@$(BIN)/$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev: $(LOCKS)/dev.lock $(VENV)/demo
	$(call install,dev)
	@touch $@

$(VENV)/bench: $(LOCKS)/bench.lock $(VENV)/dev
	$(call install,bench)
	@touch $@

$(VENV)/fuzz: $(LOCKS)/fuzz.lock $(VENV)/dev
	$(call install,fuzz)
	@touch $@

$(VENV)/k8s: $(LOCKS)/k8s.lock $(VENV)/docs
	$(call install,k8s, (130 MB))
	@touch $@

$(VENV)/docs: $(LOCKS)/docs.lock $(VENV)/dev
	$(call install,docs)
	@touch $@

$(VENV)/evict: $(LOCKS)/evict.lock $(VENV)/bench
	$(call install,evict)
	@touch $@

# Not ours alone: vLLM has versions of its own, and no service runs there.
$(VLLM)/ready: $(LOCKS)/vllm.lock
	@$(PYTHON) -m requirements.fits
	$(PYTHON) -m venv $(VLLM)
	@echo "Installing $$(grep -c == $<) packages of $< (2.5 GB)"
	@$(VLLM)/bin/$(PIP) --no-deps -r $<
	@touch $@

# Nor is SGLang: its kernels have no wheel for the CPU, so the tests bring a stand-in.
$(SGLANG)/ready: $(LOCKS)/sglang.lock
	@$(PYTHON) -m requirements.fits
	$(PYTHON) -m venv $(SGLANG)
	@echo "Installing $$(grep -c == $<) packages of $< (2.5 GB)"
	@$(SGLANG)/bin/$(PIP) --no-deps -r $<
	@touch $@

$(LMCACHE)/ready: $(LOCKS)/lmcache.lock $(LOCKS)/vllm.lock
	@$(PYTHON) -m requirements.fits
	$(PYTHON) -m venv $(LMCACHE)
	@echo "Installing the packages of $< (2.5 GB)"
	@$(LMCACHE)/bin/$(PIP) --no-deps -r $<
	@touch $@

# What drives the browser is no package of ours.
$(LOOK)/ready: $(LOCKS)/look.lock
	@$(PYTHON) -m requirements.fits
	$(PYTHON) -m venv $(LOOK)
	@$(LOOK)/bin/$(PIP) --no-deps -r $<
	@touch $@

.venv-lock/uv-$(UV):
	@$(PYTHON) -m requirements.fits
	$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/$(PIP) uv==$(UV)
	@touch $@

clean:           ## remove the environments and caches
	rm -rf .venv .venv-* .cache/images .pytest_cache .mypy_cache .ruff_cache .hypothesis
