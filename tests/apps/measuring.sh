#!/usr/bin/env bash
# The programs by which people measure networks: iperf3, sockperf, qperf, nuttcp, NetPIPE. Each runs to
# completion, and more than 99 % of the bytes of each go by ring.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app measuring "$@"
    packages iperf3 sockperf qperf nuttcp netpipe-tcp
    isolate
    seconds=$(amount 1 5)
    for form in plain accelerated; do
        iperf "one stream" -P 1
        iperf "one stream, backwards" -P 1 -R
        iperf "four streams" -P 4
        iperf "four streams, backwards" -P 4 -R
        sock ping-pong --msg-size 14 --mps 100000
        sock throughput --msg-size 1024
        qperf_run tcp_bw
        qperf_run tcp_lat
        nuttcp_run
        netpipe
    done
    finish
}

# ran WHAT SIDE STATUS: it went to its end, and by ring where that is expected. Counters of earlier
# programs are put away.
ran() {
    check "$1: runs to its end" test "$3" -eq 0
    side=client
    rode client "$(amount 50 90)"
    rm -f "$work/counts/$form".*
}

iperf() {
    local what=$1 status=0
    shift
    start server iperf3 -s -1 -p 5201
    await_port 5201
    client iperf3 -c 127.0.0.1 -p 5201 -t "$seconds" "$@" >"$work/out" 2>&1 || status=$?
    say "$form: iperf3, $what: $(grep receiver "$work/out" | tail -n 1 | tr -s ' ')"
    stop server
    ran "iperf3, $what" client "$status"
}

sock() {
    local mode=$1 status=0
    shift
    start server sockperf server --tcp -i 127.0.0.1 -p 5202
    await_port 5202
    client sockperf "$mode" --tcp -i 127.0.0.1 -p 5202 -t "$seconds" "$@" >"$work/out" 2>&1 || status=$?
    say "$form: sockperf $mode: $(grep -E 'Summary' "$work/out" | tail -n 1 | sed 's/.*Summary: //')"
    stop server INT
    ran "sockperf $mode" client "$status"
}

qperf_run() {
    local status=0
    start server qperf --listen_port 5203
    await_port 5203
    client qperf --listen_port 5203 --time "$seconds" 127.0.0.1 "$1" >"$work/out" 2>&1 || status=$?
    say "$form: qperf $1: $(tail -n 1 "$work/out" | tr -s ' ')"
    stop server
    ran "qperf $1" client "$status"
}

nuttcp_run() {
    local status=0
    start server nuttcp -S --nofork -P 5204
    await_port 5204
    client nuttcp -P 5204 -p 5205 -T "$seconds" 127.0.0.1 >"$work/out" 2>&1 || status=$?
    say "$form: nuttcp: $(tail -n 1 "$work/out" | tr -s ' ')"
    stop server
    ran nuttcp client "$status"
}

netpipe() {
    local status=0
    cd "$work/data"
    start server NPtcp -u "$(amount 65536 4194304)"
    await_port 5002
    client NPtcp -h 127.0.0.1 -u "$(amount 65536 4194304)" >"$work/out" 2>&1 || status=$?
    say "$form: NetPIPE: $(tail -n 1 "$work/out" | tr -s ' ')"
    stop server
    ran NetPIPE client "$status"
}

main "$@"
