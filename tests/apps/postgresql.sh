#!/usr/bin/env bash
# PostgreSQL: pgbench read-only and TPC-B in all query modes, a connection per transaction, a COPY of
# 100 MB in and out, a cancelled query. Server and clients run as the user postgres.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=5500

main() {
    app postgresql "$@"
    packages postgresql openssl
    isolate
    local programs=(/usr/lib/postgresql/*/bin)
    PATH=${programs[-1]}:$PATH
    say "version: $(postgres --version)"
    # Read by lib.sh.
    # shellcheck disable=SC2034
    as_user=postgres
    chown postgres "$work/data"
    make_cluster
    make_rows
    for form in "${forms[@]}"; do
        start_server server "$port"
        tables
        transactions
        copy
        cancel
        stop server INT
        rode server 80
        rode client 80
    done
    same one_client copied_out sums
    [[ -z $measure ]] || figures
    finish
}

make_cluster() {
    mkdir "$work/data/template"
    chown postgres "$work/data/template"
    setpriv --reuid postgres --regid postgres --clear-groups \
        initdb -D "$work/data/template" --auth trust --no-sync >"$work/initdb" 2>&1 ||
        die "initdb failed: $(<"$work/initdb")"
    cat >>"$work/data/template/postgresql.conf" <<EOF
listen_addresses = '127.0.0.1,$second'
unix_socket_directories = ''
fsync = off
shared_buffers = 256MB
max_connections = 60
EOF
    printf 'host all all %s/24 trust\n' "$second" >>"$work/data/template/pg_hba.conf"
}

# 100 MB as COPY wants it.
make_rows() {
    head -c "$(amount 30000000 75000000)" <(openssl enc -aes-128-ctr -K 07 -iv 00 -in /dev/zero 2>/dev/null) |
        base64 -w 100 | awk '{ print NR "\t" $0 }' >"$work/data/rows"
}

start_server() {
    local home=$work/data/$form.$1
    cp -r --preserve=mode,ownership "$work/data/template" "$home"
    start "$1" postgres -D "$home" -p "$2"
    await "PostgreSQL" pg_isready -q -h 127.0.0.1 -p "$2" || cat "$(log_of "$1")"
}

sql() {
    client psql -X -q -A -t -h 127.0.0.1 -p "$port" -U postgres -v ON_ERROR_STOP=1 "$@" postgres
}

bench() {
    client pgbench -h "$second" -p "$port" -U postgres "$@" postgres >"$work/pgbench" 2>&1 ||
        { cat "$work/pgbench" >&2; return 1; }
}

tables() {
    bench -i -q -s "$(amount 2 10)"
    # One client and one seed: the same transactions every time.
    bench -n -c 1 -t "$(amount 200 1000)" --random-seed=7
    note one_client "$(sql -c "select count(*), sum(delta), md5(string_agg(aid || ':' || delta, ',' order by aid, delta))
        from pgbench_history")"
}

transactions() {
    local mode
    check "pgbench -S -c 1" bench -n -S -c 1 -t "$(amount 2000 10000)"
    for mode in simple extended prepared; do
        check "pgbench -S -c 8 -M $mode" bench -n -S -c 8 -j 2 -t "$(amount 500 2000)" -M "$mode"
        check "pgbench TPC-B -c 8 -M $mode" bench -n -c 8 -j 2 -t "$(amount 50 200)" -M "$mode"
    done
    check "pgbench with a connection per transaction" bench -n -S -C -c 4 -t "$(amount 20 100)"
    local sums
    sums=$(sql -c 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),
        (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers),
        (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history),
        (select count(*) from pgbench_history)')
    note sums "$sums"
    check "the books balance ($sums)" test "${sums%|*}" = "t|t|t"
}

copy() {
    sql -c 'create table rows (number int, line text)'
    sql -c "\\copy rows from '$work/data/rows'"
    equal "rows copied in" "$(sql -c 'select count(*), max(number) from rows')" \
        "$(wc -l <"$work/data/rows")|$(wc -l <"$work/data/rows")"
    sql -c "\\copy (select * from rows order by number) to '$work/data/rows.out'" >/dev/null
    note copied_out "$(sum_of "$work/data/rows.out")"
    equal "rows copied out" "$(sum_of "$work/data/rows.out")" "$(sum_of "$work/data/rows")"
    rm "$work/data/rows.out"
    equal "a large result" "$(sql -c "select 'number', 'line'" -c 'select number, line from rows order by number' | tail -n +2 | tr '|' '\t' | sum_of /dev/stdin)" \
        "$(sum_of "$work/data/rows")"
}

# The client asks by a second connection that the first one's query be given up.
cancel() {
    local pid answer
    start client-cancel psql -X -q -h 127.0.0.1 -p "$port" -U postgres -c 'select pg_sleep(60)' postgres
    await "the query" running || true
    stop client-cancel INT
    answer=$(<"$(log_of client-cancel)")
    check "a cancelled query" grep -q 'canceling statement due to user request' <<<"$answer"
    equal "queries left" "$(running && echo some || echo none)" none
}

running() {
    [[ $(setpriv --reuid postgres --regid postgres --clear-groups psql -X -q -A -t -h 127.0.0.1 -p "$port" \
        -c "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'" postgres) != 0 ]]
}

rate() {
    local at=5501
    [[ $form == plain ]] || at=5502
    client pgbench -h 127.0.0.1 -p "$at" -U postgres -n -T 3 "$@" postgres 2>/dev/null |
        awk '/^tps/ { print $3 }'
}

copy_seconds() {
    local at=5501
    [[ $form == plain ]] || at=5502
    seconds client psql -X -q -h 127.0.0.1 -p "$at" -U postgres -c "\\copy (select repeat('x', 100) from generate_series(1, 1000000)) to '/dev/null'" postgres
}

figures() {
    form=plain
    start_server server 5501
    form=accelerated
    start_server server2 5502
    local at
    for at in 5501 5502; do
        setpriv --reuid postgres --regid postgres --clear-groups \
            pgbench -h 127.0.0.1 -p "$at" -i -q -s 10 postgres >/dev/null 2>&1
    done
    figure "pgbench -S -c 1" "tps" rate -S -c 1
    figure "pgbench -S -c 1 -M prepared" "tps" rate -S -c 1 -M prepared
    figure "pgbench -S -c 8" "tps" rate -S -c 8 -j 2
    figure "pgbench TPC-B -c 4" "tps" rate -c 4 -j 2
    figure "COPY of 100 MB to the client" "s" copy_seconds
    stop server INT
    stop server2 INT
}

main "$@"
