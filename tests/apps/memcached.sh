#!/usr/bin/env bash
# memcached with four threads, and a client of four connections that compares every byte: small
# values, values larger than a ring's first page, many connections, and the server's own counts.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=11300

main() {
    app memcached "$@"
    packages memcached gcc libc6-dev
    isolate
    say "version: $(memcached -V)"
    compile "$work/bin/client" "$here/programs/memcached_client.c"
    for form in "${forms[@]}"; do
        start_server server "$port"
        compare 4 "$(amount 5000 50000)" 100
        compare 4 "$(amount 500 5000)" 60000
        compare 64 "$(amount 200 2000)" 1000
        counts
        stop server
        rode server
        rode client
    done
    same answers_4_100 answers_4_60000 answers_64_1000 counts
    [[ -z $measure ]] || figures
    finish
}

start_server() {
    start "$1" memcached -u root -t 4 -l "127.0.0.1,$second" -p "$2" -U 0 -m 1024
    await_port "$2"
}

# compare CONNECTIONS REQUESTS VALUE_BYTES
compare() {
    local status=0
    client "$work/bin/client" "$second" "$port" "$@" >"$work/answers" || status=$?
    equal "$1 connections, values of $3 bytes" "$status" 0
    note "answers_$1_$3" "$(grep agreed "$work/answers")"
}

# What the server itself has counted.
counts() {
    local fd line
    exec {fd}<>"/dev/tcp/127.0.0.1/$port"
    printf 'stats\r\n' >&"$fd"
    while IFS= read -r -t 10 -u "$fd" line && [[ $line != END* ]]; do
        printf '%s\n' "${line%$'\r'}"
    done >"$work/stats"
    exec {fd}>&-
    note counts "$(grep -E ' (cmd_get|cmd_set|get_hits|get_misses|incr_hits|bytes_written|threads|curr_items) ' "$work/stats" |
        tr '\n' ' ')"
}

rate() {
    local at=11301
    [[ $form == plain ]] || at=11302
    client "$work/bin/client" 127.0.0.1 "$at" "$1" "$2" "$3" | awk '/^gets/ { print $2 }'
}

figures() {
    form=plain
    start_server server 11301
    form=accelerated
    start_server server2 11302
    figure "get 100 B, 4 connections" "requests/s" rate 4 60000 100
    figure "get 100 B, 1 connection" "requests/s" rate 1 60000 100
    figure "get 16 KiB, 4 connections" "requests/s" rate 4 20000 16384
    stop server
    stop server2
}

main "$@"
