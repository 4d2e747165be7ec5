#!/usr/bin/env bash
# The README's commands as a container runs them: a uid that no passwd entry has, no HOME, umask 077, LANG=C, and a
# checkout that belongs to root and cannot be written; then with a broken environment, and in copies of the
# checkout. Each must work, or end in one line that names the mend; none may write into the checkout.
#
#   sudo scripts/container_trial.sh [WORDS]   all trials, or those whose name matches the regular expression WORDS
#
# PYTHON= another Python than the checkout's .venv has, GLUE= a folder of GLUE's TSV files, SHOW= lines of each output.
# Root only: it hides root's home behind mounts of its own (nobody else sees them), and clears up after itself.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "error: only root can become another user; run it with sudo." >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" != --inside ]; then exec unshare --mount --propagation private "$0" --inside "${1:-}"; fi
words=${2:-}
python=${PYTHON:-$here/.venv/bin/python}
home=$(mktemp -d /tmp/container-trial-XXXXXX)
trap 'umount -q "$home/root" 2>/dev/null || true; rm -rf --one-file-system "$home"' EXIT
uid=54321 seconds=${SECONDS_EACH:-150} failed=0

# Where the user may go: what Python needs of a home folder that is closed, and nothing else of it.
closed=$(getent passwd 0 | cut -d: -f6)
needed=$("$python" -c 'import sys; print(sys.prefix, sys.base_prefix, sep="\n")')
mkdir "$home/root"
chmod 755 "$home"
mount --bind "$closed" "$home/root"
cp -r "$closed/.cache/fff" "$home/compiled" 2>/dev/null || true  # what root has compiled already
mount -t tmpfs -o mode=755 none "$closed"
for path in $needed; do
  case $path in "$closed"/*) mkdir -p "$path"; mount --bind "$home/root/${path#"$closed"/}" "$path" ;; esac
done

checkout=$home/checkout out=$home/out
git clone -q "file://$here" "$checkout"   # with file://, so that it shares nothing
chmod -R a-w,a+rX "$checkout"
listing() { find "$checkout" -printf '%P %s %T@\n' | sort | sha256sum; }
before=$(listing)
commit=$(git -C "$checkout" rev-parse HEAD)
install -d -o "$uid" -g "$uid" "$out" "$home/cache"
install -d -m 000 "$home/closed"
cp "$home"/compiled/cpu-*.{so,sha256} "$home/cache" 2>/dev/null || true
chown -R "$uid:$uid" "$home/cache"
install -d "$home/nothing"
ln -s /usr/bin/{env,sh,timeout} "$home/nothing"

as_user() {  # [VARIABLE=VALUE ...] command: a stranger's shell in the container
  setpriv --reuid="$uid" --regid="$uid" --clear-groups env -i PATH=/usr/bin:/bin LANG=C OMP_NUM_THREADS=1 \
    PYTHONPATH="$checkout" PYTHONDONTWRITEBYTECODE=1 FFF_CACHE="$home/cache" "$@"
}

trial() {  # name, expected ("works", or words of the one line that ends it), then as as_user
  local name=$1 expected=$2 log=$home/log status=0 found
  shift 2
  [[ $name =~ $words ]] || return 0
  (cd "${in:-$checkout}" && umask 077 && as_user timeout -k 5 "$seconds" env "$@") >"$log" 2>&1 </dev/null || status=$?
  sed -i 's/\r */\n/g' "$log"  # a bar is drawn over itself
  if grep -q Traceback "$log"; then found="traceback: $(tail -1 "$log")"
  elif [ "$status" = 0 ]; then found=works
  elif [ "$status" = 2 ] && [ "$(grep -c '^error: ' "$log")" = 1 ]; then found=$(grep '^error: ' "$log")
  else found="status $status: $(tail -1 "$log")"; fi
  [ "$(listing)" = "$before" ] || found="wrote into the checkout ($found)"
  verdict "$name" "$expected" "$found"
  if [ -n "${SHOW:-}" ]; then sed 's/^/    | /' "$log" | tail -n "$SHOW"; fi
}

said() {  # name, words that the last trial's output must have
  [[ $1 =~ $words ]] || return 0
  verdict "$1: says so" "$2" "error: $(grep -m 1 -e "$2" "$home/log" || true)"
}

commits() {  # name, the one commit that all records under $out/<folder>/runs must have ("null": none)
  local found
  [[ $1 =~ $words ]] || return 0
  found=$("$python" -c 'import glob, json, sys
print(*{json.load(open(file))["git"]["commit"] or "null" for file in glob.glob(sys.argv[1] + "/runs/*.json")})' "$out/$2")
  verdict "$1" "$3" "error: $found"
}

verdict() {  # name, expected, found
  local good=ok
  if [ "$2" = works ]; then [ "$3" = works ] || good=BROKEN
  else [[ $3 == "error: "*$2* ]] || good=BROKEN; fi
  [ $good = ok ] || failed=1
  printf '%-6s  %-34s  %.400s\n' "$good" "$1" "$3"
}

"$python" -c 'import pydoc_data.topics as t
print("\n\n".join("\n".join(filter(str.strip, topic.splitlines())) for topic in t.topics.values()))' > "$home/text.txt"
chmod 644 "$home/text.txt"
small=(model.hidden_size=32 model.layers=2 model.heads=2 train.budget_tokens=20000 train.batch=8 train.microbatch=8
  train.validations=1 train.checkpoints=1 train.valid_sequences=16 ffn.trees=1 ffn.depth=3)
text=(data=text "data.files=[$home/text.txt]" data.vocab_size=2048 data.valid_share=0.3 data.workers=1 "${small[@]}")
there=(output_dir="$out/outputs" results_dir="$out/results")
run=("$python" scripts/pretrain.py "${text[@]}" "${there[@]}")
glue=("$python" scripts/glue.py "${text[@]}" glue.epochs=1 glue.seeds=[0] glue.mini_train=24 glue.mini_dev=6 glue.tasks=[word_order])
images=("$python" scripts/images.py images.epochs=1 images.widths=[16] images.leaf_widths=[8] images.seeds=[0])
bench=("$python" scripts/bench.py --shapes 1x2 --tokens 8 --seconds 0.01 --batches "" --memory 0)
regions=("$python" scripts/regions.py "$out/model" "$home/text.txt" --tokens 512)
sweep=("$python" scripts/sweep.py --jobs 2 +sweep=family "${text[@]}" ffn.trees=null ffn.depth=1,2 ffn.neurons=15)
layer='import torch; from fff import LeafFFF, PathFFF
for layer in (PathFFF(16, 16, depth=3), LeafFFF(16, 16, depth=3, leaf_width=2)): layer(torch.randn(4, 16)).sum().backward()'

# The README's commands
trial "layer" works "$python" -c "$layer"
trial "layer, cache of the temporary folder" works -u FFF_CACHE TMPDIR="$home/cache" "$python" -c "$layer"
trial "prepare" works "$python" scripts/prepare.py "${text[@]}" "${there[@]}"
trial "pretrain" works "${run[@]}"
trial "pretrain again" works "${run[@]}"
trial "pretrain an order" works bash -c "$python scripts/pretrain_plain.py $out/outputs/orders/*.json"
trial "docs" works "$python" scripts/pretrain.py data=docs data.vocab_size=2048 "${small[@]}" "${there[@]}"
trial "glue" works "${glue[@]}" "${there[@]}"
commits "glue's record" results "$commit"
[ -z "${GLUE:-}" ] || trial "glue=local" works "${glue[@]}" "${there[@]}" glue=local glue.dir="$GLUE" glue.limit_train=32 \
  glue.tasks=[rte]
trial "images" works "${images[@]}" results_dir="$out/results"
ln -sfn "$(compgen -G "$out/outputs/runs/quickstart-*/model" | head -n 1)" "$out/model"
trial "regions" works "${regions[@]}" --out "$out/page.html"
trial "sweep" works "${sweep[@]}" "${there[@]}"
trial "tables" works "$python" scripts/tables.py results_dir="$out/results"
trial "bench" works "${bench[@]}" --out "$out/bench.json"

# What cannot be written is said before the work
trial "prepare into the checkout" output_dir "$python" scripts/prepare.py "${text[@]}"
trial "pretrain into the checkout" results_dir "$python" scripts/pretrain.py "${text[@]}"
trial "outputs in the checkout" output_dir "$python" scripts/pretrain.py "${text[@]}" results_dir="$out/new"
trial "results in the checkout" results_dir "$python" scripts/pretrain.py "${text[@]}" output_dir="$out/new"
trial "glue into the checkout" results_dir "${glue[@]}" "${there[0]}" checkpoint="$out/model"
trial "images into the checkout" results_dir "${images[@]}"
trial "sweep into the checkout" outputs "${sweep[@]}"
trial "tables into the checkout" results/tables "$python" scripts/tables.py
trial "bench into the checkout" --out "${bench[@]}"
trial "regions into the checkout" --out "${regions[@]}"

# The environment is broken
once=("$python" scripts/pretrain.py "${text[@]}" train.budget_tokens=2048 wandb=off)
new() { echo "output_dir=$out/$1" "results_dir=$out/$1/results"; }  # a run that nobody has begun
broken=(HF_HOME="$home/closed" TMPDIR="$home/missing" XDG_CACHE_HOME="$home/closed" PYTHONIOENCODING=latin-1
  LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 OMP_NUM_THREADS=many CUDA_VISIBLE_DEVICES= PATH="$home/nothing" FFF_CACHE="$out/empty")
# shellcheck disable=SC2046 # each word of `new` is an override
{
trial "broken: pretrain" works "${broken[@]}" "${once[@]}" $(new broken)
said "broken: pretrain" "no C++ compiler"
commits "broken: pretrain, without git" broken/results null
trial "broken: glue" works "${broken[@]}" "${glue[@]}" train.budget_tokens=2048 $(new broken)
trial "broken: tables" works "${broken[@]}" "$python" scripts/tables.py results_dir="$out/broken/results"
trial "broken: closed FFF_CACHE" works FFF_CACHE="$home/closed" "$python" -c "$layer"
said "broken: closed FFF_CACHE" FFF_CACHE
trial "WANDB_MODE=disabled" works WANDB_MODE=disabled "${once[@]}" wandb=auto $(new disabled)
trial "WANDB_MODE=ofline" WANDB_MODE WANDB_MODE=ofline "${once[@]}" wandb=auto $(new ofline)
trial "nothing in PATH: train.compile" train.compile PATH="$home/nothing" "${once[@]}" $(new compiled) train.compile=true
trial "~ of nobody" "nobody's home" "${once[@]}" "output_dir='~/r'"
trial "~ of HOME" works HOME="$out/home" "${once[@]}" "output_dir='~/r'" "results_dir=~/results"
[ ! -d "$out/home" ] || verdict "~ of HOME" works "$(ls -d "$out"/home/{r,results}/runs >/dev/null && echo works || echo "elsewhere")"
trial "stdout closed" works bash -c '"$@" >&-' - "${once[@]}" $(new stdout)
trial "stderr closed" works bash -c '"$@" 2>&-' - "${once[@]}" $(new stderr)
trial "a pipe that ends" works bash -c '"$@" | head -n 1' - "${once[@]}" $(new pipe)
}

# Copies of the checkout run their own code and name their own commit
copy() {  # name, expected commit ("null": none), folder: its own results
  in=$3 trial "$1" works PYTHONPATH="$3" "${once[@]}" output_dir="$out/runs-$1" results_dir="$out/$1-results"
  said "$1" "run (of $1)"
  commits "$1, the commit" "$1-results" "$2"
}
edit() { sed -i "s/\"run        /\"run (of $1) /" "$2/cramming/train/run.py"; }
for name in copy moved; do
  git clone -q "file://$here" "$out/$name"
  edit $name "$out/$name"
  git -C "$out/$name" -c user.name=a -c user.email=b commit -qam "an edit of its own"
done
chown -R "$uid:$uid" "$out/copy"
copy copy "$(git -C "$out/copy" -c safe.directory="$out/copy" rev-parse HEAD)" "$out/copy"
copy moved "$(git -C "$out/moved" rev-parse HEAD)" "$out/moved"  # which belongs to root, as a container's does
mkdir "$out/moved/unpacked"
git -C "$here" archive HEAD | tar -x -C "$out/moved/unpacked"
edit unpacked "$out/moved/unpacked"
copy unpacked null "$out/moved/unpacked"
exit $failed
