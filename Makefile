# Everything runs in .venv, which the first target that needs it makes; constraints.txt pins what goes into it.
# PYTHON=/path/to/python3.12 picks the interpreter; EXTRAS=gpu,train,dev installs the GPU builds.

IS_RIGHT := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
# Tried by running them: a version manager's shim has the name, but not always the Python.
PYTHON ?= $(firstword $(foreach name,python3.12 python3.11 python3,$(shell $(name) -c '$(IS_RIGHT)' 2>/dev/null && echo $(name))))
EXTRAS ?= cpu,train,dev
# Three at once on the two cores that the machines of CI have, as a third of the time tests wait; those of a file stay
# together, for what they share.
WORKERS ?= 3
PARALLEL := -n $(WORKERS) --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
BENCHMARKS := $(sort $(wildcard tests/benchmarks/bench_*.py))

.PHONY: demo test test-slow check format bench proto clean

demo: $(STAMP) ## The whole road once; IMAGES=DIR for your own folder
	$(BIN)/kinsight demo $(if $(IMAGES),--images "$(IMAGES)")

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PARALLEL)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file; done

# The .proto files that ours imports come with grpcio-tools and googleapis-common-protos, which keeps one of them under
# another name than everybody imports it by.
proto: $(STAMP)
	common=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(BIN)/python -m grpc_tools.protoc \
		-I google/longrunning/operations.proto=$$common/google/longrunning/operations_proto.proto -I proto -I $$common \
		--python_out=proto --pyi_out=proto --grpc_python_out=proto proto/kinsight/v1/*.proto

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Kinsight needs Python 3.11 or 3.12 and found neither;" \
		"install one, or say where it is: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(IS_RIGHT)' || { echo "$$($(PYTHON) --version 2>&1) at $(PYTHON) will not do;" \
		"Kinsight needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@rm -f $(VENV)/.installed-* && touch $@
