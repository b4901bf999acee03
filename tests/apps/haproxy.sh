#!/usr/bin/env bash
# HAProxy in front of nginx: HTTP with keep-alive to the server, TCP with splicing asked for in both
# directions, large downloads and uploads, load.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

http_port=8100
tcp_port=8101
behind=8102

main() {
    app haproxy "$@"
    packages haproxy nginx wrk curl openssl
    isolate
    say "version: $(haproxy -v | head -1)"
    mkdir -p "$work/data/www"
    random_file "$work/data/www/large" "$(amount 60 200)"
    head -c 1024 "$work/data/www/large" >"$work/data/www/1k"
    for form in "${forms[@]}"; do
        start_both
        local port
        for port in "$http_port" "$tcp_port"; do
            transfers "$port"
            load "$port"
        done
        stop server
        stop server-behind QUIT
        rode server 20 among
        rode server-behind 20 among
        rode client 20
    done
    same "down_$http_port" "down_$tcp_port" "up_$http_port" "up_$tcp_port"
    [[ -z $measure ]] || figures
    finish
}

# start_both [SUFFIX OF THE PORTS]
start_both() {
    local home=$work/data/$form shift=${1:-0}
    mkdir -p "$home/put" "$home/tmp"
    cat >"$home/nginx.conf" <<EOF
user root;
worker_processes 1;
pid $home/nginx.pid;
error_log $home/error.log warn;
daemon off;
events { }
http {
    access_log off;
    sendfile on;
    keepalive_requests 100000000;
    client_max_body_size 0;
    client_body_temp_path $home/tmp;
    server {
        listen $second:$((behind + shift));
        root $work/data/www;
        location /put/ { root $home; dav_methods PUT; }
    }
}
EOF
    cat >"$home/haproxy.cfg" <<EOF
global
    maxconn 500
defaults
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    option splice-auto
    option splice-request
    option splice-response
frontend http
    mode http
    bind 127.0.0.1:$((http_port + shift))
    default_backend nginx_http
backend nginx_http
    mode http
    http-reuse always
    server one $second:$((behind + shift))
frontend tcp
    mode tcp
    bind 127.0.0.1:$((tcp_port + shift))
    default_backend nginx_tcp
backend nginx_tcp
    mode tcp
    server one $second:$((behind + shift))
EOF
    local side=server
    [[ $shift -eq 0 ]] || side=server$shift
    start "$side-behind" nginx -p "$home" -c "$home/nginx.conf"
    start "$side" haproxy -db -f "$home/haproxy.cfg"
    await_port "$((behind + shift))"
    await_port "$((tcp_port + shift))"
}

transfers() {
    local url=http://127.0.0.1:$1
    client curl -sS --fail "$url/large" -o "$work/data/got"
    note "down_$1" "$(sum_of "$work/data/got")"
    equal "download" "$(sum_of "$work/data/got")" "$(sum_of "$work/data/www/large")"
    client curl -sS --fail --limit-rate 20M -r 0-9999999 "$url/large" -o "$work/data/got"
    equal "a slow reader" "$(sum_of "$work/data/got")" "$(head -c 10000000 "$work/data/www/large" | sum_of /dev/stdin)"
    client curl -sS --fail -T "$work/data/www/large" "$url/put/$1"
    note "up_$1" "$(sum_of "$work/data/$form/put/$1")"
    equal "upload" "$(sum_of "$work/data/$form/put/$1")" "$(sum_of "$work/data/www/large")"
    rm "$work/data/$form/put/$1"
}

load() {
    client wrk -t 1 -c 16 -d 1s "http://127.0.0.1:$1/1k" >"$work/wrk" 2>&1
    check "wrk of 1 KiB" clean "$work/wrk"
}

clean() {
    grep -q 'Requests/sec: *[1-9]' "$1" && ! grep -qE 'Non-2xx|Socket errors' "$1"
}

rate() {
    local at=$(($1 + 10))
    [[ $form == plain ]] || at=$(($1 + 20))
    client wrk -t 1 -c 16 -d 2s "http://127.0.0.1:$at/1k" | awk '/^Requests\/sec/ { print $2 }'
}

figures() {
    form=plain
    start_both 10
    form=accelerated
    start_both 20
    figure "HTTP, 1 KiB, 16 connections" "requests/s" rate "$http_port"
    figure "TCP, 1 KiB, 16 connections" "requests/s" rate "$tcp_port"
    local side
    for side in server10 server20; do
        stop "$side"
        stop "$side-behind" QUIT
    done
}

main "$@"
