# SPDX-License-Identifier: Apache-2.0
#
# make demo [SOURCE=file, folder or camera index] [MODEL=name or .onnx] [DEVICE=auto]
#             a camera and the segmenter on this machine's ROS graph; results in demo_out/
# make test   lint and every test: builds, processes, trainings
# make test-fast
#             the tests that start no process and train nothing
# make test-latest
#             make test against the newest release of every dependency, in .venv-latest
# make lint   ruff and mypy alone
# make docs   the pages of docs/ as a site, in site/
# make lock   resolve requirements.lock anew from setup.py
# make bench  the shipped models on this machine, into benchmarks/results/bench.json
# make soak [MINUTES=480]
#             segment_node for so long: memory, descriptors and shared memory must stay flat
# make clean  remove what these commands made, the environment .venv included
#
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
# Pins what is installed; LOCK= installs the newest releases instead.
LOCK := requirements.lock
MODEL ?= segmenter_tiny
MINUTES ?= 480

# With a ROS installation sourced, its rclpy and its NumPy are used: the environment sees the
# system's packages and leaves the ROS wheels out. Its packages were built for its own NumPy, so uv
# changes the pins that do not go with that NumPy, and keeps all others.
ifdef ROS_DISTRO
  ROS := $(ROS_DISTRO)
  SEES_SYSTEM := true
  DEMO_EXTRAS := cpu,demo
else
  ROS := wheels
  SEES_SYSTEM := false
  DEMO_EXTRAS := ros,cpu,demo
endif
TEST_EXTRAS := $(DEMO_EXTRAS),train,docs,test

# An environment is installed when its stamp is newer than setup.py and the lock.
DEMO_READY := $(VENV)/demo-$(ROS).stamp
TEST_READY := $(VENV)/test-$(ROS).stamp
DOCS_READY := $(VENV)/docs-$(ROS).stamp

comma := ,

# --use-pep517: Debian 12's pip would otherwise run `setup.py develop`, which follows setup.cfg and
# puts `ctxseg` where `ros2 run` looks, not into the environment's bin.
define install
	@command -v $(PYTHON) >/dev/null || \
	  { echo "make: no '$(PYTHON)' here. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $$($(PYTHON) -V) is too old, 3.10 is the least: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make environments. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	test -x $(VENV)/bin/pip || \
	  $(PYTHON) -m venv $(if $(ROS_DISTRO),--system-site-packages) $(VENV)
	@grep -q "include-system-site-packages = $(SEES_SYSTEM)" $(VENV)/pyvenv.cfg || \
	  { echo "make: $(VENV) was made $(if $(ROS_DISTRO),without,with) ROS sourced. Make it anew: make clean"; exit 1; }
	$(if $(LOCK),cp $(LOCK) $(VENV)/constraints.txt,: > $(VENV)/constraints.txt)
	$(if $(ROS_DISTRO),$(call keep_numpy,$(1)))
	$(VENV)/bin/pip install --use-pep517 -c $(VENV)/constraints.txt \
	  $(if $(LOCK),,--upgrade --upgrade-strategy eager) -e ".[$(1)]"
	@touch $@
endef

define keep_numpy
$(PYTHON) -c 'import numpy; print("numpy==" + numpy.__version__)' > $(VENV)/numpy.txt
	$(VENV)/bin/pip install $(if $(LOCK),-c $(LOCK)) uv
	$(VENV)/bin/uv pip compile -q --python $(VENV)/bin/python -c $(VENV)/numpy.txt \
	  $(foreach extra,$(subst $(comma), ,$(1)),--extra $(extra)) setup.py -o $(VENV)/constraints.txt
endef

.PHONY: demo test test-fast test-latest lint docs lock bench soak clean

demo: $(DEMO_READY)
	$(VENV)/bin/python -m ctxseg_ros.demo $(if $(SOURCE),--source "$(SOURCE)") \
	  --model "$(MODEL)" $(if $(DEVICE),--device "$(DEVICE)") --out demo_out

# Three processes, for two cores: tests of ROS mostly wait. Each computes in one thread.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 3 --dist loadfile

test: lint
	$(PYTEST)

test-fast: $(TEST_READY)
	$(PYTEST) -m "not slow"

test-latest:
	rm -f .venv-latest/*.stamp
	$(MAKE) test VENV=.venv-latest LOCK=

lint: $(TEST_READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The variable: no news about other site generators in the output.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --site-dir site

# Universal: one file for every Python and platform; uv takes the newest releases that fit.
lock: $(TEST_READY)
	$(VENV)/bin/uv pip compile --universal --python-version 3.10 --upgrade --all-extras --no-annotate --quiet \
	  --custom-compile-command "make lock" setup.py -o $(LOCK)

bench: $(DEMO_READY)
	mkdir -p benchmarks/results
	$(VENV)/bin/ctxseg bench --json benchmarks/results/bench.json

soak: $(DEMO_READY)
	mkdir -p benchmarks/results
	$(VENV)/bin/python benchmarks/soak.py --minutes $(MINUTES)

clean:
	rm -rf .venv .venv-latest build install log site demo_out *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(DEMO_READY): setup.py $(LOCK)
	$(call install,$(DEMO_EXTRAS))

$(TEST_READY): setup.py $(LOCK)
	$(call install,$(TEST_EXTRAS))

$(DOCS_READY): setup.py $(LOCK)
	$(call install,docs)
