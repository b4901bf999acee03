#!/usr/bin/env bash
# MariaDB: point queries and transactions of one and of eight clients, a connection per query, a table of
# some megabytes loaded and dumped, a large value, a query that is killed. The server reads and writes its files
# through liburing, where the kernel lets it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=5600
account=(--no-defaults -u viaduct --protocol=tcp)

main() {
    app mariadb "$@"
    packages mariadb-server mariadb-client openssl
    isolate
    PATH=$PATH:/usr/sbin
    say "version: $(mariadbd --version 2>/dev/null)"
    make_cluster
    make_rows
    for form in "${forms[@]}"; do
        start_server server "$port"
        queries
        transactions
        table
        large_value
        kill_query
        stop server
        note files "$(grep -o 'InnoDB: Using .*io.*' "$(log_of server)")"
        rode server 80
        rode client 80
    done
    same queried books loaded dumped files
    [[ -z $measure ]] || figures
    finish
}

make_cluster() {
    mariadb-install-db --no-defaults --user=root --datadir="$work/data/template" --skip-test-db \
        --auth-root-authentication-method=normal >"$work/install" 2>&1 ||
        die "mariadb-install-db failed: $(tail -n 1 "$work/install")"
    cat >"$work/data/init.sql" <<'EOF'
create user if not exists viaduct@'%';
grant all on *.* to viaduct@'%';
create database if not exists bench;
EOF
}

# Numbers and lines.
make_rows() {
    head -c "$(amount 6000000 60000000)" <(openssl enc -aes-128-ctr -K 07 -iv 00 -in /dev/zero 2>/dev/null) |
        base64 -w 100 | awk '{ print NR "\t" $0 }' >"$work/data/rows"
}

start_server() {
    local home=$work/data/$form.$1
    cp -r "$work/data/template" "$home"
    start "$1" mariadbd --no-defaults --user=root --datadir="$home" --socket="$home/socket" \
        --pid-file="$home/pid" --bind-address=0.0.0.0 --port="$2" --skip-name-resolve --init-file="$work/data/init.sql" \
        --innodb-buffer-pool-size=256M --innodb-flush-log-at-trx-commit=0 --max-allowed-packet=64M \
        --local-infile=1 --performance-schema=0
    await "MariaDB" mariadb "${account[@]}" -h 127.0.0.1 -P "$2" -e 'select 1' || cat "$(log_of "$1")"
}

sql() {
    client mariadb "${account[@]}" -h "$second" -P "$port" --local-infile=1 --max-allowed-packet=64M -N -B "$@" bench
}

slap() {
    client mariadb-slap "${account[@]}" -h "$second" -P "$port" --create-schema=bench --silent --csv "$@" \
        >"$work/slap" 2>&1 || { cat "$work/slap" >&2; return 1; }
}

queries() {
    sql -e "create table numbers (id int primary key, square bigint) engine=innodb;
        insert into numbers select seq, seq * seq from seq_1_to_10000"
    local each='select square from numbers where id = 4711'
    check "queries of one client" slap --query="$each" --number-of-queries="$(amount 3000 20000)" --concurrency=1
    check "queries of eight clients" slap --query="$each" --number-of-queries="$(amount 4000 40000)" --concurrency=8
    check "a connection per query" slap --query="$each" --number-of-queries="$(amount 200 2000)" --concurrency=4 --detach=1
    note queried "$(sql -e 'select count(*), sum(square) from numbers')"
}

# Money goes round; none is made.
transactions() {
    sql -e "create table accounts (id int primary key, balance int) engine=innodb;
        insert into accounts select seq, 1000 from seq_1_to_100;
        create procedure pass_on(giver int, taker int) begin
            start transaction;
            update accounts set balance = balance - 1 where id = least(giver, taker);
            update accounts set balance = balance + 1 where id = greatest(giver, taker);
            commit;
        end" --delimiter=';;'
    check "transactions of eight clients" slap --delimiter=';' \
        --query='call pass_on(1, 2); call pass_on(3, 4); call pass_on(2, 5)' \
        --number-of-queries="$(amount 1200 12000)" --concurrency=8
    note books "$(sql -e 'select sum(balance), min(balance) from accounts')"
}

table() {
    sql -e 'create table texts (number int primary key, line text) engine=innodb'
    sql -e "load data local infile '$work/data/rows' into table texts"
    note loaded "$(sql -e 'select count(*), sum(length(line)) from texts')"
    sql --quick -e 'select number, line from texts order by number' >"$work/rows.out"
    note dumped "$(sum_of "$work/rows.out")"
    equal "rows that came back" "$(sum_of "$work/rows.out")" "$(sum_of "$work/data/rows")"
    rm "$work/rows.out"
}

large_value() {
    equal "a value of 20 MB" "$(sql -e "select repeat('0123456789', 2000000)" | sum_of /dev/stdin)" \
        "$(awk 'BEGIN { for (i = 0; i < 2000000; i++) printf "0123456789"; print "" }' | sum_of /dev/stdin)"
}

kill_query() {
    local id
    start client-kill mariadb "${account[@]}" -h 127.0.0.1 -P "$port" -N -e 'select sleep(60)'
    await "the query" sleeping || true
    id=$(sleeping)
    sql -e "kill query $id"
    await "its end" gone || true
    check "a killed query" grep -q 'ERROR 1317' "$(log_of client-kill)"
    stop client-kill
}

# The query's connection.
sleeping() {
    mariadb "${account[@]}" -h 127.0.0.1 -P "$port" -N -B \
        -e "select id from information_schema.processlist where info = 'select sleep(60)'" | grep .
}

gone() {
    [[ -s $(log_of client-kill) ]]
}

rate() {
    local at=5601
    [[ $form == plain ]] || at=5602
    seconds client mariadb-slap "${account[@]}" -h 127.0.0.1 -P "$at" --create-schema=bench --silent \
        --query='select square from numbers where id = 4711' --concurrency="$1" --number-of-queries="$2" \
        2>/dev/null | awk -v queries="$2" '{ print queries / $1 }'
}

load_seconds() {
    local at=5601
    [[ $form == plain ]] || at=5602
    seconds fetch "$at"
}

fetch() {
    client mariadb "${account[@]}" -h 127.0.0.1 -P "$1" -N -B --quick \
        -e "select repeat('x', 100) from seq_1_to_1000000" bench >/dev/null
}

figures() {
    form=plain
    start_server server 5601
    form=accelerated
    start_server server2 5602
    local at
    for at in 5601 5602; do
        mariadb "${account[@]}" -h 127.0.0.1 -P "$at" bench -e "create or replace table numbers (id int primary key, square bigint) engine=innodb;
            insert into numbers select seq, seq * seq from seq_1_to_10000"
    done
    figure "point queries, 1 client" "queries/s" rate 1 20000
    figure "point queries, 8 clients" "queries/s" rate 8 40000
    figure "a result of 100 MB" "s" load_seconds
    stop server
    stop server2
}

main "$@"
