#!/usr/bin/env bash
# Trains `mini-vq` again from nothing: image tokens that are fitted in half a minute, then one
# transformer, which is given the text as `mini` reads it.
# Needs: pip install -e ".[train]"; no font, no GPU.
# Interrupt it anywhere and run it again: every part goes on from where it stopped.
#
#   MINUTES=22    of the transformer's training
#   RUNS=runs     folder of everything it writes
#   PYTHON=.venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
MINUTES=${MINUTES:-22}
RUNS=${RUNS:-runs}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 # small matrices: a second thread costs more than it brings

[ -f "$RUNS/codecs/image_vq.facts.json" ] || "$PYTHON" -m everyway.train.fitted --out "$RUNS/codecs"
"$PYTHON" -m everyway.apps.cli train mini-vq --out "$RUNS/mini-vq" --budget "${MINUTES}m" \
  --set "tokens=$RUNS/codecs" --set weights=fp16
"$PYTHON" -m everyway.apps.cli evaluate "$RUNS/mini-vq/model" --suite scenes -n 300 --json

cat <<END

To ship this model:  cp $RUNS/mini-vq/model/* src/everyway/shipped/mini-vq/
END
