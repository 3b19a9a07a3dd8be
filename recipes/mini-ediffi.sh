#!/usr/bin/env bash
# Trains `mini-ediffi` from nothing: a base of 48x48 pixels, two experts of its noise, and a network
# that enlarges to 128x128; it reads by the codecs of the shipped `mini`.  How the shipped weights began is in docs/LOG.md.
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

# First every text is given: a text that is dropped asks for the mean of all pictures, which drowns
# what words look like. Then some are dropped, and the noise is parted between two experts.
everyway train mini-ediffi --out "$RUNS/mini-ediffi-base" --budget "$(minutes 30)" --set t5=0 --set cooldown=0
everyway train mini-ediffi --out "$RUNS/mini-ediffi-root" --budget "$(minutes 20)" \
  --set "init=$RUNS/mini-ediffi-base/model" --set seed=1 --set lr=3e-3
everyway experts split "$RUNS/mini-ediffi-root/model" --plan level-1 --out "$RUNS/mini-ediffi-experts" \
  --budget "$(minutes 20)" --set lr=2e-3 --set steps=200000
everyway train mini-ediffi-sr --out "$RUNS/mini-ediffi-sr" --budget "$(minutes 30)"
everyway cascade "$RUNS/mini-ediffi-experts/model" "$RUNS/mini-ediffi-sr" --weights int8 --out "$RUNS/mini-ediffi"
everyway evaluate "$RUNS/mini-ediffi" --suite scenes -n 300 --record
"$PYTHON" experiments/ediffi_experts.py "$RUNS/mini-ediffi" --also "$RUNS/mini-ediffi-root/model" -n 300
"$PYTHON" experiments/upscale.py "$RUNS/mini-ediffi" -n 300
"$PYTHON" experiments/ediffi_sheet.py "$RUNS/mini-ediffi" --out "$RUNS/mini-ediffi-sheet.png"

cat <<END

To ship this model:  cp $RUNS/mini-ediffi/* src/everyway/shipped/mini-ediffi/
END
