# shellcheck shell=bash
# PostgreSQL's regression tests over 127.0.0.1: a process for each connection, latches on epoll, COPY,
# up to twenty sessions at a time. See compare.sh for what a suite is.
# shellcheck disable=SC2034,SC2154 # Between this file, compare.sh and pass.sh.

suite_about="pg_regress over 127.0.0.1"
suite_ends=two
suite_seconds=3600
# At once would be in the postmaster, which hands each connection to a child of its own: two processes
# would claim it, and it would stay on TCP.
suite_upgrade_after=2
version=15
bindir=/usr/lib/postgresql/$version/bin
regress=/usr/lib/postgresql/$version/lib/pgxs/src/test/regress/pg_regress
headers=/usr/include/postgresql/$version/server
source=$cache/postgresql/source
work=$cache/postgresql/work

suite_install() {
    if [[ ! -x $bindir/initdb || ! -x $regress || ! -e $headers/postgres.h ]]; then
        packages "postgresql-$version" "postgresql-server-dev-$version"
        # Debian starts a server; the tests start their own.
        [[ ! -d /run/systemd/system ]] || as_root systemctl disable --now postgresql
    fi
    [[ -e $source/src/test/regress/parallel_schedule ]] ||
        (debian_source "postgresql-$version" "$source") || not_here "its source is missing"
    if [[ ! -e $work/regress.so ]]; then
        mkdir -p "$work"
        cc -O2 -shared -fPIC -I"$headers" \
            "$source/src/test/regress/regress.c" -o "$work/regress.so" || return 1
    fi
}

# The tests build on each other and run as a whole.
suite_units() {
    echo regress
}

suite_run() {
    local home i
    # The server refuses to run as root. Its files lie where that user can reach them.
    home=$(mktemp -d)
    chown postgres "$home"
    as_postgres initdb -D "$home/data" --no-locale --encoding UTF8 --auth trust >"$out/initdb.log" 2>&1 ||
        return 1
    cp -a "$source/src/test/regress" "$home/regress"
    cp "$work/regress.so" "$home/regress"
    chown -R postgres "$home/regress"
    under server runuser -u postgres -- "$bindir/postgres" -D "$home/data" \
        -c listen_addresses=127.0.0.1 -c port=54321 -c unix_socket_directories= -c fsync=off \
        >"$out/server.log" 2>&1 &

    for ((i = 0; i < 100; i++)); do
        as_postgres pg_isready -q -h 127.0.0.1 -p 54321 && break
        sleep 0.2
    done
    (
        cd "$home/regress" &&
            under client timeout -k 10 1500 runuser -u postgres -- "$regress" --host=127.0.0.1 \
                --port=54321 --user=postgres --bindir="$bindir" \
                --inputdir="$PWD" --outputdir="$PWD" --dlpath="$PWD" --max-concurrent-tests=20 \
                --schedule=parallel_schedule
    ) >"$out/regress.log" 2>&1
    cp "$home/regress/regression.diffs" "$out" 2>/dev/null
    as_postgres pg_ctl -D "$home/data" -m fast stop >"$out/stop.log" 2>&1
    awk 'BEGIN { OFS = "\t" }
        match($0, /^(test|    ) +[a-z0-9_]+ +\.\.\. /) {
            name = $1 == "test" ? $2 : $1
            rest = substr($0, RLENGTH + 1)
            print rest ~ /^ok/ ? "pass" : "fail", "regress", name
        }' "$out/regress.log" >>"$out/results"
    rm -rf "$home"
}

as_postgres() {
    local program=$1
    shift
    runuser -u postgres -- "$bindir/$program" "$@"
}
