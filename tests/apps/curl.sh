#!/usr/bin/env bash
# curl: many transfers at once, HTTP/1.1 and HTTP/2 over TLS, uploads in chunks, resumed downloads, an
# interrupted one, a server that closes.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=8200
h2_port=8201

main() {
    app curl "$@"
    packages curl nginx openssl
    isolate
    say "version: $(curl --version | head -1)"
    prepare
    for form in "${forms[@]}"; do
        start_server
        downloads
        uploads
        endings
        stop server QUIT
        rode server
        rode client
    done
    same parallel http2 resumed chunked closed
    finish
}

prepare() {
    local i
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/data/key" -out "$work/data/certificate" \
        -subj /CN=localhost -days 2 2>/dev/null
    mkdir -p "$work/data/www"
    random_file "$work/data/www/large" "$(amount 40 200)"
    for ((i = 0; i < 50; i++)); do
        tail -c "+$((i * 50000 + 1))" "$work/data/www/large" | head -c $((i * 20000 + 1)) >"$work/data/www/$i" || true
    done
}

start_server() {
    local home=$work/data/nginx.$form
    mkdir -p "$home/put" "$home/tmp"
    cat >"$home/nginx.conf" <<EOF
user root;
pid $home/pid;
error_log $home/error.log warn;
daemon off;
events { }
http {
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path $home/tmp;
    server {
        listen $second:$port;
        listen $second:$h2_port ssl http2;
        ssl_certificate $work/data/certificate;
        ssl_certificate_key $work/data/key;
        root $work/data/www;
        location /put/ { root $home; dav_methods PUT; }
        location /close/ { alias $work/data/www/; keepalive_timeout 0; }
    }
}
EOF
    start server nginx -p "$home" -c "$home/nginx.conf"
    await_port "$port"
}

downloads() {
    local url=http://$second:$port out=$work/data/out
    mkdir -p "$out"
    client curl -sS --fail --no-progress-meter --parallel --parallel-max 20 "$url/[0-49]" -o "$out/#1"
    note parallel "$(cd "$out" && sha256sum {0..49} | sum_of /dev/stdin)"
    equal "fifty at once" "$(cd "$out" && sha256sum {0..49} | sum_of /dev/stdin)" \
        "$(cd "$work/data/www" && sha256sum {0..49} | sum_of /dev/stdin)"
    client curl -sS --fail --http2 --insecure --no-progress-meter --parallel "https://$second:$h2_port/[0-49]" -o "$out/#1"
    note http2 "$(cd "$out" && sha256sum {0..49} | sum_of /dev/stdin)"
    head -c 12345678 "$work/data/www/large" >"$work/data/part"
    client curl -sS --fail -C - "$url/large" -o "$work/data/part"
    note resumed "$(sum_of "$work/data/part")"
    equal "a resumed download" "$(sum_of "$work/data/part")" "$(sum_of "$work/data/www/large")"
    rm -r "$out"
}

uploads() {
    # From a pipe: the length is not known, so it goes in chunks.
    client curl -sS --fail -T - "http://$second:$port/put/chunked" <"$work/data/www/large"
    note chunked "$(sum_of "$work/data/nginx.$form/put/chunked")"
    equal "an upload in chunks" "$(sum_of "$work/data/nginx.$form/put/chunked")" "$(sum_of "$work/data/www/large")"
}

endings() {
    local url=http://$second:$port status=0
    # The server closes after each answer: the end of the stream comes right after the data.
    note closed "$(client curl -sS --fail "$url/close/[0-49]" | sum_of /dev/stdin)"
    # The client gives up in the middle; the server must stay in order.
    client curl -sS --fail --limit-rate 1M --max-time 0.5 "$url/large" -o /dev/null 2>/dev/null || status=$?
    equal "a download that is given up" "$status" 28
    equal "the next one" "$(client curl -sS --fail "$url/7" | sum_of /dev/stdin)" "$(sum_of "$work/data/www/7")"
}

main "$@"
