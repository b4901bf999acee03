#!/usr/bin/env bash
# One pass of one suite, inside the network and process namespaces that compare.sh made.
#
# Usage: pass.sh outside|inside NAME PASS DIRECTORY WANTED
#
# `outside` sets up the network and, unless the pass is plain, a daemon; `inside` is started by
# `viaduct run`, which knows afterwards what the programs' connections did.
#
# A suite's suite_run finds
#   under client CMD..., under server CMD...   start CMD with the library, or without it
#   $out                                       a directory for its own logs
#   result pass|fail|skip UNIT TEST            notes a result
#   in_time UNIT STATUS                        notes a failure if that is how `timeout` ends
#   tests_of UNIT                              prints the tests that are wanted of it; nothing: all
set -uo pipefail

# shellcheck source-path=SCRIPTDIR source=../../scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

# One more address than loopback's own: getaddrinfo with AI_ADDRCONFIG finds none without it.
address=192.0.2.1

outside() {
    network || exit 1
    if [[ $pass == plain ]]; then
        inside
        return
    fi
    local socket ready
    socket=$(mktemp -d)/viaductd.sock
    # Whatever user a suite becomes must reach it.
    chmod 755 "${socket%/*}"
    : >"$out/viaductd.toml"
    exec {ready}> >(cat >"$out/ready")
    "$binaries/viaductd" --config "$out/viaductd.toml" --socket "$socket" --ready-fd "$ready" \
        >"$out/viaductd.log" 2>&1 &
    exec {ready}>&-
    local i
    for ((i = 0; i < 100; i++)); do
        [[ -s $out/ready ]] && break
        sleep 0.1
    done
    "$binaries/viaduct" run --library "$binaries/libviaduct.so" --socket "$socket" --peers "$(peers)" \
        --upgrade-after "${suite_upgrade_after:-0}" --stats-json "$out/totals.json" -- \
        bash "${BASH_SOURCE[0]}" inside "$name" "$pass" "$out" "$wanted"
    local status=$?
    rm -rf "${socket%/*}"
    return "$status"
}

network() {
    ip link set lo up && ip addr add "$address/32" dev lo || return 1
    if [[ $suite_ends == one && ${surroundings:-$pass} != [pb]* ]]; then
        # Who connects to 127.0.0.1 then comes from 127.0.0.2, so that the two ends of a connection
        # see different far addresses, and one of the two can be no peer.
        ip route replace local 127.0.0.1 dev lo table local proto kernel scope host src 127.0.0.2
    fi
}

peers() {
    case $suite_ends-$pass in
        one-client) echo 127.0.0.1 ;;
        one-server) echo 127.0.0.2 ;;
        *) echo "127.0.0.0/8,::1,$address" ;;
    esac
}

inside() {
    # The suite's programs are to have it, and not the shell that starts them.
    library=${LD_PRELOAD:-}
    unset LD_PRELOAD
    local -a units
    mapfile -t units < <(cut -f1 "$wanted" | awk '!seen[$0]++')
    suite_run "${units[@]}"
}

# under client|server COMMAND...: with the library if this pass has it at that end.
under() {
    local end=$1
    shift
    if has_library "$end"; then
        env LD_PRELOAD="$library" "$@"
    else
        "$@"
    fi
}

# has_library client|server: whether that end is under the library in this pass.
has_library() {
    case $suite_ends-$pass in
        *-plain) false ;;
        one-* | *-both) true ;;
        *) [[ $pass == "$1" ]] ;;
    esac
}

result() {
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$out/results"
}

# What a unit that was ended has not come to must not look as if nothing of it had failed.
in_time() {
    case $2 in
        124 | 137) result fail "$1" 'ends in time' ;;
    esac
}

tests_of() {
    awk -F'\t' -v unit="$1" '$1 == unit && $2 != "" { print $2 }' "$wanted"
}

if [[ $# -ne 5 || -z ${binaries:-} ]]; then
    die "is started by scripts/suites"
fi
step=$1 name=$2 pass=$3 out=$4 wanted=$5
suite_ends=''
# shellcheck source=/dev/null
source "$root/tests/suites/$name.sh"
"$step"
