# shellcheck shell=bash
# libuv's own tests, one at a time: epoll, shutdown and close in every state, fork, descriptors passed
# between processes. See compare.sh for what a suite is.
# shellcheck disable=SC2034,SC2154 # Between this file, compare.sh and pass.sh.

suite_about="its own tests, one at a time"
suite_ends=one
suite_seconds=3600

# Debian's is of the time before libuv used io_uring for epoll_ctl.
source=$cache/$name/source
program=$source/build/uv_run_tests

suite_install() {
    have cmake make || packages cmake make
    [[ -e $source ]] || (get_source) || not_here "its source is missing"
    [[ -x $program ]] && return
    if ! build_libuv "$source" "${program%/*}" >"$cache/$name/build.log" 2>&1; then
        say "libuv was not built: see $cache/$name/build.log"
        return 1
    fi
}

get_source() {
    debian_source libuv1 "$source"
}

build_libuv() {
    cmake -S "$1" -B "$2" -DBUILD_TESTING=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo &&
        cmake --build "$2" --parallel 2 --target uv_run_tests
}

# A unit is a test; behind it the list names programs that it starts.
suite_units() {
    local all
    all=$(UV_RUN_AS_ROOT=1 "$program" --list | awk 'NF { print $1 }' | sort -u)
    if [[ -n $quick ]]; then
        # What moves bytes over TCP, and the ways to wait for them.
        grep -E '^(tcp_|poll_|shutdown_|ping_pong|pipe_ping_pong|delayed_accept|connection_fail|multiple_listen|callback_stack|getsockname_tcp|fork_|socket_buffer|eof_|queue_)' <<<"$all" |
            grep -vE '^(tcp_connect_timeout|tcp_write_in_a_row|tcp_local_connect_timeout)$'
    else
        printf '%s\n' "$all"
    fi
}

suite_run() {
    local unit line
    mkdir -p "$out/logs"
    # The tests of files look for theirs here.
    cd "$source" || return 1
    for unit in "$@"; do
        UV_RUN_AS_ROOT=1 under client timeout -k 10 120 "$program" "$unit" \
            >"$out/logs/$unit" 2>&1
        line=$(grep -E -m 1 "^(not )?ok [0-9]+ - " "$out/logs/$unit")
        case $line in
            "ok "*"# SKIP"*) result skip "$unit" "$unit" ;;
            "ok "*) result pass "$unit" "$unit" ;;
            *) result fail "$unit" "$unit" ;;
        esac
    done
}
