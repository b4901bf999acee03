#!/usr/bin/env bash
# Erlang: gen_tcp in passive, active and once modes, with and without framing; the emulator's own
# polling threads wait by epoll.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app erlang "$@"
    packages erlang-base erlang-crypto
    isolate
    program=$here/programs/gen_tcp_echo.escript
    say "version: Erlang/OTP $(erl -noshell -eval 'io:format("~s", [erlang:system_info(otp_release)]), halt().')"
    for form in "${forms[@]}"; do
        start server escript "$program" serve 7700
        await_port 7700
        client escript "$program" work 7700 "$(amount 100 1000)" >"$work/answers" || true
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
    local at=7710
    [[ $form == plain ]] || at=7720
    client escript "$program" work "$at" 1000 | awk '/^exchanges/ { print $2 }'
}

figures() {
    form=plain
    start server escript "$program" serve 7710
    form=accelerated
    start server2 escript "$program" serve 7720
    await_port 7710
    await_port 7720
    figure "echo of 100 B" "exchanges/s" rate
    stop server
    stop server2
}

main "$@"
