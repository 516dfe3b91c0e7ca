#!/usr/bin/env bash
# Makes every file of this folder, with the code of commit 1fe35e7 and no other: README.md says what each is for.
#   PATH=.venv/bin:$PATH tests/compat/1fe35e7/make.sh     at the root of that commit's checkout, data/micro/shards made
set -euo pipefail
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
root=$PWD here=tests/compat/1fe35e7
work=$(mktemp -d)
for name in configs data docs tests; do ln -s "$root/$name" "$work/$name"; done
cd "$work"

# Raw data for the converters, and an adapter and a CLIP of few numbers, cut out of the shipped ones.
python "$here/raw.py" "$here"
m2chat weights convert "$here/backbone/BIAS-small.pth" "$here/backbone/BIAS-small.safetensors" --channel-order rgb

# Shards: in our schema with index.json, and as img2dataset leaves them.
for name in cc3m/train mmdialog/train edit/train mmdialog/test; do
  m2chat data subset "data/micro/shards/$name" "$here/shards/${name/\//-}" --count 6
done

# Converters.
convert() { m2chat data convert "$1" "$2" "$here/converted/$1" --workers 1 "${@:3}"; }
for kind in folder coco-captions mmdialog vist instructpix2pix magicbrush; do
  case $kind in mmdialog) more=(--text-as-caption) ;; *) more=() ;; esac
  convert "$kind" "$here/raw/$kind" "${more[@]}"
done
convert llava "$here/raw/llava.json" --images "$here/raw/folder"
convert alpaca "$here/raw/alpaca.json"
m2chat data caption "$here/converted/magicbrush" "$here/captioned"

# Caches: the index of a shard, the prints of its samples, the moments of FID.
mkdir -p "$here/caches"
cp "$here/shards/mmdialog-test/mmdialog-test-000000.tar" "$here/caches/talk.tar"
touch -d @1700000000 "$here/caches/talk.tar"
m2chat data stats "$here/caches/talk.tar" > /dev/null
m2chat data subset "$here/shards/mmdialog-train" "$work/without" --without "$here/caches/talk.tar"
m2chat eval moments "$here/raw/folder" "$here/caches/moments.npz"

# Runs of every module, each with a connector as small as it can be.
fit() { # fit STAGE NAME [ARGUMENT ...]
  lightning fit --config "configs/stage$1.yaml" "${@:3}" --trainer.logger CSVLogger --trainer.logger.save_dir . \
    --trainer.logger.name runs --trainer.logger.version "$2" --trainer.enable_progress_bar false \
    --data.batch_size 2 --data.samples_per_epoch 8 --trainer.max_epochs 1 --trainer.log_every_n_steps 1 \
    --trainer.limit_val_batches 0 --seed_everything 7
}
small=(--model.init_args.m3adapter.width 8 --model.init_args.m3adapter.heads 2 --model.init_args.m3adapter.blocks 1
  --model.init_args.backbone.adapter "$here/backbone/BIAS-small.pth"
  --model.init_args.backbone.vision_encoder "$here/backbone/clip")
talks="[{name: talk, path: $here/shards/mmdialog-train, weight: 0.625}, {name: edit, path: $here/shards/edit-train}]"
pairs="[{name: pairs, path: $here/shards/cc3m-train}]"
keep=(--trainer.callbacks "[{class_path: ModelCheckpoint, init_args: {save_on_train_epoch_end: true, filename: last}}]")
alone=(--trainer.callbacks "[{class_path: ModelCheckpoint, init_args: {save_on_train_epoch_end: true, filename: last,
  save_weights_only: true}}]")
fit 1 align "${small[@]}" "${alone[@]}" --data.train "$pairs" --trainer.max_steps 2
fit 2 m3ft "${small[@]}" "${keep[@]}" --data.train "$talks" --trainer.max_steps 2 \
  --model.init_args.init_from runs/align/checkpoints/last.ckpt
fit 1 fsdp "${small[@]}" "${keep[@]}" --data.train "$pairs" --trainer.max_steps 2 --trainer.devices 2 \
  --trainer.strategy M2ChatFSDPStrategy --trainer.strategy.save_distributed_checkpoint true
fit 2 vlm_sd --config configs/rows/vlm_sd.yaml --trainer.enable_checkpointing false --trainer.callbacks '[]' \
  --data.train "$talks" --trainer.max_steps 1
mkdir -p "$here/checkpoints" "$here/configs"
cp runs/align/checkpoints/last.ckpt "$here/checkpoints/align.ckpt"
cp runs/m3ft/checkpoints/last.ckpt "$here/checkpoints/m3ft.ckpt"
cp -r runs/fsdp/checkpoints/last.ckpt "$here/checkpoints/align-fsdp.ckpt"
m2chat release-weights m3ft runs/m3ft/checkpoints/last.ckpt released.ckpt
m2chat weights convert released.ckpt "$here/exported"
for name in align m3ft fsdp vlm_sd; do cp "runs/$name/config.yaml" "$here/configs/fit-$name.yaml"; done

# Evaluations, complete and interrupted.
evaluate() { # evaluate NAME [ARGUMENT ...]
  lightning test "${@:2}" --trainer.enable_progress_bar false --data.test_samples 3 \
    --model.init_args.evaluation.steps 2 --trainer.logger CSVLogger --trainer.logger.save_dir . \
    --trainer.logger.name runs --trainer.logger.version "$1"
}
evaluate test --config configs/eval_mmdialog.yaml
evaluate blank --config configs/eval_mmdialog.yaml --model.init_args.evaluation.context blank
evaluate context --config configs/eval_context.yaml
evaluate sd15 --config configs/eval_coco.yaml --config configs/rows/sd15.yaml
evaluate sdxl --config configs/eval_coco.yaml --config configs/rows/sdxl.yaml
for name in test context sd15 sdxl; do cp "runs/$name/config.yaml" "$here/configs/test-$name.yaml"; done
mkdir -p "$here/evaluations"
for name in test blank; do
  mkdir "$here/evaluations/$name"
  cp -r runs/$name/{results.json,predictions.jsonl,images} "$here/evaluations/$name"
done
# What a killed run leaves: the journal of a rank, without results.json. The last line was cut off.
python - "$here/evaluations" <<'PYTHON'
import json, shutil, sys
from pathlib import Path

test, part = Path(sys.argv[1], "test"), Path(sys.argv[1], "interrupted")
shutil.copytree(test / "images", part / "images")
head = json.loads((test / "results.json").read_text())["protocol"]["generation"]
rows = [json.loads(line) for line in (test / "predictions.jsonl").read_text().splitlines()]
lines = [json.dumps({"generation": head})]
lines += [json.dumps({k: v for k, v in row.items() if k not in ("number", "scores")}) for row in rows]
(part / "predictions.0.part.jsonl").write_text("\n".join(lines)[:-40])
PYTHON

# Conversations.
python "$here/talks.py" "$here/sessions"
printf '%s\n' 'hello' '!draw force' "$(sed -n 1p "$here/raw/folder/prompt.txt")" "!save $here/sessions/terminal" '!exit' |
  m2chat chat --seed 3 --steps 2 --out "$work/pictures"

# What is looked at, and read by no command.
m2chat measure --count 5 --wishes 1 --steps 2 --out "$here/measure.json"
m2chat lens "turn it into a ball" --picture "$here/shown.png" --steps 2 --out "$work/lens" | sed -n 1p > "$here/lens.txt"

# Reading shards makes caches beside them; only those of caches/ are kept.
find "$here"/{shards,converted,captioned} -name '*.idx.json' -delete -o -name '*.prints.npz' -delete
