#!/usr/bin/env bash
# One seed of docs/results.md: both stages, every evaluation and every control.
#   scripts/seed.sh SEED [OUT]
# OUT (default: lightning_logs/seed_SEED) must not hold runs of these names: nothing is overwritten.
# LIGHTNING names the command (default: .venv/bin/lightning); ABLATION=0 leaves the last stage 2 out.
set -euo pipefail
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  exit
fi
seed=$1
out=${2:-lightning_logs/seed_$seed}
lightning=${LIGHTNING:-.venv/bin/lightning}

run() { # run SUBCOMMAND CONFIG NAME [ARGUMENT ...]
  local sub=$1 config=$2 name=$3
  shift 3
  "$lightning" "$sub" --config "configs/$config.yaml" --seed_everything "$seed" \
    --trainer.logger TensorBoardLogger --trainer.logger.save_dir . --trainer.logger.name "$out" \
    --trainer.logger.version "$name" --model.init_args.checkpoint_root "$out" "$@"
}

run fit stage1 stage1
run fit stage2 stage2
run test eval_mmdialog eval_mmdialog
# Stage 1 under the forced layout, which it needs: it never learned the two tokens.
run test eval_mmdialog eval_mmdialog_stage1 --model AlignModule
# What the context picture is worth.
run test eval_context eval_context
run test eval_context eval_context_blank --model.init_args.evaluation.context blank
run test eval_cc3m eval_cc3m
# The image decoder alone, from its own text encoders; and the adapter before any training.
run test eval_cc3m eval_cc3m_decoder --model.init_args.evaluation.conditioner text_encoder
run test eval_cc3m eval_cc3m_untrained --model.init_args.evaluation.weights none
run test eval_coco eval_coco
# The same stage 2 without gate and image branch; skipped with ABLATION=0.
if [ "${ABLATION:-1}" = 1 ]; then
  run fit stage2 stage2_gate_off --model.init_args.m3adapter.gate.mode off --model.init_args.checkpoint_root "$out/stage1"
  run test eval_context eval_context_gate_off --model.init_args.m3adapter.gate.mode off \
    --model.init_args.checkpoint_root "$out/stage2_gate_off"
fi
