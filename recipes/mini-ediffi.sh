#!/usr/bin/env bash
# Trains `mini-ediffi` from nothing: a base of 48x48 pixels and a network that enlarges to 128x128;
# it reads by the codecs of the shipped `mini`.  How the shipped weights began is in docs/LOG.md.
# Needs: pip install -e ".[train]"; no font, no GPU.
# Interrupt it anywhere and run it again: every part goes on from where it stopped.
#
#   HOURS=1.5     of all parts together, on a core with fast bf16
#   RUNS=runs     folder of everything it writes
#   PYTHON=.venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
HOURS=${HOURS:-1.5}
RUNS=${RUNS:-runs}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 # small matrices: a second thread costs more than it brings

everyway() { "$PYTHON" -m everyway.apps.cli "$@"; }
minutes() { LC_ALL=C awk "BEGIN { printf \"%.2fm\", $HOURS * 0.6 * $1 }"; } # PER-CENT of HOURS

everyway train mini-ediffi --out "$RUNS/mini-ediffi-base" --budget "$(minutes 60)"
everyway train mini-ediffi-sr --out "$RUNS/mini-ediffi-sr" --budget "$(minutes 40)"
everyway cascade "$RUNS/mini-ediffi-base" "$RUNS/mini-ediffi-sr" --weights fp16 --out "$RUNS/mini-ediffi"
everyway evaluate "$RUNS/mini-ediffi" --suite scenes -n 300 --json
"$PYTHON" experiments/upscale.py "$RUNS/mini-ediffi" -n 300

cat <<END

To ship this model:  cp $RUNS/mini-ediffi/* src/everyway/shipped/mini-ediffi/
END
