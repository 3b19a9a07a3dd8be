#!/usr/bin/env bash
# Trains `mini` again from nothing: tokenizer, codecs, recogniser, then the one transformer.
# Needs: pip install -e ".[train]" and the Debian package fonts-noto-color-emoji.
# Interrupt it anywhere and run it again: every part goes on from where it stopped, a part that has
# had its time only writes its files again, and a minute or two of work is lost at most.
#
#   HOURS=10      of the whole recipe; every part has its share
#   PROCESSES=2   of the transformer's training: one a core (a divisor of 32), 1 on a GPU
#   RUNS=runs     folder of everything it writes
#   PYTHON=.venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
HOURS=${HOURS:-10}
PROCESSES=${PROCESSES:-$(($(getconf _NPROCESSORS_ONLN) > 1 ? 2 : 1))}
RUNS=${RUNS:-runs}
PYTHON=${PYTHON:-.venv/bin/python}

minutes() { LC_ALL=C awk "BEGIN { printf \"%.2f\", $HOURS * 0.6 * $1 }"; } # per cent of HOURS
codec() { "$PYTHON" -m everyway.train.codecs "$@" --out "$RUNS/codecs"; }

# A decoder is trained on alone behind its latent, which stays: the transformer depends on the
# latent only.  Text comes after image, whose latents say what words look like.
[ -f "$RUNS/codecs/tokenizer.json" ] || codec tokenizer
codec image --minutes "$(minutes 10)"
codec image --decoder --minutes "$(minutes 5)"
codec image_embed --minutes "$(minutes 6)"
codec text --minutes "$(minutes 4)"
codec text --decoder --minutes "$(minutes 2)"
"$PYTHON" -m everyway.train.recogniser --out "$RUNS/recogniser" --minutes "$(minutes 5)"

# Two processes of one thread beat one process of two threads, and small batches are many steps.
launch=("$PYTHON")
if [ "$PROCESSES" -gt 1 ]; then
  launch=(env OMP_NUM_THREADS=1 "$PYTHON" -m torch.distributed.run --nproc-per-node "$PROCESSES")
fi
train() { # NAME DATA PER-CENT SETTING...
  local name=$1 data=$2 share=$3 told=()
  shift 3
  for setting in "data=$data" batch=32 "$@"; do told+=(--set "$setting"); done
  "${launch[@]}" -m everyway.apps.cli train mini --out "$RUNS/$name" --budget "$(minutes "$share")m" \
    "${told[@]}"
}

# What each object looks like, at high noise, where that is decided; one object anywhere; everything,
# slowly, since what is known of shapes is lost faster than it came (docs/LOG.md).
train mini-1 emoji-portraits 6 "codecs=$RUNS/codecs" shift=16 cooldown=0 ema=0.998
train mini-2 emoji-singles 40 "init=$RUNS/mini-1/model" seed=1 shift=8 lr=4e-3
train mini-3 emoji 20 "init=$RUNS/mini-2/model" seed=2 lr=2e-3 shift=8 cooldown=0.97
# Their mean knows what both know (docs/LOG.md).
"$PYTHON" -m everyway.train.average "$RUNS/mini-2/model" "$RUNS/mini-3/model" --share 0.75 \
  --out "$RUNS/mini/model"
"$PYTHON" -m everyway.apps.cli evaluate "$RUNS/mini/model" --suite scenes --json

cat <<END

To ship this model, put it into the package, and its recogniser with it:
  rm -rf src/everyway/shipped/mini && cp -r $RUNS/mini/model src/everyway/shipped/mini
  cp $RUNS/recogniser/recogniser.{json,safetensors} src/everyway/shipped/recogniser/
To go on from a shipped model, with fresh samples:
  everyway train mini --set init=mini --set seed=1 --out $RUNS/mini-2
END
