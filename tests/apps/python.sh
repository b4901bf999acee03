#!/usr/bin/env bash
# Python: asyncio on its own event loop and on uvloop (from PyPI, in a virtual environment), and
# blocking sockets with threads.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app python "$@"
    packages python3 python3-venv openssl
    venv=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/viaduct-tests/uvloop
    make_venv
    isolate
    say "version: $(/usr/bin/python3 --version)"
    random_file "$work/data/file" 20
    local uvloop=yes server=server
    if ! "$venv/bin/python3" -c 'import uvloop' 2>/dev/null; then
        skip "uvloop: could not be installed from PyPI"
        uvloop=
    fi
    for form in "${forms[@]}"; do
        exchange asyncio /usr/bin/python3
        threads
        rode server
        rode client
        # libuv waits by epoll, but tells epoll by io_uring what to wait for, which the library cannot
        # follow: it leaves the whole process alone.
        if [[ -n $uvloop ]]; then
            server="server-uvloop"
            exchange uvloop "$venv/bin/python3"
            server=server
            stayed_plain server-uvloop
        fi
    done
    same digest_asyncio digest_threads
    [[ -z $uvloop ]] || same digest_uvloop
    if [[ -n $measure ]]; then
        figures asyncio /usr/bin/python3
    fi
    finish
}

# Outside the namespace, where there is a network. Without one the part is skipped.
make_venv() {
    [[ -z ${VIADUCT_APPS_INSIDE:-} && ! -e $venv/done ]] || return 0
    mkdir -p "$(dirname -- "$venv")"
    if /usr/bin/python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check uvloop; then
        touch "$venv/done"
    fi >&2
}

# exchange LOOP PYTHON
exchange() {
    start "$server" "$2" "$here/programs/asyncio_echo.py" serve "$1" 7400
    await_port 7400
    client "$2" "$here/programs/asyncio_echo.py" work "$1" 7400 20 "$(amount 50 200)" "$(amount 500000 5000000)" \
        >"$work/answers" || true
    note "digest_$1" "$(grep digest "$work/answers" || true)"
    stop "$server"
}

threads() {
    start server /usr/bin/python3 "$here/programs/threads_echo.py" serve 7401
    await_port 7401
    note digest_threads "$(client /usr/bin/python3 "$here/programs/threads_echo.py" work 7401 "$work/data/file")"
    stop server
}

rate() {
    local at=7402
    [[ $form == plain ]] || at=7403
    client "$2" "$here/programs/asyncio_echo.py" work "$1" "$at" 1 1000 1000 | awk '/^exchanges/ { print $2 }'
}

# figures LOOP PYTHON
figures() {
    form=plain
    start server "$2" "$here/programs/asyncio_echo.py" serve "$1" 7402
    form=accelerated
    start server2 "$2" "$here/programs/asyncio_echo.py" serve "$1" 7403
    await_port 7402
    await_port 7403
    figure "$1, echo of 100 B" "exchanges/s" rate "$1" "$2"
    stop server
    stop server2
}

main "$@"
