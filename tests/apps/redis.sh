#!/usr/bin/env bash
# Redis: redis-benchmark with and without pipelining, a bulk load and a large value, MONITOR,
# BGSAVE under load, replication with a comparison of DEBUG DIGEST.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=6400
replica_port=6401

main() {
    app redis "$@"
    packages redis-server redis-tools openssl
    isolate
    make_input
    say "version: $(redis-server --version)"
    for form in "${forms[@]}"; do
        start_server server "$port"
        bulk_load
        large_value
        benchmark
        watch
        save_under_load
        # A server on the second host would need another address.
        [[ -n $hosts ]] || replicate
        stop server
        rode server
        rode client
    done
    same bulk_digest large_value benchmark monitor
    if [[ -n $measure ]]; then
        figures
    fi
    finish
}

# start_server SIDE PORT OPTIONS...
start_server() {
    local side=$1 at=$2
    shift 2
    mkdir -p "$work/data/$form.$side"
    start "$side" redis-server --port "$at" --bind 127.0.0.1 "$second" --protected-mode no \
        --save '' --appendonly no --dir "$work/data/$form.$side" --enable-debug-command yes --daemonize no \
        --repl-diskless-sync-delay 0 "$@"
    await_port "$at"
}

cli() {
    client redis-cli -h 127.0.0.1 -p "$port" "$@"
}

# ask PORT COMMAND...: what one answers that has nothing to do with the library.
ask() {
    local at=$1
    shift
    timeout 20 redis-cli -h 127.0.0.1 -p "$at" "$@"
}

make_input() {
    local keys
    keys=$(amount 10000 100000)
    # The protocol itself, as redis-cli --pipe wants it.
    awk -v n="$keys" 'BEGIN {
        for (i = 0; i < n; i++) {
            key = "bulk:" i; value = sprintf("%0100d", i * 7919)
            printf "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", length(key), key, length(value), value
        }
    }' >"$work/data/bulk"
    random_file "$work/data/large" 20
}

bulk_load() {
    check "bulk load" grep -q 'errors: 0' <(cli --pipe <"$work/data/bulk" 2>&1)
    note bulk_digest "$(ask "$port" debug digest)"
}

# A value larger than a ring, in and out.
large_value() {
    check "large value set" grep -q OK <(cli -x set large <"$work/data/large")
    cli --raw get large >"$work/data/large.$form"
    note large_value "$(head -c -1 "$work/data/large.$form" | sum_of /dev/stdin)"
    rm "$work/data/large.$form"
}

benchmark() {
    local n pipeline clients before after
    n=$(amount 10000 50000)
    before=$(ask "$port" incrby counted 0)
    for clients in 1 50; do
        for pipeline in 1 16; do
            client redis-benchmark -h 127.0.0.1 -p "$port" -q -n "$n" -c "$clients" -P "$pipeline" \
                incr counted >"$work/benchmark" 2>&1
            check "redis-benchmark -c $clients -P $pipeline" grep -q 'requests per second' "$work/benchmark"
        done
    done
    after=$(ask "$port" incrby counted 0)
    # redis-benchmark sends whole pipelines, so the count may exceed what was asked, but not vary.
    note benchmark "$((after - before))"
    client redis-benchmark -h "$second" -p "$port" -q -n "$n" -c 20 \
        -t set,get,lpush,lpop,sadd,hset,zadd,mset,lrange_100 -d 512 >"$work/benchmark" 2>&1
    equal "redis-benchmark of nine commands" \
        "$(tr '\r' '\n' <"$work/benchmark" | grep -c 'requests per second' || true)" 10
}

watch() {
    local turn
    start client-monitor redis-cli -h 127.0.0.1 -p "$port" monitor
    await "MONITOR" grep -q OK "$(log_of client-monitor)"
    for ((turn = 0; turn < 3; turn++)); do
        seq -f "set watched:%.0f $turn" 1000 | cli >/dev/null
    done
    await "the last line of MONITOR" grep -q '"watched:1000" "2"' "$(log_of client-monitor)" || true
    stop client-monitor
    note monitor "$(grep -o '"set" "watched:.*' "$(log_of client-monitor)" | sum_of /dev/stdin)"
}

saved() {
    ask "$port" info persistence | grep -q 'rdb_bgsave_in_progress:0' &&
        ask "$port" info persistence | grep -q 'rdb_saves:[1-9]'
}

save_under_load() {
    local before
    start client-load redis-benchmark -h 127.0.0.1 -p "$port" -q -n "$(amount 50000 200000)" \
        -c 20 -r 20000 -d 100 set saved:__rand_int__ value:__rand_int__
    sleep 0.2
    check "BGSAVE" grep -q 'started' <(cli bgsave)
    await "BGSAVE" saved || true
    wait "${pid_of[client-load]}" || true
    unset "pid_of[client-load]"
    check "load during BGSAVE" grep -q 'requests per second' "$(log_of client-load)"
    check "dump during load" redis-check-rdb "$work/data/$form.server/dump.rdb" >/dev/null
    # A save at rest, read by a server that knows nothing of the library, holds the same data.
    before=$(ask "$port" debug digest)
    check "SAVE" grep -q OK <(cli save)
    local form_before=$form
    mkdir -p "$work/data/restored"
    cp "$work/data/$form.server/dump.rdb" "$work/data/restored/"
    redis-server --port 6409 --bind 127.0.0.1 --save '' --dir "$work/data/restored" \
        --enable-debug-command yes >/dev/null 2>&1 &
    pid_of[restored]=$!
    await_port 6409
    await "the restored data" loaded || true
    equal "restored data" "$(ask 6409 debug digest)" "$before"
    stop restored
    form=$form_before
}

loaded() {
    [[ $(ask 6409 ping) == PONG ]]
}

in_step() {
    [[ $(ask "$replica_port" info replication | tr -d '\r' | grep '^master_link_status:') == *:up ]] &&
        [[ $(offset "$port" master_repl_offset) == "$(offset "$replica_port" slave_repl_offset)" ]]
}

offset() {
    ask "$1" info replication | tr -d '\r' | sed -n "s/^$2://p"
}

replicate() {
    start_server client-replica "$replica_port" --replicaof 127.0.0.1 "$port"
    client redis-benchmark -h 127.0.0.1 -p "$port" -q -n 20000 -c 10 -r 5000 -d 200 \
        set replicated:__rand_int__ value:__rand_int__ >/dev/null
    await "the replica" in_step || true
    equal "replica's digest" "$(ask "$replica_port" debug digest)" "$(ask "$port" debug digest)"
    # After a partial resynchronisation, too.
    ask "$port" client kill type replica >/dev/null
    client redis-benchmark -h 127.0.0.1 -p "$port" -q -n 20000 -c 10 -r 5000 -d 200 \
        set replicated:__rand_int__ value:__rand_int__ >/dev/null
    await "the replica" in_step || true
    equal "replica's digest after a broken link" "$(ask "$replica_port" debug digest)" \
        "$(ask "$port" debug digest)"
    stop client-replica
}

rate() {
    local clients=$1 pipeline=$2 n=$3 at=6411
    [[ $form == plain ]] || at=6412
    client redis-benchmark -h 127.0.0.1 -p "$at" -n "$n" -c "$clients" -P "$pipeline" -t get --csv 2>/dev/null |
        awk -F'","' '/^"GET/ { print $2 }'
}

figures() {
    form=plain
    start_server server 6411
    form=accelerated
    start_server server2 6412
    figure "GET, 1 client" "requests/s" rate 1 1 100000
    figure "GET, 50 clients" "requests/s" rate 50 1 300000
    figure "GET, 1 client, pipeline of 16" "requests/s" rate 1 16 1000000
    figure "GET, 50 clients, pipeline of 16" "requests/s" rate 50 16 1000000
    stop server
    stop server2
}

main "$@"
