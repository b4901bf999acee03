#!/usr/bin/env bash
# nginx with two workers: static files by sendfile, keep-alive, ranges, uploads, wrk, and reloads
# under load, during which every answer must be whole.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=8000

main() {
    app nginx "$@"
    packages nginx wrk curl openssl
    isolate
    say "version: $(nginx -v 2>&1)"
    make_files
    for form in "${forms[@]}"; do
        start_server server "$port"
        downloads
        upload
        load
        reload
        stop server QUIT
        rode server
        rode client
    done
    same small large range put
    [[ -z $measure ]] || figures
    finish
}

make_files() {
    local i
    mkdir -p "$work/data/www"
    random_file "$work/data/www/large" "$(amount 60 200)"
    for ((i = 0; i < 100; i++)); do
        tail -c "+$((i * 5000 + 1))" "$work/data/www/large" | head -c $((i * 300 + 1)) >"$work/data/www/$i" || true
    done
    head -c 1024 "$work/data/www/large" >"$work/data/www/1k"
    head -c 65536 "$work/data/www/large" >"$work/data/www/64k"
}

start_server() {
    local home=$work/data/nginx.$form
    mkdir -p "$home/put" "$home/tmp"
    cat >"$home/nginx.conf" <<EOF
user root;
worker_processes 2;
pid $home/pid;
error_log $home/error.log warn;
daemon off;
events { worker_connections 512; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    client_max_body_size 0;
    client_body_temp_path $home/tmp;
    server {
        listen 127.0.0.1:$2 reuseport;
        listen $second:$2;
        root $work/data/www;
        location /put/ { root $home; dav_methods PUT; }
    }
}
EOF
    start "$1" nginx -p "$home" -c "$home/nginx.conf"
    await_port "$2"
}

downloads() {
    local url=http://$second:$port
    # One connection, a hundred answers.
    client curl -sS --fail "$url/[0-99]" >"$work/data/got"
    note small "$(sum_of "$work/data/got")"
    client curl -sS --fail "$url/large" -o "$work/data/got"
    note large "$(sum_of "$work/data/got")"
    equal "200 MB by sendfile" "$(sum_of "$work/data/got")" "$(sum_of "$work/data/www/large")"
    client curl -sS --fail -r 1000-2000999 "http://127.0.0.1:$port/large" -o "$work/data/got"
    note range "$(sum_of "$work/data/got")"
    # A reader that is slower than the sender.
    client curl -sS --fail --limit-rate 20M -r 0-19999999 "$url/large" -o "$work/data/got"
    equal "a slow reader" "$(sum_of "$work/data/got")" "$(head -c 20000000 "$work/data/www/large" | sum_of /dev/stdin)"
}

upload() {
    client curl -sS --fail -T "$work/data/www/large" "http://127.0.0.1:$port/put/large"
    note put "$(sum_of "$work/data/nginx.$form/put/large")"
    rm "$work/data/nginx.$form/put/large"
}

load() {
    client wrk -t 2 -c 16 -d 1s "http://127.0.0.1:$port/1k" >"$work/wrk" 2>&1
    check "wrk of 1 KiB" clean "$work/wrk"
    client wrk -t 2 -c 64 -d 1s "http://$second:$port/64k" >"$work/wrk" 2>&1
    check "wrk of 64 KiB" clean "$work/wrk"
}

clean() {
    grep -q 'Requests/sec: *[1-9]' "$1" && ! grep -qE 'Non-2xx|Socket errors' "$1"
}

# Old workers finish what they have, new ones take what comes. wrk sees connections that were closed
# while idle, as on TCP; what it got of answers must be whole, and new connections must not fail.
reload() {
    local turn pid bad=0
    start client-load wrk -t 1 -c 8 -d 4s "http://127.0.0.1:$port/1k"
    pid=$(<"$work/data/nginx.$form/pid")
    for ((turn = 0; turn < 6; turn++)); do
        sleep 0.4
        kill -HUP "$pid"
        client curl -sS --fail "http://$second:$port/[90-99]" >"$work/data/got" || bad=$((bad + 1))
        cat "$work/data/www/"{90..99} | cmp -s - "$work/data/got" || bad=$((bad + 1))
    done
    equal "downloads during reloads" "$bad" 0
    wait "${pid_of[client-load]}" || true
    unset "pid_of[client-load]"
    check "load during reloads" whole "$(log_of client-load)"
    check "the error log is empty" test ! -s "$work/data/nginx.$form/error.log"
}

whole() {
    grep -q 'Requests/sec: *[1-9]' "$1" && ! grep -qE 'Non-2xx|connect [1-9]|timeout [1-9]' "$1"
}

rate() {
    local connections=$1 path=$2 at=8001
    [[ $form == plain ]] || at=8002
    client wrk -t 1 -c "$connections" -d 2s "http://127.0.0.1:$at/$path" | awk '/^Requests\/sec/ { print $2 }'
}

figures() {
    form=plain
    start_server server 8001
    form=accelerated
    start_server server2 8002
    figure "1 KiB, keep-alive, 16 connections" "requests/s" rate 16 1k
    figure "1 KiB, keep-alive, 64 connections" "requests/s" rate 64 1k
    figure "64 KiB, keep-alive, 16 connections" "requests/s" rate 16 64k
    stop server QUIT
    stop server2 QUIT
}

main "$@"
