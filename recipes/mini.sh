#!/usr/bin/env bash
# Trains `mini` again from nothing: tokenizer, codecs, recogniser, then the one transformer.
# Needs: pip install -e ".[train]" and the Debian package fonts-noto-color-emoji.
# Every line may be interrupted and run again; each goes on from where it stopped.
# HOURS scales the whole recipe (10 CPU hours by default).
set -euo pipefail
cd "$(dirname "$0")/.."
HOURS=${HOURS:-10}
PYTHON=${PYTHON:-.venv/bin/python}
minutes() { awk "BEGIN { printf \"%d\", $HOURS * 6 * $1 }"; } # tenths of the budget -> minutes

$PYTHON -m everyway.train.codecs tokenizer --out runs/codecs
$PYTHON -m everyway.train.codecs vae --out runs/codecs --minutes "$(minutes 1)"
$PYTHON -m everyway.train.codecs clip --out runs/codecs --minutes "$(minutes 0.7)"
$PYTHON -m everyway.train.codecs text --out runs/codecs --minutes "$(minutes 0.5)"
$PYTHON -m everyway.train.recogniser --out runs/recogniser --minutes "$(minutes 0.3)"
.venv/bin/everyway train mini --out runs/mini --budget "$(minutes 7)m"
.venv/bin/everyway evaluate runs/mini/model --suite scenes --json
