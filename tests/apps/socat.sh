#!/usr/bin/env bash
# socat: a forking server that runs a program for each connection, one-way transfers with half-closed
# connections, and a chain of relays.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app socat "$@"
    packages socat openssl
    isolate
    say "version: $(socat -V | sed -n 2p)"
    random_file "$work/data/large" "$(amount 40 200)"
    for form in "${forms[@]}"; do
        one_way
        echoes
        chain
        rode server 50 among
        rode client
    done
    same sent received echoed many chained
    finish
}

# To a file and from a file; the end of the stream is the end of the transfer.
one_way() {
    start server socat -u TCP-LISTEN:7100,bind="$second",reuseaddr "CREATE:$work/data/copy"
    await_port 7100
    client socat -u "OPEN:$work/data/large" "TCP:$second:7100"
    await "the receiver's end" ended server || true
    note sent "$(sum_of "$work/data/copy")"
    start server socat -u "OPEN:$work/data/large" TCP-LISTEN:7101,bind="$second",reuseaddr
    await_port 7101
    client socat -u "TCP:$second:7101" "CREATE:$work/data/copy"
    note received "$(sum_of "$work/data/copy")"
    await "the sender's end" ended server || true
    unset "pid_of[server]"
}

ended() {
    ! kill -0 "${pid_of[$1]}" 2>/dev/null
}

echoes() {
    local turn
    start server socat TCP-LISTEN:7102,bind=127.0.0.1,reuseaddr,fork EXEC:cat
    await_port 7102
    client socat -t 60 STDIO TCP:127.0.0.1:7102 <"$work/data/large" >"$work/data/copy"
    note echoed "$(sum_of "$work/data/copy")"
    equal "there and back" "$(sum_of "$work/data/copy")" "$(sum_of "$work/data/large")"
    stop server
    start server socat TCP-LISTEN:7103,bind=127.0.0.1,reuseaddr,fork PIPE
    await_port 7103
    note many "$(for ((turn = 0; turn < 20; turn++)); do
        head -c $((turn * 20000)) "$work/data/large" | client socat -t 60 STDIO TCP:127.0.0.1:7103 | sum_of /dev/stdin
    done | sum_of /dev/stdin)"
    stop server
}

chain() {
    start server socat TCP-LISTEN:7104,bind=127.0.0.1,reuseaddr,fork EXEC:cat
    start server-relay socat TCP-LISTEN:7105,bind=127.0.0.1,reuseaddr,fork TCP:127.0.0.1:7104
    start server-relay2 socat TCP-LISTEN:7106,bind="$second",reuseaddr,fork TCP:127.0.0.1:7105
    await_port 7104
    await_port 7105
    await_port 7106
    client socat -t 60 STDIO "TCP:$second:7106" <"$work/data/large" >"$work/data/copy"
    note chained "$(sum_of "$work/data/copy")"
    equal "through two relays" "$(sum_of "$work/data/copy")" "$(sum_of "$work/data/large")"
    stop server-relay2
    stop server-relay
    stop server
}

main "$@"
