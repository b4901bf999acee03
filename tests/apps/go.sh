#!/usr/bin/env bash
# Go: a program that never calls libc's socket functions must stay plain and correct, as server, as
# client, with an accelerated program at its far end, and linked with libc (cgo).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app go "$@"
    packages golang-go gcc libc6-dev socat openssl
    isolate
    say "version: $(go version)"
    make_programs
    random_file "$work/data/large" "$(amount 20 100)"
    for form in "${forms[@]}"; do
        local kind
        for kind in static cgo; do
            start "server-$kind" "$work/bin/echo-$kind" serve 7800
            await_port 7800
            client "$work/bin/echo-$kind" work 7800 "$(amount 100 1000)" >"$work/answers" || true
            note "digest_$kind" "$(grep digest "$work/answers" || true)"
            client socat -t 60 STDIO "TCP:$second:7800" <"$work/data/large" >"$work/data/echoed"
            note "socat_$kind" "$(sum_of "$work/data/echoed")"
            stop "server-$kind"
            stayed_plain "server-$kind"
        done
        stayed_plain client
    done
    same digest_static digest_cgo socat_static socat_cgo
    finish
}

make_programs() {
    export GOCACHE=$work/data/go-cache GOFLAGS=-mod=mod GO111MODULE=off
    CGO_ENABLED=0 go build -o "$work/bin/echo-static" "$here/programs/echo.go"
    # With libc in the program; its sockets still do without.
    mkdir "$work/data/cgo"
    cp "$here/programs/echo.go" "$work/data/cgo/"
    printf 'package main\n\n// #include <stdlib.h>\nimport "C"\n\nvar _ = C.EXIT_SUCCESS\n' >"$work/data/cgo/libc.go"
    CGO_ENABLED=1 go build -o "$work/bin/echo-cgo" "$work/data/cgo/echo.go" "$work/data/cgo/libc.go"
}

main "$@"
