# Everything runs in .venv, which the first target that needs it makes; constraints.txt pins what goes into it.
# PYTHON=/path/to/python3.12 picks the interpreter; EXTRAS=gpu,train,dev installs the GPU builds.

PYTHON ?= $(firstword $(foreach name,python3.12 python3.11 python3,$(shell command -v $(name) 2>/dev/null)))
EXTRAS ?= cpu,train,dev
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
BENCHMARKS := $(sort $(wildcard tests/benchmarks/bench_*.py))

.PHONY: demo test test-slow check format bench proto clean

demo: $(STAMP) ## The whole road once; IMAGES=DIR for your own folder
	$(BIN)/kinsight demo $(if $(IMAGES),--images "$(IMAGES)")

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file; done

# The .proto files that ours imports come with grpcio-tools and googleapis-common-protos.
proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I proto -I $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		--python_out=proto --pyi_out=proto --grpc_python_out=proto proto/kinsight/v1/*.proto

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python found; install Python 3.11 or 3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else \
		"$(PYTHON) is Python %d.%d; Kinsight needs 3.11 or 3.12: make PYTHON=/path/to/python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@rm -f $(VENV)/.installed-* && touch $@
