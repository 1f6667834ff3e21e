#!/usr/bin/env bash
# Run one part of a suite, and say how long it took:  tools/part.sh NAME COMMAND…
# .ci/run names a file in $D5_PARTS, and gets a line for each part there.
set -u
name=$1
shift
began=$SECONDS
"$@"
status=$?
took=$((SECONDS - began))
printf 'part: %s took %d s%s\n' "$name" "$took" "$([ "$status" = 0 ] || echo ", failed with $status")"
[ -z "${D5_PARTS:-}" ] || printf '%s %d s\n' "$name" "$took" >>"$D5_PARTS"
exit "$status"
