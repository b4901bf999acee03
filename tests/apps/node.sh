#!/usr/bin/env bash
# Node.js: an HTTP server with keep-alive and streams, its client, and net sockets with half-close.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app node "$@"
    packages nodejs
    isolate
    say "version: node $(node --version)"
    for form in "${forms[@]}"; do
        start server node "$here/programs/http_echo.js" serve 7500
        await_port 7501
        client node "$here/programs/http_echo.js" work 7500 "$(amount 500 3000)" "$(amount 5000000 50000000)" \
            >"$work/answers" || true
        note digest "$(grep digest "$work/answers" || true)"
        stop server
        rode server
        rode client
    done
    same digest
    [[ -z $measure ]] || figures
    finish
}

rate() {
    local at=7510
    [[ $form == plain ]] || at=7520
    client node "$here/programs/http_echo.js" work "$at" 5000 1000 | awk '/^requests/ { print $2 }'
}

figures() {
    form=plain
    start server node "$here/programs/http_echo.js" serve 7510
    form=accelerated
    start server2 node "$here/programs/http_echo.js" serve 7520
    await_port 7511
    await_port 7521
    figure "HTTP keep-alive, 1 connection" "requests/s" rate
    stop server
    stop server2
}

main "$@"
