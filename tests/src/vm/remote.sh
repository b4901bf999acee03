#!/bin/busybox sh
# shellcheck shell=dash
# Commands in another guest, for programs that start their processes by a remote shell (mpirun): guests have none.
#
#   remote serve              runs what others ask for, until it is ended
#   remote HOST COMMAND...    runs it on HOST; what it says comes back, its status does not
port=514
case ${1:-} in
    serve) exec nc -ll -p "$port" -e sh ;;
    '')
        echo "remote: serve, or HOST COMMAND..." >&2
        exit 2
        ;;
esac
host=$1
shift
# As by ssh, the words are one line for the shell over there. It must not read the commands' input as commands.
printf '{ %s\n} </dev/null 2>&1\n' "$*" | nc "$host" "$port"
