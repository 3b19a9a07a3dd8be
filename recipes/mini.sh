#!/usr/bin/env bash
# Trains `mini` again from nothing: codecs that are fitted in half a minute, then one transformer.
# Needs: pip install -e ".[train]"; no font, no GPU.
# Interrupt it anywhere and run it again: every part goes on from where it stopped.
#
#   HOURS=1.8     of the three stages together; a core with fast bf16 sees 400 samples a second
#   PROCESSES=1   of the transformer's training: one a core (a divisor of 64)
#   RUNS=runs     folder of everything it writes
#   PYTHON=.venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
HOURS=${HOURS:-1.8}
PROCESSES=${PROCESSES:-1}
RUNS=${RUNS:-runs}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 # small matrices: a second thread costs more than it brings

[ -f "$RUNS/codecs/text.json" ] || "$PYTHON" -m everyway.train.fitted --out "$RUNS/codecs"

launch=("$PYTHON")
if [ "$PROCESSES" -gt 1 ]; then
  launch=("$PYTHON" -m torch.distributed.run --nproc-per-node "$PROCESSES")
fi
train() { # NAME PER-CENT SETTING...
  local name=$1 minutes told=()
  minutes=$(LC_ALL=C awk "BEGIN { printf \"%.2f\", $HOURS * 0.6 * $2 }")
  shift 2
  for setting in "$@"; do told+=(--set "$setting"); done
  "${launch[@]}" -m everyway.apps.cli train mini --out "$RUNS/$name" --budget "${minutes}m" "${told[@]}"
}

# Captions that state everything; then captions too that leave things unsaid, as conditions, and more
# of pairs and marginals, which are the same questions with more left open; then more of these.
train mini-1 23 "codecs=$RUNS/codecs" data=lattice-whole cooldown=0
train mini-2 52 "init=$RUNS/mini-1/model" seed=1 lr=4e-3 to_image=0.2 to_text=0.16 joint=0.34 cooldown=0.4
train mini 25 "init=$RUNS/mini-2/model" seed=2 lr=3e-3 to_image=0.22 to_text=0.12 joint=0.3 cooldown=0.5
"$PYTHON" -m everyway.apps.cli evaluate "$RUNS/mini/model" --suite scenes -n 300 --json

cat <<END

To ship this model:  cp $RUNS/mini/model/* src/everyway/shipped/mini/
To go on from a shipped one, with fresh samples:
  everyway train mini --set init=mini --set seed=2 --out $RUNS/mini-2
END
