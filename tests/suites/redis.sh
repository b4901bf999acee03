# shellcheck shell=bash
# redis's own tests, against Debian's binaries: an event loop, BGSAVE in a forked child, replication,
# blocking commands, cluster. The client is Tcl, whose sockets wait in select. See compare.sh for what a
# suite is.
# shellcheck disable=SC2034,SC2154 # Between this file, compare.sh and pass.sh.

suite_about="its own tests, Tcl against Debian's server"
suite_ends=two
suite_seconds=10800
source=$cache/redis/source
workers=4

suite_install() {
    local -a missing=()
    have tclsh || missing+=(tcl)
    have redis-server redis-cli redis-benchmark || missing+=(redis-server redis-tools)
    if [[ ${#missing[@]} -gt 0 ]]; then
        packages "${missing[@]}"
        # Debian starts a server; the tests start their own.
        [[ ! -d /run/systemd/system ]] || as_root systemctl disable --now redis-server
    fi
    [[ -e $source/runtest ]] || (debian_source redis "$source") || not_here "its source is missing"
}

# The quick ones: every command form, blocking commands, replication, large replies.
# Fuzzing payloads for a minute, and waiting for a kernel that fails, say nothing about sockets.
suite_units() {
    if [[ -n $quick ]]; then
        printf 'unit/%s\n' protocol type/list pubsub querybuf networking limits introspection
        printf 'integration/%s\n' redis-cli redis-benchmark block-repl replication-buffer
        return
    fi
    (cd "$source" && tclsh tests/test_helper.tcl --list-tests) |
        grep -vE '^(integration/corrupt-dump-fuzzer|unit/oom-score-adj|unit/violations)$'
}

# They mostly wait, so several at a time, each in a copy of the tests with ports of its own.
suite_run() {
    local i
    mkdir -p "$out/logs" "$out/units"
    for ((i = 0; i < workers; i++)); do
        work "$i" "$@" &
    done
    wait
    cat "$out/units"/* >>"$out/results"
}

# work NUMBER UNIT...: every `workers`th of the units.
work() {
    local number=$1 here=$out/worker-$1 program i=0 unit
    shift
    mkdir -p "$here/src"
    cp -a "$source/tests" "$here" && cd "$here" || return 1
    for program in redis-server redis-sentinel redis-cli redis-benchmark redis-check-aof redis-check-rdb; do
        wrap "$program" "$([[ $program == redis-server ]] && echo server || echo client)"
    done
    for unit in "$@"; do
        if [[ $((i++ % workers)) -eq $number ]]; then
            run_unit "$unit" "$((20000 + number * 2000))"
        fi
    done
    rm -rf "$here"
}

# wrap PROGRAM END: what the tests start as src/PROGRAM.
wrap() {
    local preload=''
    if has_library "$2"; then
        preload=$library
    fi
    printf '#!/bin/sh\nLD_PRELOAD=%s exec /usr/bin/%s "$@"\n' "$preload" "$1" >"src/$1"
    chmod +x "src/$1"
}

# One test of integration/replication has a script of three thousand million steps: half a minute of
# a processor, and minutes of one that is shared.
run_unit() {
    local unit=$1 port=$2 log=$out/logs/${1//\//-} test status=0
    local -a options=(--single "$unit" --clients 1 --timeout 900 --baseport "$port" --portcount 2000)
    while read -r test; do
        options+=(--only "$test")
    done < <(tests_of "$unit")
    under client timeout -k 10 1800 tclsh tests/test_helper.tcl "${options[@]}" >"$log" 2>&1 || status=$?
    sed 's/\x1b\[[0-9;]*m//g' "$log" | awk -v unit="$unit" 'BEGIN { OFS = "\t" }
        match($0, /^\[(ok|err|exception|skip|ignore)\]: /) {
            kind = substr($0, 2, index($0, "]") - 2)
            name = substr($0, RLENGTH + 1)
            # Times, numbers of connections and what failed differ from run to run.
            sub(/ \([0-9]+ ms\)$/, "", name)
            sub(/ in tests\/.*$/, "", name)
            gsub(/[0-9.]+ ?(ms|seconds|MB)/, "N", name)
            # So do values, and in this test who is whose replica.
            gsub(/x = [0-9]+/, "x", name)
            if (unit ~ /psync2/) gsub(/#[0-9]+/, "#N", name)
            print kind == "ok" ? "pass" : kind ~ /^(skip|ignore)$/ ? "skip" : "fail", unit, name
        }' >"$out/units/${unit//\//-}"
    in_time "$unit" "$status"
}
