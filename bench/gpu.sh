#!/usr/bin/env bash
# Everything that wants a GPU, in one go and in under nine minutes: do all families say on it what they say on a CPU, do
# both engines draw the same tokens, how fast is upstream and how fast are we, what do listeners get, and with two GPUs,
# what is a split worth. On random weights of the published size, which are made on the spot; nothing is fetched but
# packages.
#
#   bench/gpu.sh OUT              from a checkout on a machine with a GPU; OUT gets a summary and a JSON a measurement
#   bench/gpu.sh --dry-run OUT    the same steps on a CPU, tiny and short: does all of it run?
#
# It needs a CUDA image with torch 2.6 or newer and Python 3.11 or 3.12. What is missing beside that torch goes into an
# environment of its own, which is removed at the end; the image's packages stay as they are.
#   PYTHON=python3.12        another Python than python3; its torch is used
#   BENCH_PYTHON=.../python  an environment that has everything: nothing is installed
#   WHEELS=folder            install from wheels that were brought, without a network. They are brought so, on a machine
#                            with the same Python and a network:  bench/gpu.sh --wheels folder
set -euo pipefail

# The whole must be over before a lent machine is: nine minutes, less some for the files.
limit_seconds=520

usage() { sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dry= wheels=
case "${1:-}" in
	--dry-run) dry=1; shift ;;
	--wheels) wheels=1; shift ;;
esac
[ $# = 1 ] && [ "${1#-}" = "$1" ] || usage
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
summary=$out/summary.txt
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore

# The hashed list of a worker's packages without torch and the CUDA libraries, which the image has.
requirements() {
	awk '/^[a-z]/ { keep = !/^(torch==|triton==|cuda-|nvidia-)/ || /^nvidia-ml-py/ } keep' requirements/chatterbox.txt
	awk '/^[a-z]/ { keep = /^psutil==/ } keep' requirements/chatterbox-test.txt
}

if [ -n "$wheels" ]; then
	# Some packages are sources: they are built here, where what builds them can be had.
	requirements >"$work/requirements.txt"
	"${PYTHON:-python3}" -m pip wheel --no-deps --require-hashes -w "$out" -r "$work/requirements.txt"
	exit
fi

install() {
	"${PYTHON:-python3}" -m venv --system-site-packages "$work/venv"
	requirements >"$work/requirements.txt"
	local from=(--require-hashes)
	if [ -n "${WHEELS:-}" ]; then
		# The hashes were checked when the wheels were brought; one that was built then has another.
		sed -i '/--hash/d; s/ *\\$//' "$work/requirements.txt"
		from=(--no-index --find-links "$WHEELS")
	fi
	"$work/venv/bin/python" -m pip -q install --no-deps "${from[@]}" -r "$work/requirements.txt"
	# Its compiled parts belong to one torch; without them it is plain Python, and works with any.
	rm -f "$work"/venv/lib/python*/site-packages/torchaudio/lib/*.so
	"$work/venv/bin/python" -m pip -q install --no-deps --no-build-isolation -e .
}

failed=0
# step NAME SECONDS COMMAND...: run it for at most so long, or as long as there is left; note how it went.
step() {
	local name=$1 most=$2 left=$((limit_seconds - SECONDS)) began=$SECONDS code=0
	shift 2
	if [ "$left" -lt 10 ]; then
		echo "== $name: left out, no time was left" | tee -a "$summary"
		failed=1
		return
	fi
	echo "== $name: $*" >>"$summary"
	if [ -n "$dry" ]; then most=$left; fi
	timeout "$((left < most ? left : most))" "$@" >>"$summary" 2>&1 || code=$?
	[ "$code" = 0 ] || failed=1
	echo "== $name: ended with $code after $((SECONDS - began)) s" | tee -a "$summary"
}

: >"$summary"
python=${BENCH_PYTHON:-}
if [ -z "$python" ]; then
	install >>"$summary" 2>&1 || { echo "gpu.sh: the packages could not be installed: see $summary" >&2; exit 1; }
	python=$work/venv/bin/python
fi
bench=("$python" -m bench)

if [ -n "$dry" ]; then
	size=tiny tokens=24 batch=1,2 turns=1 check=2 connections=1,2 each=1 requests=2 first=cpu second=cpu slots=2
	limit_seconds=3600 # a busy CPU takes its time
	export OMP_NUM_THREADS=1
else
	size=full tokens=100 batch=1,2,4,8,16,32,64 turns=3 check=10 connections=1,30,50,100 each=2 requests=64 slots=64
	first=cuda:0 second=cuda:1
	nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >>"$summary"
fi
characters=$((tokens * 6 / 10))
weights=$work/weights
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')

if "$python" -c 'import pytest, pytest_asyncio, hypothesis' 2>/dev/null; then
	step parity 120 "$python" -W ignore -m pytest -W ignore -q -s tests/chatterbox/gpu_parity.py
else
	echo "== parity: left out, there is no pytest with pytest-asyncio and hypothesis" | tee -a "$summary"
fi
step weights 120 "$python" -m worker make-tiny-checkpoint "$weights" --size "$size" --end-at "$tokens"
common=(--checkpoint "$weights" --device "$first")
step equality 150 "${bench[@]}" engine "${common[@]}" --precision fp32 --check "$check" --batch 1,2 --turns 1 \
	--tokens "$tokens" --json "$out/equality.json"
step engine 200 "${bench[@]}" engine "${common[@]}" --batch "$batch" --turns "$turns" --tokens "$tokens" \
	--json "$out/engine.json"
step connections 120 "${bench[@]}" connections --model chatterbox "${common[@]}" --slots "$slots" \
	--characters "$characters" --connections "$connections" --each "$each" --json "$out/connections.json"
if ! "$python" -m worker --help | grep -q -e '--split'; then
	echo "== split: left out, this tts-worker has no --split" | tee -a "$summary"
elif [ -z "$dry" ] && [ "$gpus" -lt 2 ]; then
	echo "== split: left out, there is one GPU" | tee -a "$summary"
else
	step split 150 "${bench[@]}" split --checkpoint "$weights" --devices "$first,$second" --slots "$slots" \
		--characters "$characters" --requests "$requests" --connections "$slots" --turns 1 --json "$out/split.json"
fi
echo "== all: $SECONDS s, in $summary" | tee -a "$summary"
exit "$failed"
