#!/usr/bin/env bash
# The rsync daemon: a tree of small files and one large file, pushed and pulled, changed and brought up
# to date by differences, compressed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=8730

main() {
    app rsync "$@"
    packages rsync openssl
    isolate
    say "version: $(rsync --version | head -1)"
    prepare
    for form in "${forms[@]}"; do
        rm -rf "$work/data/module" "$work/data/back"
        mkdir "$work/data/module"
        cp -a "$work/data/first" "$work/data/tree"
        start server rsync --daemon --no-detach --config "$work/data/rsyncd.conf"
        await_port "$port"
        synchronise
        stop server
        rode server
        rode client
        rm -rf "$work/data/tree"
    done
    same pushed pulled differences listed
    finish
}

prepare() {
    local i
    mkdir -p "$work/data/first/many"
    random_file "$work/data/first/large" "$(amount 40 200)"
    for ((i = 0; i < 300; i++)); do
        tail -c "+$((i * 10000 + 1))" "$work/data/first/large" | head -c $((i * 100)) >"$work/data/first/many/$i" || true
    done
    cat >"$work/data/rsyncd.conf" <<EOF
use chroot = no
uid = root
gid = root
address = $second
port = $port
pid file = $work/data/rsyncd.pid
log file = /dev/null
[module]
path = $work/data/module
read only = no
EOF
}

tree_sum() {
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | sum_of /dev/stdin
}

synchronise() {
    local url=rsync://$second:$port/module
    client rsync -a "$work/data/tree/" "$url/"
    note pushed "$(tree_sum "$work/data/module")"
    client rsync -a "$url/" "$work/data/back/"
    note pulled "$(tree_sum "$work/data/back")"
    equal "pushed and pulled" "$(tree_sum "$work/data/back")" "$(tree_sum "$work/data/tree")"
    # Differences in the middle of the large file, files more and files less.
    printf 'changed' | dd of="$work/data/tree/large" bs=1 seek=10000000 conv=notrunc status=none
    head -c 1000000 "$work/data/first/large" >>"$work/data/tree/large"
    rm "$work/data/tree/many/7"
    cp "$work/data/tree/many/299" "$work/data/tree/new"
    client rsync -a --delete --no-whole-file --ignore-times -z "$work/data/tree/" "$url/"
    note differences "$(tree_sum "$work/data/module")"
    equal "brought up to date" "$(tree_sum "$work/data/module")" "$(tree_sum "$work/data/tree")"
    note listed "$(client rsync -r "$url/many/" | awk '{ print $2, $NF }' | sort | sum_of /dev/stdin)"
}

main "$@"
