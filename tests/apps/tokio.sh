#!/usr/bin/env bash
# Rust's tokio: an echo server on two worker threads, and its client. The crate is built from the
# registry, outside the workspace.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app tokio "$@"
    packages gcc libc6-dev
    program=${CARGO_TARGET_DIR:-$root/target}/apps/release/tokio-echo
    build
    isolate
    say "version: tokio $(awk '/^name = "tokio"$/ { getline; print $3 }' "$here/tokio/Cargo.lock")"
    for form in "${forms[@]}"; do
        start server "$program" serve 7900
        await_port 7900
        client "$program" work 7900 8 "$(amount 200 2000)" >"$work/answers" || true
        note digest "$(grep digest "$work/answers" || true)"
        stop server
        rode server
        rode client
    done
    same digest
    [[ -z $measure ]] || figures
    finish
}

# Outside the namespace, where there is a network.
build() {
    [[ -z ${VIADUCT_APPS_INSIDE:-} ]] || return 0
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    have cargo || skip_all "no cargo"
    cargo build --quiet --release --locked --manifest-path "$here/tokio/Cargo.toml" \
        --target-dir "${CARGO_TARGET_DIR:-$root/target}/apps" >&2 || skip_all "the crate could not be built"
}

rate() {
    local at=7910
    [[ $form == plain ]] || at=7920
    client "$program" work "$at" 1 3000 | awk '/^exchanges/ { print $2 }'
}

figures() {
    form=plain
    start server "$program" serve 7910
    form=accelerated
    start server2 "$program" serve 7920
    await_port 7910
    await_port 7920
    figure "echo of 100 B" "exchanges/s" rate
    stop server
    stop server2
}

main "$@"
