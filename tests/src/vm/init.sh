#!/bin/busybox sh
# The first process of a guest: brings it up, then runs what comes by the channel for commands, one after the
# other. A command is a line "NUMBER BASE64"; the answer is a line "NUMBER STATUS BYTES BYTES", then what it said
# on standard output and on standard error.
export PATH=/usr/bin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
while read -r module; do
    insmod "/modules/$module" || echo "no module $module"
done </modules/list
ulimit -n 65536
ulimit -l unlimited
ip link set lo up
for word in $(cat /proc/cmdline); do
    case $word in
        viaduct.address=*) address=${word#*=} ;;
        viaduct.name=*) hostname "${word#*=}" ;;
    esac
done
if [ -n "$address" ] && [ -e /sys/class/net/eth0 ]; then
    ip addr add "$address" dev eth0
    ip link set eth0 up
fi
echo "up"

# Never closed: what has come and was not read yet would be lost. An end means that nobody is there.
exec 3<>/dev/vport0p1
while :; do
    if ! read -r number command <&3; then
        sleep 0.05
        continue
    fi
    echo "$command" | base64 -d >/tmp/command
    sh /tmp/command >/tmp/command.out 2>/tmp/command.err </dev/null 3<&-
    status=$?
    echo "$number $status $(wc -c </tmp/command.out) $(wc -c </tmp/command.err)" >&3
    cat /tmp/command.out /tmp/command.err >&3
done
