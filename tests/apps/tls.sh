#!/usr/bin/env bash
# TLS over rings: openssl s_server with s_client and curl, and stunnel in front of a plain server.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app tls "$@"
    packages stunnel4 openssl curl nginx
    isolate
    say "version: $(openssl version), $(stunnel -version 2>&1 | head -1)"
    prepare
    for form in "${forms[@]}"; do
        openssl_pair
        tunnel
        rode server 50 among
        rode client
    done
    same downloaded sent tunnelled uploaded
    finish
}

prepare() {
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/data/key" -out "$work/data/certificate" \
        -subj /CN=localhost -days 2 2>/dev/null
    mkdir "$work/data/www"
    random_file "$work/data/www/large" "$(amount 40 200)"
}

openssl_pair() {
    local protocol hold
    # -WWW serves files of the present directory.
    cd "$work/data/www"
    start server openssl s_server -accept "$second:7300" -cert ../certificate -key ../key -WWW -quiet
    cd "$here"
    await_port 7300
    for protocol in tlsv1.2 tlsv1.3; do
        client curl -sS --fail --insecure "--$protocol" "https://$second:7300/large" -o "$work/data/got"
        equal "a download by $protocol" "$(sum_of "$work/data/got")" "$(sum_of "$work/data/www/large")"
    done
    note downloaded "$(sum_of "$work/data/got")"
    stop server
    # One way, from s_client's standard input to s_server's output.
    # s_server leaves when its standard input ends: give it one that does not.
    [[ -p $work/data/endless ]] || mkfifo "$work/data/endless"
    exec {hold}<>"$work/data/endless"
    input=$work/data/endless start server-receive openssl s_server -accept 127.0.0.1:7301 -cert "$work/data/certificate" -key "$work/data/key" \
        -quiet -naccept 1
    await_port 7301
    # Hexadecimal: s_client would take a Q at the beginning of a piece for a command.
    head -c "$(amount 10000000 30000000)" "$work/data/www/large" | od -An -v -tx1 >"$work/data/text"
    client openssl s_client -connect 127.0.0.1:7301 -quiet -no_ign_eof <"$work/data/text" >/dev/null 2>&1
    await "the server's end" ended server-receive || true
    exec {hold}>&-
    unset "pid_of[server-receive]"
    note sent "$(sum_of "$(log_of server-receive)")"
    equal "sent by s_client" "$(grep -av '^ERROR$' "$(log_of server-receive)" | sum_of /dev/stdin)" "$(sum_of "$work/data/text")"
}

ended() {
    ! kill -0 "${pid_of[$1]}" 2>/dev/null
}

# Client -- TLS --> stunnel -- plain --> nginx.
tunnel() {
    local home=$work/data/$form turn
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
        listen 127.0.0.1:7302;
        root $work/data/www;
        location /put/ { root $home; dav_methods PUT; }
    }
}
EOF
    cat >"$home/stunnel.conf" <<EOF
foreground = yes
pid =
[https]
accept = $second:7303
connect = 127.0.0.1:7302
cert = $work/data/certificate
key = $work/data/key
EOF
    start server-behind nginx -p "$home" -c "$home/nginx.conf"
    start server stunnel "$home/stunnel.conf"
    await_port 7302
    await_port 7303
    client curl -sS --fail --insecure "https://$second:7303/large" -o "$work/data/got"
    note tunnelled "$(sum_of "$work/data/got")"
    equal "a download through stunnel" "$(sum_of "$work/data/got")" "$(sum_of "$work/data/www/large")"
    client curl -sS --fail --insecure -T "$work/data/www/large" "https://$second:7303/put/large"
    note uploaded "$(sum_of "$home/put/large")"
    equal "an upload through stunnel" "$(sum_of "$home/put/large")" "$(sum_of "$work/data/www/large")"
    for ((turn = 0; turn < 10; turn++)); do
        client curl -sS --fail --insecure -r "$turn-$((turn * 1000 + 100))" "https://$second:7303/large"
    done >"$work/data/got"
    equal "ten short connections" "$(stat -c %s "$work/data/got")" "$((10 * 101 + 1000 * 45 - 45))"
    stop server
    stop server-behind QUIT
}

main "$@"
