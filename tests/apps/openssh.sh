#!/usr/bin/env bash
# OpenSSH: sshd, which gives each connection to processes that it forks and executes anew, without
# rights and in a sandbox; scp of 200 MB both ways in both protocols, sftp, a pipe through a remote
# command, and a forwarded port. It must work; how much goes by ring is only told.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

port=2200

main() {
    app openssh "$@"
    packages openssh-server openssh-client openssl socat
    isolate
    say "version: $(ssh -V 2>&1)"
    prepare
    for form in "${forms[@]}"; do
        start server /usr/sbin/sshd -D -e -f "$work/data/sshd_config"
        await_port "$port"
        copies
        commands
        forwarding
        stop server
        told server
        told client
    done
    same up down up_old down_old sftp pipe forwarded
    finish
}

prepare() {
    # The directory that sshd insists on; Debian's start script makes it.
    mkdir -p /run/sshd
    random_file "$work/data/large" "$(amount 50 200)"
    ssh-keygen -q -t ed25519 -N '' -f "$work/data/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$work/data/key"
    cp "$work/data/key.pub" "$work/data/authorized_keys"
    cat >"$work/data/sshd_config" <<EOF
ListenAddress $second:$port
HostKey $work/data/host_key
AuthorizedKeysFile $work/data/authorized_keys
PidFile $work/data/sshd.pid
PermitRootLogin yes
StrictModes no
UsePAM no
Subsystem sftp /usr/lib/openssh/sftp-server
EOF
    options=(-F /dev/null -i "$work/data/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
        -o LogLevel=ERROR -o BatchMode=yes)
}

copies() {
    local old file=$work/data/large
    for old in '' -O; do
        # shellcheck disable=SC2086
        client scp $old -q -P "$port" "${options[@]}" "$file" "root@$second:$work/data/copy"
        note "up${old:+_old}" "$(sum_of "$work/data/copy")"
        # shellcheck disable=SC2086
        client scp $old -q -P "$port" "${options[@]}" "root@$second:$file" "$work/data/back"
        note "down${old:+_old}" "$(sum_of "$work/data/back")"
        equal "scp${old:+ $old} there and back" "$(sum_of "$work/data/copy") $(sum_of "$work/data/back")" \
            "$(sum_of "$file") $(sum_of "$file")"
        rm "$work/data/copy" "$work/data/back"
    done
    printf 'put %s %s\nget %s %s\n' "$file" "$work/data/copy" "$work/data/copy" "$work/data/back" >"$work/data/batch"
    client sftp -q -P "$port" "${options[@]}" -b "$work/data/batch" "root@$second" >/dev/null
    note sftp "$(sum_of "$work/data/back")"
    rm "$work/data/copy" "$work/data/back"
}

commands() {
    local turn said=
    note pipe "$(client ssh -p "$port" "${options[@]}" "root@$second" cat <"$work/data/large" | sum_of /dev/stdin)"
    for turn in 1 2 3 4 5; do
        said+=$(client ssh -p "$port" "${options[@]}" "root@$second" "echo $turn; exit $turn") || said+="($?)"
    done
    equal "exit statuses" "$said" "1(1)2(2)3(3)4(4)5(5)"
}

# A port of the client's side that leads to one of the server's.
forwarding() {
    start server-echo socat TCP-LISTEN:7190,bind=127.0.0.1,fork,reuseaddr EXEC:cat
    await_port 7190
    start client-forward ssh -p "$port" "${options[@]}" -N -L 7191:127.0.0.1:7190 "root@$second"
    await_port 7191
    head -c 20000000 "$work/data/large" |
        client socat -t 30 STDIO TCP:127.0.0.1:7191 >"$work/data/echoed"
    note forwarded "$(sum_of "$work/data/echoed")"
    equal "a forwarded port" "$(sum_of "$work/data/echoed")" "$(head -c 20000000 "$work/data/large" | sum_of /dev/stdin)"
    stop client-forward
    stop server-echo
}

main "$@"
