#!/usr/bin/env bash
# Trains `mini-versatile` again: four flows on one network of 4M parameters, on the codecs of `mini`.
# Needs: pip install -e ".[train]"; no font, no GPU.
# Interrupt it anywhere and run it again: every part goes on from where it stopped.
#
#   HOURS=1.2     of both stages together; a core sees 200 to 400 samples a second
#   PROCESSES=1   of the training: one a core (a divisor of 128)
#   PLAN=0        1 adds the published plan before them: variations of pictures, then texts to
#                 pictures too, a quarter of the hours each
#   CACHE=40000   scenes that a part learns from
#   SCENES=300    of each row of the scores
#   RUNS=runs     folder of everything it writes
#   PYTHON=.venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
HOURS=${HOURS:-1.2}
PROCESSES=${PROCESSES:-1}
PLAN=${PLAN:-0}
CACHE=${CACHE:-40000}
SCENES=${SCENES:-300}
RUNS=${RUNS:-runs}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 # small matrices: a second thread costs more than it brings

launch=("$PYTHON")
if [ "$PROCESSES" -gt 1 ]; then
  launch=("$PYTHON" -m torch.distributed.run --nproc-per-node "$PROCESSES")
fi
train() { # NAME PER-CENT SETTING...
  local name=$1 minutes told=(--set "cache=$CACHE")
  minutes=$(LC_ALL=C awk "BEGIN { printf \"%.2f\", $HOURS * 0.6 * $2 }")
  shift 2
  for setting in "$@"; do told+=(--set "$setting"); done
  "${launch[@]}" -m everyway.apps.cli train mini-versatile --out "$RUNS/$name" --budget "${minutes}m" "${told[@]}"
}

first=()
if [ "$PLAN" = 1 ]; then
  train mini-versatile-variation 25 seed=3 stage=variation cooldown=0
  train mini-versatile-pictures 25 seed=4 stage=pictures cooldown=0 "init=$RUNS/mini-versatile-variation/model"
  first=("init=$RUNS/mini-versatile-pictures/model")
fi
# All flows; then mostly variations of pictures, which learn last: where things go in them nothing
# tells, and the noise has to decide it.
train mini-versatile-1 42 cooldown=0 ${first[@]+"${first[@]}"}
train mini-versatile 58 "init=$RUNS/mini-versatile-1/model" seed=1 lr=4e-3 cooldown=0.5 \
  text_to_image=0.9 image_to_text=0.6 image_variation=2 text_variation=0.2
"$PYTHON" -m everyway.apps.cli evaluate "$RUNS/mini-versatile/model" -n "$SCENES" --json

cat <<END

To ship this model:
  rm src/everyway/shipped/mini-versatile/*
  cp $RUNS/mini-versatile/model/* src/everyway/shipped/mini-versatile/
END
