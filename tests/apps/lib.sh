# shellcheck shell=bash disable=SC2034
# What the scripts of this directory share: packages, a network namespace with a daemon of its own,
# the forms in which a program runs, counters, checks and figures. Sourced, never run.
#
# A script reads like this:
#
#   app redis "$@"                    its name and its options
#   packages redis-server redis-tools what it needs, or it is skipped
#   isolate                           from here on in a namespace of its own
#   for form in "${forms[@]}"; do     plain, accelerated, mixed-server, mixed-client
#       start server PROGRAM...       in the background, under the library if the form says so
#       client PROGRAM...             to its end, with a time limit
#       stop server
#       rode client                   the bytes went by ring, if both sides have the library
#   done
#   same ANSWER                       what the forms noted under that name is equal
#   finish
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=../../scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

# The address that the servers listen on, besides 127.0.0.1: one of the namespace alone. On two hosts, the clients'
# host has the other one.
second=10.77.0.1
far=10.77.0.2
peers=127.0.0.0/8,10.77.0.0/24,::1

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

passed=0
failed=0
skipped=0

# app NAME OPTIONS...: what the script is called, and how thoroughly it works.
app() {
    name=$1
    shift
    quick=
    measure=yes
    runs=3
    hosts=
    forms=(plain accelerated mixed-server mixed-client)
    arguments=("$@")
    while [[ $# -gt 0 ]]; do
        case $1 in
            --quick)
                quick=yes
                measure=
                forms=(plain accelerated)
                ;;
            --no-figures) measure= ;;
            --two-hosts)
                hosts=yes
                measure=
                ;;
            --runs)
                [[ ${2:-} =~ ^[0-9]+$ ]] || die "--runs needs a number"
                runs=$2
                shift
                ;;
            -h | --help)
                comment_at_top "$0"
                printf '\n%s\n' "Options: --quick (little work, two forms, no figures), --no-figures," \
                    "--runs N (measurements of each form, in turn; default 3), --two-hosts (clients on a host of" \
                    "their own, each host with a daemon, and a link between them; no figures)"
                exit 0
                ;;
            *) die "no option \"$1\"; see --help" ;;
        esac
        shift
    done
    [[ -n ${VIADUCT_APPS_INSIDE:-} ]] || trap stop_looking EXIT
}

# packages NAME...: installs what is missing of these Debian packages, or skips the script. A daemon
# that a package would start is kept from starting where the machine has no rule of its own yet.
packages() {
    [[ -z ${VIADUCT_APPS_INSIDE:-} ]] || return 0
    local package missing=()
    for package in "$@" iproute2 util-linux jq; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    local rule=/usr/sbin/policy-rc.d ours=
    if [[ ! -e $rule ]]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$rule" >/dev/null
        as_root chmod +x "$rule"
    fi
    local status=0
    (apt_install "${missing[@]}") || status=$?
    [[ -z $ours ]] || as_root rm -f "$rule"
    [[ $status -eq 0 ]] || skip_all "packages missing: ${missing[*]}"
}

# isolate: starts the script again in a network namespace where nothing but its own processes can be
# reached, and in a pid namespace, so that all of them end with it.
isolate() {
    if [[ -z ${VIADUCT_APPS_INSIDE:-} ]]; then
        local file
        for file in viaduct viaductd libviaduct.so; do
            [[ -e $(built "$file") ]] || die "$(built "$file") is missing: run scripts/apps, or" \
                "cargo build --release --workspace --bins && cargo build --release -p viaduct-preload"
        done
        as_root unshare --net --pid --fork --mount-proc true 2>/dev/null ||
            skip_all "no right to make a network namespace"
        trap - EXIT
        local -a sudo=()
        [[ $EUID -eq 0 ]] || sudo=(sudo --preserve-env --)
        exec "${sudo[@]}" env VIADUCT_APPS_INSIDE=yes PATH="$PATH" \
            timeout --kill-after=10 "${VIADUCT_APPS_LIMIT:-1200}" \
            unshare --net --pid --fork --kill-child --mount-proc "$0" "${arguments[@]}"
    fi
    ip link set lo up
    # Whoever runs the tests may have a library of their own in the environment.
    unset LD_PRELOAD VIADUCT_PEERS VIADUCT_SOCKET VIADUCT_UPGRADE_AFTER VIADUCT_SPIN_US
    work=$(mktemp -d /tmp/viaduct-app.XXXXXX)
    trap tidy EXIT
    chmod 755 "$work"
    mkdir "$work/bin" "$work/notes" "$work/counts" "$work/data"
    # Where users without rights in the checkout can read them.
    cp "$(built viaduct)" "$(built viaductd)" "$(built libviaduct.so)" "$work/bin/"
    declare -gA pid_of=()
    form=none
    if [[ -n $hosts ]]; then
        make_far_host
        start_daemon daemon "$second" "$far"
        start_daemon client-daemon "$far" "$second"
    else
        ip address add "$second/24" dev lo
        start_daemon daemon
    fi
}

# A network namespace for the clients, with a link to this one.
make_far_host() {
    unshare --net sleep infinity &
    pid_of[far]=$!
    await "the second host" is_apart
    ip link add near type veth peer name far netns "${pid_of[far]}"
    ip address add "$second/24" dev near
    ip link set near up
    at_far ip address add "$far/24" dev far
    at_far ip link set lo up
    at_far ip link set far up
}

is_apart() {
    [[ $(readlink "/proc/${pid_of[far]}/ns/net") != "$(readlink /proc/self/ns/net)" ]]
}

# is_far SIDE: whether it is on the second host.
is_far() {
    [[ -n $hosts && $1 == client* ]]
}

# at_far COMMAND...: on the second host.
at_far() {
    nsenter --net="/proc/${pid_of[far]}/ns/net" "$@"
}

# start_daemon SIDE [ADDRESS FAR_ADDRESS]: with a link between the addresses, if there are any.
start_daemon() {
    local side=$1 inside=()
    : >"$work/$side.toml"
    if [[ $# -gt 1 ]]; then
        printf '[[link]]\nname = "lan"\ndriver = "udp"\nbind = "%s:7447"\npeers = [{ prefix = "%s/32", backend = "%s:7447" }]\n' \
            "$2" "$3" "$3" >"$work/$side.toml"
    fi
    is_far "$side" && inside=(at_far)
    "${inside[@]}" "$work/bin/viaductd" --socket "$(socket_of "$side")" --config "$work/$side.toml" --log warn \
        >"$work/$side.log" 2>&1 &
    pid_of[$side]=$!
    await "the daemon" test -S "$(socket_of "$side")" || die "no daemon: $(cat "$work/$side.log")"
}

# socket_of SIDE: that of its host's daemon.
socket_of() {
    if is_far "$1"; then
        printf '%s\n' "$work/far.sock"
    else
        printf '%s\n' "$work/viaductd.sock"
    fi
}

tidy() {
    local status=$? side
    for side in "${!pid_of[@]}"; do
        kill -KILL "${pid_of[$side]}" 2>/dev/null || true
    done
    if [[ -n ${VIADUCT_APPS_KEEP:-} ]]; then
        say "kept: $work"
    else
        rm -rf "$work"
    fi
    # An abort in the middle is a failure that "finish" has not counted.
    if [[ -z ${finished:-} ]]; then
        printf 'FAILED %s: ended early in form %s (status %d)\n' "$name" "${form:-none}" "$status"
        printf '%d passed, %d failed, %d skipped\n' "$passed" $((failed + 1)) "$skipped"
        exit 1
    fi
}

# Before the namespace nothing has run yet; a script that ends there has said why.
stop_looking() {
    local status=$?
    if [[ $status -ne 0 && -z ${finished:-} ]]; then
        printf 'FAILED %s: could not start (status %d)\n0 passed, 1 failed, 0 skipped\n' "$name" "$status"
    fi
}

# skip_all WHY: nothing of this script can run here.
skip_all() {
    printf 'skipped %s: %s\n0 passed, 0 failed, 1 skipped\n' "$name" "$1"
    finished=yes
    exit 0
}

finish() {
    stop daemon
    stop client-daemon
    stop far
    finished=yes
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    [[ $failed -eq 0 ]]
}

pass() {
    passed=$((passed + 1))
    printf 'ok %s: %s\n' "$name" "$1"
}

fail() {
    failed=$((failed + 1))
    printf 'FAILED %s: %s\n' "$name" "$1"
}

skip() {
    skipped=$((skipped + 1))
    printf 'skipped %s: %s\n' "$name" "$1"
}

# check WHAT COMMAND...: passes if the command does.
check() {
    local what=$1
    shift
    if "$@" >/dev/null; then
        pass "$form: $what"
    else
        fail "$form: $what ($*)"
    fi
}

# equal WHAT LEFT RIGHT
equal() {
    if [[ $2 == "$3" ]]; then
        pass "$form: $1"
    else
        fail "$form: $1: \"$2\" is not \"$3\""
    fi
}

# await WHAT COMMAND...: until the command succeeds, for `patience` seconds at most (default 20).
await() {
    local what=$1 turn
    shift
    for ((turn = 0; turn < 20 * ${patience:-20}; turn++)); do
        if "$@" >/dev/null 2>&1; then
            return 0
        fi
        sleep 0.05
    done
    say "$name: gave up waiting for $what"
    return 1
}

listens() {
    [[ -n $(ss -Hltn "sport = :$1") ]]
}

# await_port PORT: until somebody listens there.
await_port() {
    await "port $1" listens "$1" || {
        fail "$form: nobody listens on port $1"
        return 1
    }
}

# under SIDE: whether that side has the library in this form.
under() {
    case $form in
        accelerated) true ;;
        mixed-server) [[ $1 == server* ]] ;;
        mixed-client) [[ $1 == client* ]] ;;
        *) false ;;
    esac
}

# prefix_for SIDE: sets `prefix` to what comes before a command of that side. Each run under the
# library leaves its counters in a file of its own.
prefix_for() {
    prefix=()
    if under "$1"; then
        local number=0
        while [[ -e $work/counts/$form.$1.$number ]]; do
            number=$((number + 1))
        done
        : >"$work/counts/$form.$1.$number"
        [[ -z ${as_user:-} ]] || chown "$as_user" "$work/counts" "$work/counts/$form.$1.$number"
        prefix=("$work/bin/viaduct" run --library "$work/bin/libviaduct.so"
            --socket "$(socket_of "$1")" --peers "$peers" --upgrade-after "${upgrade_after:-0}"
            --stats-json "$work/counts/$form.$1.$number" --)
    fi
    # Who runs it, where that is not root.
    if [[ -n ${as_user:-} ]]; then
        prefix=(setpriv --reuid "$as_user" --regid "$as_user" --clear-groups
            env "HOME=$work/data" "${prefix[@]}")
    fi
    if is_far "$1"; then
        prefix=(nsenter --net="/proc/${pid_of[far]}/ns/net" "${prefix[@]}")
    fi
}

# command_for SIDE COMMAND...: sets `command`: from the second host, servers have one address only.
command_for() {
    local side=$1
    shift
    command=("$@")
    is_far "$side" && command=("${@//127.0.0.1/$second}")
    return 0
}

# start SIDE COMMAND...: in the background; the side may carry more, as in "server2". The output goes
# to a file that `log_of SIDE` names, the input comes from the file `input`, if that is set.
start() {
    local side=$1 prefix command
    shift
    prefix_for "$side"
    command_for "$side" "$@"
    "${prefix[@]}" "${command[@]}" >"$(log_of "$side")" 2>&1 <"${input:-/dev/null}" &
    pid_of[$side]=$!
}

log_of() {
    printf '%s\n' "$work/$form.$1.log"
}

# stop SIDE [SIGNAL]: asks it to end; what does not within 20 s is killed and counts as failed.
stop() {
    local side=$1 signal=${2:-TERM} pid turn
    pid=${pid_of[$1]:-}
    [[ -n $pid ]] || return 0
    unset "pid_of[$side]"
    kill -"$signal" "$pid" 2>/dev/null || true
    for ((turn = 0; turn < 400; turn++)); do
        if ! kill -0 "$pid" 2>/dev/null; then
            wait "$pid" 2>/dev/null || true
            return 0
        fi
        sleep 0.05
    done
    fail "$form: $side did not end by SIG$signal"
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# client COMMAND...: to its end, under the library if the form says so. `limit` is in seconds, `side`
# the name that it is counted under, if that is not "client".
client() {
    local prefix command
    prefix_for "${side:-client}"
    command_for "${side:-client}" "$@"
    timeout --kill-after=10 "${limit:-120}" "${prefix[@]}" "${command[@]}"
}

# note NAME VALUE: what this form answered, for `same`.
note() {
    printf '%s\n' "$2" >"$work/notes/$1.$form"
}

# same NAME...: every form that noted something under this name noted the same as the plain one.
same() {
    local what file
    form=all
    for what in "$@"; do
        if [[ ! -s $work/notes/$what.plain ]]; then
            fail "$what: the plain form has no answer"
            continue
        fi
        for file in "$work/notes/$what".*; do
            [[ $file != *.plain ]] || continue
            if cmp -s "$file" "$work/notes/$what.plain"; then
                pass "$what: ${file##*.} as plain"
            else
                fail "$what: ${file##*.} \"$(head -c 200 "$file")\"," \
                    "plain \"$(head -c 200 "$work/notes/$what.plain")\""
            fi
        done
    done
}

# counted SIDE FIELD: the sum over what ran on that side in this form.
counted() {
    local file sum=0 value
    for file in "$work/counts/$form.$1".*; do
        [[ -s $file ]] || continue
        value=$(jq -r ".$2 // 0" "$file")
        sum=$((sum + value))
    done
    printf '%d\n' "$sum"
}

# ring_share SIDE: per cent of the bytes of peers' connections that went by ring, with one digit.
ring_share() {
    local ring tcp
    ring=$(($(counted "$1" ring_rx_bytes) + $(counted "$1" ring_tx_bytes)))
    tcp=$(($(counted "$1" tcp_rx_bytes) + $(counted "$1" tcp_tx_bytes)))
    awk -v r="$ring" -v t="$tcp" 'BEGIN { printf "%.1f\n", r + t ? 100 * r / (r + t) : 0 }'
}

# rode SIDE [PER CENT [among]]: where both sides have the library, at least so much went by ring (default
# 50: how much comes before the switch depends on the load); where only one has, nothing did, unless
# the programs of that side talk among themselves as well.
rode() {
    local share ring least=${2:-50} among=${3:-}
    case $form in
        accelerated)
            share=$(ring_share "$1")
            if awk -v s="$share" -v l="$least" 'BEGIN { exit !(s >= l && s > 0) }'; then
                pass "$form: $1: $share % of the bytes by ring, $(counted "$1" upgraded) connections upgraded"
            else
                fail "$form: $1: only $share % of the bytes by ring: $(reasons "$1")"
            fi
            ;;
        mixed-*)
            under "$1" || return 0
            [[ -z $among ]] || return 0
            ring=$(($(counted "$1" ring_rx_bytes) + $(counted "$1" ring_tx_bytes)))
            equal "$1: no byte by ring without the library at the far end" "$ring" 0
            ;;
    esac
}

# told SIDE: what the counters say, where nothing is expected.
told() {
    [[ $form == accelerated ]] || return 0
    printf 'note %s: %s: %s %% of the bytes by ring, %s connections upgraded\n' "$name" "$1" \
        "$(ring_share "$1")" "$(counted "$1" upgraded)"
}

# stayed_plain SIDE: that program cannot be accelerated, and nothing of it was.
stayed_plain() {
    local ring
    [[ $form == accelerated ]] || return 0
    ring=$(($(counted "$1" ring_rx_bytes) + $(counted "$1" ring_tx_bytes)))
    equal "$1: stays plain" "$ring" 0
}

# reasons SIDE: why connections of that side stayed on TCP, as one line.
reasons() {
    local file
    for file in "$work/counts/$form.$1".*; do
        [[ -s $file ]] || continue
        jq -c '{upgraded, declined, reasons, ring_rx_bytes, ring_tx_bytes, tcp_rx_bytes, tcp_tx_bytes}' "$file"
    done | sort | uniq -c | sort -rn | head -5 | tr -s '\n ' ' '
}

# status FILTER: what `viaduct status --json` says, through jq.
status() {
    "$work/bin/viaduct" status --json --socket "$work/viaductd.sock" | jq -r "$1"
}

# figure WHAT UNIT FUNCTION...: the function prints a number; it runs in the plain and in the
# accelerated form in turn, so both servers must be up. Prints both medians and their ratio. Where
# less is better the unit says so by standing for a time: s, ms, us.
figure() {
    local what=$1 unit=$2 turn before=$form
    shift 2
    local -a plain=() fast=()
    for ((turn = 0; turn < runs; turn++)); do
        form=plain
        plain+=("$("$@")") || true
        form=accelerated
        fast+=("$("$@")") || true
    done
    form=$before
    local p a
    p=$(printf '%s\n' "${plain[@]}" | median)
    a=$(printf '%s\n' "${fast[@]}" | median)
    if [[ -z $p || -z $a ]]; then
        fail "figure: $what: nothing measured"
        return
    fi
    awk -v what="$what" -v unit="$unit" -v p="$p" -v a="$a" -v name="$name" '
        function shown(x) { return x >= 1000 ? sprintf("%.0f", x) : sprintf("%.4g", x) }
        BEGIN {
            less = unit ~ /^(s|ms|us)$/
            ratio = less ? p / a : a / p
            printf "figure %s: %s: plain %s, accelerated %s %s, ratio %.2f\n", name, what, shown(p), shown(a), unit, ratio
        }'
    # All of the values, for whoever wants to judge the spread.
    say "       runs: plain ${plain[*]}; accelerated ${fast[*]}"
}

median() {
    grep -E '^[0-9.]+$' | sort -g | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# seconds COMMAND...: how long it took; what it prints goes to standard error.
seconds() {
    local from to
    from=$EPOCHREALTIME
    "$@" >&2
    to=$EPOCHREALTIME
    awk -v f="$from" -v t="$to" 'BEGIN { printf "%.3f\n", t - f }'
}

# amount QUICK FULL: how much work there is to do.
amount() {
    if [[ -n $quick ]]; then
        printf '%s\n' "$1"
    else
        printf '%s\n' "$2"
    fi
}

# random_file FILE MEGABYTES: the same bytes on every machine.
random_file() {
    openssl enc -aes-128-ctr -K 00000000000000000000000000000007 -iv 00000000000000000000000000000000 \
        -in /dev/zero 2>/dev/null | head -c "$(($2 * 1000000))" >"$1" || true
}

sum_of() {
    sha256sum "$1" | cut -d' ' -f1
}

# compile PROGRAM SOURCE...: a C program of these tests.
compile() {
    local out=$1
    shift
    cc -O2 -Wall -o "$out" "$@" -lpthread
}
