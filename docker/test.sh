#!/usr/bin/env bash
# Builds the images, and runs the federation of compose.yaml on them: a coordinator, PostgreSQL and
# four nodes, from invitations to a merged model of two rounds on invented text. Checks that none is
# root, has a capability, a writable root or a compiler, and that each is healthy. Removes all of it.
#
#   docker/test.sh     # or: make container-test
#
# Wants docker with its compose plugin and a daemon, or podman with podman-compose; where neither
# works it says so and ends with 77, because what was not run must not look like what passed.
# BASE names another base image, BUILD_FLAGS further options of build.
set -euo pipefail
cd "$(dirname "$0")/.."

NODES=(city lakeside st-mary university)
export COMPOSE_PROJECT_NAME=arion-test BUILDAH_FORMAT=docker
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2 && exit 1; }

if docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
  ENGINE=docker COMPOSE=(docker compose)
elif podman info >/dev/null 2>&1 && podman-compose --version >/dev/null 2>&1; then
  ENGINE=podman COMPOSE=(podman-compose)
else
  echo "not run: neither docker compose with a daemon nor podman with podman-compose works here" >&2
  exit 77
fi

WORK="$(mktemp -d)"
export BASE_MODEL="$WORK/base" TEXT="$WORK/text" RUNS="$WORK/runs"
compose() { "${COMPOSE[@]}" -f docker/compose.yaml "$@"; }
within() { compose exec -T "$@" </dev/null; } # SERVICE COMMAND...
once() { compose run --rm -T --no-deps "$@" </dev/null; } # SERVICE ARGUMENTS of arion...
operator() { within coordinator arion "$@"; }
clean_up() {
  compose down --volumes >/dev/null 2>&1 || true
  rm -rf "$WORK"
}
trap clean_up EXIT

# wait_until SECONDS WHAT COMMAND...
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { compose logs 2>&1 | tail -n 40 >&2 && fail "waited too long: $what"; }
    sleep 1
  done
}

image() { # OPTIONS IMAGE ARGUMENTS...
  "$ENGINE" run --rm --init --read-only --tmpfs /tmp --user 0 -v "$WORK:/work" "$@"
}
is_healthy() { # by the command that the image names
  local check
  mapfile -t check < <("$ENGINE" image inspect --format \
    '{{range .Config.Healthcheck.Test}}{{println .}}{{end}}' "arion-$2" | sed '1d;/^$/d')
  within "$1" "${check[@]}"
}

check_confinement() { # SERVICE USER
  local found
  # shellcheck disable=SC2016
  found="$(within "$1" sh -c 'id -u; grep -E "^(CapEff|NoNewPrivs)" /proc/1/status
    for place in / /usr/bin /opt; do ! touch "$place/x" 2>/dev/null || echo "writes $place"; done
    for tool in gcc cc make pip pip3 uv; do ! command -v "$tool" || echo "has $tool"; done' |
    tr -d '\r' | tr '\n\t' '  ')"
  [[ "$found" == "$2 CapEff: 0000000000000000 NoNewPrivs: 1 " ]] || fail "$1 is: $found"
  echo "$1: user $2, no capability, no new privileges, root read-only, no build tools"
}

say "images, with $ENGINE"
for target in coordinator node database; do
  # shellcheck disable=SC2086
  "$ENGINE" build --quiet ${BASE:+--build-arg BASE="$BASE"} ${BUILD_FLAGS:-} \
    -f docker/Dockerfile --target "$target" -t "arion-$target" .
  "$ENGINE" image inspect --format "$target: {{.Size}} bytes" "arion-$target"
done

say "invented text of four hospitals, and a small model that has read public text"
mkdir -p "$TEXT" "$RUNS"
image --entrypoint python arion-node -c '
import shutil
from pathlib import Path

from arion.synthetic import write_synthetic

for seed, name in enumerate(("city", "lakeside", "st-mary", "university")):
    made = write_synthetic(
        Path("/tmp") / name, seed=seed, units_per_institution=100, public_documents=1500
    )
    shutil.move(made.private_dir / "hospital", Path("/work/text") / name)
shutil.move(Path("/tmp/city/public"), "/work/public")
'
image arion-node model pretrain --preset nano --public /work/public --steps 150 --out /work/base
chmod -R a+rX "$WORK"

say "a coordinator whose database is PostgreSQL"
compose up -d database
wait_until 60 "the database is healthy" is_healthy database database
once coordinator coordinator init /data --federation hospitals --host coordinator \
  --listen 0.0.0.0 --database "postgresql+psycopg://arion@/arion?host=/socket" | tee "$WORK/init.log"
compose up -d coordinator
wait_until 60 "the coordinator is healthy" is_healthy coordinator coordinator

say "four hospitals are invited, join, and are approved"
CALLS=(coordinator "$(sed -n 's/^signing key \(arion:[0-9a-f-]*\).*/\1/p' "$WORK/init.log")")
for name in "${NODES[@]}"; do
  invitation="$(operator node invite "$name" --coordinator /data | tr -d '\r')"
  once "$name" node join coordinator "$invitation" --home /data --wait 0 >"$WORK/join.log" 2>&1 || true
  operator node approve "$name" --coordinator /data
  once "$name" node join coordinator "$invitation" --home /data --wait 30 >/dev/null
  CALLS+=("$name" "$(sed -n "s/.*fingerprint is \(arion:[0-9a-f-]*\).*/\1/p" "$WORK/join.log")")
done
for name in "${NODES[@]}"; do
  once "$name" node consent draft /data --data /text --base /base --purpose "a test" \
    --epsilon 8 --delta 1e-6 --runs 4 >/dev/null
  once "$name" node pin "${CALLS[@]}" --home /data | tail -n 1
done
compose up -d "${NODES[@]}"
for name in "${NODES[@]}"; do wait_until 120 "$name is healthy" is_healthy "$name" node; done

say "nobody is root"
check_confinement database 10002
check_confinement coordinator 10001
check_confinement city 10001

say "two rounds"
unit="$(within city sed -n 's/^unit = //p' /data/consent.toml | tr -d '\r')"
cat >"$RUNS/first.toml" <<EOT
[model]
base = "/base"

[training]
rounds = 2
expected_batch = 32
sequence_length = 64

[privacy]
epsilon = 1.9
delta = 2.5e-7

[federation]
n_min = 3
colluders = 1

[service]
unit = $unit
deadline_s = 60

[service.units]
$(printf '%s = 100\n' "${NODES[@]}")
EOT
chmod a+r "$RUNS/first.toml"
operator run submit /runs/first.toml --coordinator /data
operator run model first --coordinator /data --out /data/models/first
operator privacy ledger verify /data | tail -n 1
for name in "${NODES[@]}"; do
  printf '%s: ' "$name"
  within "$name" arion privacy ledger verify /data | tail -n 1
done

say "what was acknowledged is there after all were stopped and started again"
compose stop >/dev/null
compose up -d >/dev/null
wait_until 120 "the coordinator is healthy again" is_healthy coordinator coordinator
for name in "${NODES[@]}"; do wait_until 120 "$name is healthy again" is_healthy "$name" node; done
operator run list --coordinator /data | grep finished || fail "the run is not finished"
say "done in $SECONDS seconds"
