# shellcheck shell=bash
# memcached's own tests: threads, libevent, the text, meta and binary protocols. See compare.sh for what
# a suite is.
# shellcheck disable=SC2034,SC2154 # Between this file, compare.sh and pass.sh.

suite_about="its own tests, Perl and testapp"
suite_ends=two
suite_seconds=7200
source=$cache/memcached/source

suite_install() {
    [[ -e /usr/include/event.h ]] || packages libevent-dev
    have make perl || packages make perl
    if [[ ! -x $source/testapp ]]; then
        [[ -e $source/configure ]] || (debian_source memcached "$source") ||
            not_here "its source is missing"
        if ! build_memcached >"$cache/memcached/build.log" 2>&1; then
            say "memcached was not built: see $cache/memcached/build.log"
            return 1
        fi
    fi
}

# The tests want a server of their own build, with the checks that only it has.
build_memcached() {
    (
        cd "$source" && ./configure && make -j 2 memcached memcached-debug sizes testapp timedrun &&
            mv memcached-debug memcached-debug.real
    )
}

# Tests of the proxy, of TLS and of storage on disks need other builds, and say so by themselves.
suite_units() {
    if [[ -n $quick ]]; then
        printf '%s\n' testapp
        printf 't/%s.t\n' cas flags getset incrdecr issue_61 maxconns noreply quit stats-conns watcher \
            malicious-commands daemonize
        return
    fi
    printf '%s\n' testapp
    (cd "$source" && printf '%s\n' t/*.t) | grep -vE '^t/(whitespace|line-lengths)\.t$'
}

suite_run() {
    local unit log status
    cd "$source" || return 1
    mkdir -p "$out/logs"
    local preload=''
    if has_library server; then
        preload=$library
    fi
    # A server that tells of Unix sockets is tested by these.
    cat >memcached-debug <<EOF
#!/bin/sh
[ "\$*" != -h ] || { "$PWD/memcached-debug.real" -h | grep -v unix-socket; exit; }
LD_PRELOAD=$preload exec "$PWD/memcached-debug.real" "\$@"
EOF
    chmod +x memcached-debug
    for unit in "$@"; do
        log=$out/logs/${unit//\//-}
        if [[ $unit == testapp ]]; then
            status=0
            under client timeout -k 10 300 ./testapp >"$log" 2>&1 || status=$?
            awk 'BEGIN { OFS = "\t" } /^(not )?ok [0-9]+ - / {
                name = $0; sub(/^(not )?ok [0-9]+ - /, "", name)
                print /^ok/ ? (/SKIP/ ? "skip" : "pass") : "fail", "testapp", name
            }' "$log" >>"$out/results"
            in_time "$unit" "$status"
        else
            run_file "$unit" "$log"
        fi
    done
}

# A file as a whole: what its tests are called depends on ports and times.
run_file() {
    if ! under client timeout -k 10 300 perl "$1" >"$2" 2>&1; then
        result fail "$1" "$1"
    elif grep -qiE '^1\.\.0|# *skip' "$2" && ! grep -q '^ok ' "$2"; then
        result skip "$1" "$1"
    elif grep -q '^not ok' <(grep -v '# TODO' "$2"); then
        result fail "$1" "$1"
    else
        result pass "$1" "$1"
    fi
}
