#!/usr/bin/env bash
# Four hospitals train one model: a coordinator and four nodes as processes of their own on this
# machine, over mutual TLS, from invitations to the merged model. Any one of them may collude with
# the coordinator, and any one may be missing in a round. One node is killed with -9 in the middle
# and started again; later another one leaves before the last rounds.
#
#   examples/four_hospitals.sh                 # on invented text
#   examples/four_hospitals.sh DATA [PUBLIC]   # on the first four subfolders or data files of DATA
#
# PUBLIC is the public text that the base model learns from; without it, it is invented. OUT names
# the folder of all that is written, UNITS what each hospital declares to train on. About four
# minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
OUT="${OUT:-runs/four-hospitals-$(date +%Y%m%d-%H%M%S)}"
UNITS="${UNITS:-200}"
DATA="${1:-}" PUBLIC="${2:-}" RUN=""
export OMP_NUM_THREADS=1

arion() { "$PYTHON" -m arion "$@"; }
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2 && exit 1; }
own_fingerprint() { sed -n "s/.*this node's fingerprint is //p" "$OUT/nodes/$1/join.log"; }
has_joined() { [[ -n "$(own_fingerprint "$1" 2>/dev/null)" ]]; }
is_listening() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
rounds() { cat "$OUT/srv/ledger/entries.jsonl" 2>/dev/null | grep -c round-recorded || true; }
has_rounds() { (($(rounds) >= $1)); }
takes_part() { grep round-recorded "$OUT/srv/ledger/entries.jsonl" | tail -n 1 | grep -q "\"$1\""; }

# wait_until SECONDS WHAT COMMAND...
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < end)) || fail "waited too long: $what"
    [[ -z "$RUN" ]] || kill -0 "$RUN" 2>/dev/null || fail "the run ended before: $what"
    sleep 0.1
  done
}

declare -A NODE=()
start_node() {
  "$PYTHON" -m arion node run "$OUT/nodes/$1" 2>>"$OUT/nodes/$1/node.log" &
  NODE[$1]=$!
}

mkdir -p "$OUT/nodes"
OUT="$(cd "$OUT" && pwd)"
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

say "text of four hospitals, and a small model that has read public text alone"
if [[ -z "$DATA" || -z "$PUBLIC" ]]; then
  "$PYTHON" - "$OUT/invented" <<'EOT'
import shutil
import sys
from pathlib import Path

from arion.synthetic import write_synthetic

out = Path(sys.argv[1])
for seed, name in enumerate(("city", "lakeside", "st-mary", "university")):
    made = write_synthetic(out / name, seed=seed, units_per_institution=200, public_documents=1500)
    shutil.move(made.private_dir / "hospital", out / "hospitals" / name)
EOT
  DATA="${DATA:-$OUT/invented/hospitals}" PUBLIC="${PUBLIC:-$OUT/invented/city/public}"
fi
mapfile -t SHARDS < <(find -L "$DATA" -mindepth 1 -maxdepth 1 ! -name '.*' ! -iname '*.md' \
  ! -name data.toml | sort | head -n 4)
((${#SHARDS[@]} == 4)) || fail "expected four subfolders or data files in $DATA"
CONFIG=()
[[ ! -f "$DATA/data.toml" ]] || CONFIG=(--config "$DATA/data.toml")
NAMES=()
for shard in "${SHARDS[@]}"; do
  NAMES+=("$(basename "$shard" | sed 's/\..*//' | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9\n' -)")
done
arion model pretrain --preset nano --public "$PUBLIC" --steps 150 --out "$OUT/base"

say "a coordinator, and four hospitals that join"
read -r PORT JOINING < <("$PYTHON" -c 'import socket
ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(port.getsockname()[1] for port in ports))')
arion coordinator init "$OUT/srv" --federation hospitals --host localhost \
  --port "$PORT" --enrolment-port "$JOINING" | tee "$OUT/init.log"
"$PYTHON" -m arion coordinator serve "$OUT/srv" 2>"$OUT/serve.log" &
wait_until 60 "the service listens" is_listening "$JOINING"
JOINS=()
for name in "${NAMES[@]}"; do
  mkdir -p "$OUT/nodes/$name"
  invitation="$(arion node invite "$name" --coordinator "$OUT/srv")"
  "$PYTHON" -m arion node join localhost "$invitation" --home "$OUT/nodes/$name" --wait 120 \
    --port "$PORT" --enrolment-port "$JOINING" >"$OUT/nodes/$name/join.log" &
  JOINS+=($!)
done
for name in "${NAMES[@]}"; do wait_until 60 "$name joins" has_joined "$name"; done

say "fingerprints are compared by telephone, and hospitals approved"
arion node list --coordinator "$OUT/srv" | tee "$OUT/members.log"
CALLS=(coordinator "$(sed -n 's/^signing key //p' "$OUT/init.log")")
for name in "${NAMES[@]}"; do
  grep -q "^$name .*$(own_fingerprint "$name")" "$OUT/members.log" || fail "$name: another key"
  arion node approve "$name" --coordinator "$OUT/srv"
  CALLS+=("$name" "$(own_fingerprint "$name")")
done
wait "${JOINS[@]}"

say "each hospital drafts its consent and pins whom it has called"
agree() {
  arion node consent draft "$OUT/nodes/$1" --data "$2" --base "$OUT/base" "${CONFIG[@]}" \
    --purpose "an example" --epsilon 8 --delta 1e-6 --runs 4
  arion node pin "${CALLS[@]}" --home "$OUT/nodes/$1" | tail -n 1
}
DRAFTS=()
for i in "${!NAMES[@]}"; do
  agree "${NAMES[$i]}" "${SHARDS[$i]}" &
  DRAFTS+=($!)
done
for draft in "${DRAFTS[@]}"; do wait "$draft" || fail "a consent was not drafted"; done
for name in "${NAMES[@]}"; do start_node "$name"; done

say "the run: at least three in a sum, one colluder borne, epsilon 1.9"
unit="$(sed -n 's/^unit = //p' "$OUT/nodes/${NAMES[0]}/consent.toml")"
cat >"$OUT/first.toml" <<EOT
[model]
base = "$OUT/base"

[training]
rounds = 8
expected_batch = 64
sequence_length = 64

[privacy]
epsilon = 1.9
delta = 2.5e-7
spare_releases = 4

[federation]
n_min = 3
colluders = 1

[service]
unit = $unit
deadline_s = 20

[service.units]
$(for name in "${NAMES[@]}"; do printf '%s = %s\n' "$name" "$UNITS"; done)
EOT
"$PYTHON" -m arion run submit "$OUT/first.toml" --coordinator "$OUT/srv" &
RUN=$!

KILLED="${NAMES[1]}" LEAVING="${NAMES[3]}"
wait_until 120 "two rounds" has_rounds 2
kill -9 "${NODE[$KILLED]}" && wait "${NODE[$KILLED]}" 2>/dev/null || true
say "$KILLED was killed after round $(rounds), and is started again"
start_node "$KILLED"
wait_until 120 "a round without it" has_rounds 4
wait_until 120 "$KILLED takes part again" takes_part "$KILLED"
wait_until 120 "$LEAVING still takes part" takes_part "$LEAVING"
kill "${NODE[$LEAVING]}"
say "$LEAVING leaves after round $(rounds)"
wait "$RUN" || fail "the run did not finish"
RUN=""
! takes_part "$LEAVING" || fail "$LEAVING was in the last round"

say "the merged model, and what every ledger says"
arion run list --coordinator "$OUT/srv"
arion run model first --coordinator "$OUT/srv" --out "$OUT/model"
for name in "${NAMES[@]}"; do # each by the keys that its own officer pinned
  printf '%s: ' "$name"
  arion privacy ledger verify "$OUT/nodes/$name" | tail -n 1
done
arion privacy ledger verify "$OUT" --pins "$OUT/srv/pins.json"
say "done in $SECONDS seconds: $OUT/model"
