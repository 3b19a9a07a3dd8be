# make demo | test | lint | bench. Each builds .venv first; no activation is needed.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
export OMP_NUM_THREADS ?= 2

.PHONY: demo test lint bench font browser slow
demo: $(VENV)/.base
	$(BIN)/everyway demo

test: $(VENV)/.dev font browser
	$(BIN)/python -m pytest

slow: $(VENV)/.dev font browser
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/speed.py

font:  # the emoji scene tests read the artwork from this Debian package
	@fc-list 2>/dev/null | grep -qi notocoloremoji || ls /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf >/dev/null 2>&1 \
	 || (apt-get update -qq && apt-get install -y -qq fonts-noto-color-emoji >/dev/null) \
	 || echo "The emoji font is missing: apt-get install fonts-noto-color-emoji"

browser:  # the studio's tests look at it in Chromium, and are skipped without one
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	 || (apt-get update -qq && apt-get install -y -qq chromium >/dev/null) \
	 || echo "Chromium is missing, so that the studio's pages are not tested: apt-get install chromium"

$(VENV)/.torch:
	$(PY) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q $(TORCH)
	@touch $@

$(VENV)/.base: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@
