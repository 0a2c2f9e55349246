# Two commands do everything on a bare machine: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Compiling all of pgherd anew at every start of a command costs more than a third of that start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install lock check test test-unit test-local demo bench clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock: install ## pin every dependency with its hashes (uv resolves, pip installs)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --extra dev pyproject.toml -o requirements.lock
	$(LOCK_IMAGE) deploy/image/patroni.in -o deploy/image/patroni.lock
	$(LOCK_IMAGE) deploy/image/build.in -o deploy/image/build.lock
	$(LOCK_IMAGE) --override deploy/image/operator.without pyproject.toml -o deploy/image/operator.lock

# The images' Python is their Debian's; their versions are those of requirements.lock.
LOCK_IMAGE = $(BIN)/uv pip compile --quiet --python-platform linux --python-version 3.13 --generate-hashes --no-emit-index-url \
    --no-header --no-annotate --constraint requirements.lock

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install ## everything that needs no cluster, files side by side (most of the time is waiting)
	$(BIN)/pytest -n 3 --dist loadfile -m "not kubernetes"

test-unit: install
	$(BIN)/pytest tests/unit

.PHONY: test-points

test-points: install ## the long form of what backups promise: 20 points of each kind of cluster, at random (an hour and more)
	PGHERD_RESTORES=20 PGHERD_WRITE_SECONDS=40 $(BIN)/pytest -k points_ \
	    tests/local/test_backup_points.py tests/local/test_backup_pgbackrest.py tests/local/test_backup_citus.py

demo: install
	$(BIN)/python -m bench.demo

bench: install
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build

.PHONY: lab-build lab-up lab-down lab-test

lab-build: install ## builds what the lab consists of (10 minutes and more, once; at the lowest priority)
	@$(BIN)/python -m lab build

lab-up: install ## a real Kubernetes of three nodes on this machine, as root: see lab/README.md
	@$(BIN)/python -m lab up

lab-down: install
	@$(BIN)/python -m lab down

lab-test: install ## the lab proves itself
	$(BIN)/pytest lab/tests -p no:cacheprovider -s

.PHONY: image image-postgres image-operator image-test image-clean

IMAGES  := build/images
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The lab needs nothing installed but Python.
BUILD    = $(PYTHON) -m lab build-image $(if $(LOAD),--load)

image: image-postgres image-operator ## both images as archives; LOAD=1 brings them into the lab's nodes, too

image-postgres:
	@$(BUILD) --target postgres --tag localhost/pgherd-postgres:17 --file deploy/image/Dockerfile \
	    --output $(IMAGES)/postgres.tar deploy/image

image-operator: ## seconds, when only pgherd's sources have changed
	@$(BUILD) --target operator --tag localhost/pgherd-operator:$(VERSION) --file deploy/image/operator.Dockerfile \
	    --output $(IMAGES)/operator.tar .

image-test: ## the images in pods of the lab, or of the cluster that KUBECONFIG names; before: make lab-up image LOAD=1
	$(BIN)/pytest tests/kubernetes/test_image*.py -p no:cacheprovider

image-clean: ## what building images keeps: the base, the layers
	@$(PYTHON) -m lab forget-images

.PHONY: chart helm

HELM_VERSION := v4.3.1
LAB_CACHE    ?= $(HOME)/.cache/pgherd-lab

chart: install ## what of the Helm chart is generated
	$(BIN)/python -m pgherd.deploy.chart deploy/helm

helm: ## Helm itself, built from Go's module proxy (four minutes, once): with it the chart's tests lint and render, too
	@test -x $(LAB_CACHE)/bin/helm || GOBIN=$(LAB_CACHE)/bin nice -n 10 go install helm.sh/helm/v4/cmd/helm@$(HELM_VERSION)

.PHONY: e2e e2e-beside

ON_KUBERNETES = $(BIN)/pytest tests/kubernetes -p no:cacheprovider
E2E_WORKERS  ?= 3
# xdist would begin with the files of many tests, which are the short ones.
SIDE_BY_SIDE  = -n $(E2E_WORKERS) --dist loadfile --no-loadscope-reorder

e2e: install ## tests on a real Kubernetes: KUBECONFIG's, or the lab's (as root); files side by side, then what must be alone
	$(ON_KUBERNETES) $(SIDE_BY_SIDE) -m "not alone"
	PGHERD_E2E_IMAGES=loaded $(ON_KUBERNETES) -s -m alone

e2e-beside: install ## of these what may run side by side and does not take long: what .ci/run runs
	$(ON_KUBERNETES) $(SIDE_BY_SIDE) -m "not alone and not long"

.PHONY: e2e-points

e2e-points: install ## as test-points, on a real Kubernetes with pgBackRest and an S3 server: 20 points, two at a time
	PGHERD_RESTORES=20 PGHERD_WRITE_SECONDS=40 $(BIN)/pytest tests/kubernetes/test_backup_points.py -p no:cacheprovider
