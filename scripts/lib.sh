# shellcheck shell=bash
# What the scripts here share: messages, checks for programs, packages. Sourced, never run.

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "${0##*/}: $*"
    exit 1
}

# have PROGRAM...: whether all of them are in PATH.
have() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null 2>&1 || return 1
    done
}

# need_cmd PROGRAM REMEDY: ends the script with one line if the program is missing.
need_cmd() {
    have "$1" || die "$1 not found: $2"
}

# as_root COMMAND...: runs it as root, directly or by sudo.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif have sudo; then
        sudo -- "$@"
    else
        die "needs root for: $*; run this script as root, or that command by hand"
    fi
}

# apt_update: reads the package lists. An unrelated repository that is down is no reason to give up.
apt_update() {
    say "reading the package lists"
    as_root apt-get -qq update ||
        say "apt-get update failed (see above); going on with the lists that are here"
    apt_updated=yes
}

# apt_update_once: the same, unless this script has done it already.
apt_update_once() {
    if [[ -z ${apt_updated:-} ]]; then
        apt_update
    fi
}

# apt_install PACKAGE...: installs them, or ends the script with what to do.
apt_install() {
    have apt-get || die "this is no Debian; install what corresponds to: $*"
    apt_update_once
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@" ||
        die "could not install $* (see above); install it by hand and start again"
}

# comment_at_top FILE: the comment that explains a script.
comment_at_top() {
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$1"
}

# built FILE: where cargo has put a file of the release build.
built() {
    printf '%s\n' "${CARGO_TARGET_DIR:-$root/target}/release/$1"
}

# pick_cores: sets `cores` to two processors that this process may use, one for each host; not threads of one core if there
# are others. Empty: there are no two.
cores=()
# shellcheck disable=SC2034 # for the scripts that source this
pick_cores() {
    local core siblings
    local -a allowed
    mapfile -t allowed < <(taskset -cp $$ | sed 's/.*: //' | each_core)
    [[ ${#allowed[@]} -ge 2 ]] || return 0
    siblings=$(each_core <"/sys/devices/system/cpu/cpu${allowed[0]}/topology/thread_siblings_list" | tr '\n' ' ')
    cores=("${allowed[0]}" "${allowed[1]}")
    for core in "${allowed[@]:1}"; do
        if [[ " $siblings " != *" $core "* ]]; then
            cores[1]=$core
            return
        fi
    done
}

# A list such as 0-2,5, a number in a line.
each_core() {
    tr , '\n' | awk -F- 'NF { for (core = $1; core <= $NF; core++) print core }'
}

# The checkout.
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
