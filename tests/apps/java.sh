#!/usr/bin/env bash
# Java 17: a server on NIO's Selector; clients on blocking channels, on sockets with time limits, and
# on a Selector with FileChannel.transferTo.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app java "$@"
    packages openjdk-17-jdk-headless openssl
    isolate
    local homes=(/usr/lib/jvm/java-17-openjdk-*)
    PATH=${homes[0]}/bin:$PATH
    say "version: $(java -version 2>&1 | head -1)"
    javac -d "$work/bin" "$here/programs/NioEcho.java"
    random_file "$work/data/file" "$(amount 5 100)"
    for form in "${forms[@]}"; do
        start server java -cp "$work/bin" NioEcho serve 7600
        await_port 7600
        client java -cp "$work/bin" NioEcho work 7600 8 "$(amount 100 1000)" "$work/data/file" >"$work/answers" || true
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
    local at=7610
    [[ $form == plain ]] || at=7620
    client java -cp "$work/bin" NioEcho work "$at" 1 1000 "$here/lib.sh" | awk '/^exchanges/ { print $2 }'
}

figures() {
    form=plain
    start server java -cp "$work/bin" NioEcho serve 7610
    form=accelerated
    start server2 java -cp "$work/bin" NioEcho serve 7620
    await_port 7610
    await_port 7620
    figure "echo of 100 B" "exchanges/s" rate
    stop server
    stop server2
}

main "$@"
