#!/usr/bin/env bash
# Open MPI and MPICH with four processes over TCP (shared memory switched off): a ring, an allreduce and
# an exchange of all with all, at sizes up to 5 MB, results checked; NetPIPE over MPI.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    app mpi "$@"
    # All processes of a job are started by one command: there is no side to leave out.
    forms=(plain accelerated)
    packages openmpi-bin libopenmpi-dev mpich libmpich-dev netpipe-openmpi gcc libc6-dev
    isolate
    say "version: $(mpirun.openmpi --version | head -1), MPICH $(mpichversion | awk -F'\t' '/^MPICH Version/ { print $2 }')"
    mpicc.openmpi -O2 -o "$work/bin/openmpi" "$here/programs/mpi_check.c"
    mpicc.mpich -O2 -o "$work/bin/mpich" "$here/programs/mpi_check.c"
    local kind
    for form in "${forms[@]}"; do
        for kind in openmpi mpich; do
            side=client-$kind
            "$kind" "$work/bin/$kind" check >"$work/answers" 2>"$work/errors" || cat "$work/errors" >&2
            note "result_$kind" "$(grep result "$work/answers" || true)"
            check "$kind: results" grep -q 'all as expected' "$work/answers"
            rode "client-$kind"
        done
        netpipe
    done
    same result_openmpi result_mpich
    [[ -z $measure ]] || figures
    finish
}

openmpi() {
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        client mpirun.openmpi -n "${ranks:-4}" --oversubscribe --mca btl tcp,self --mca btl_tcp_if_include lo \
        --mca oob_tcp_if_include lo --mca pml ob1 --mca btl_tcp_disable_family 6 "$@"
}

# Over UCX's TCP the ranks of Debian's MPICH often wait for each other for ever in MPI_Finalize, plain as
# well: the job is ended once it has said its result.
mpich() {
    UCX_TLS=tcp,self UCX_NET_DEVICES=lo \
        start "$side" mpirun.mpich -n "${ranks:-4}" -launcher fork -iface lo "$@"
    patience=${limit:-120} await "a result of MPICH" grep -qE '^(result|us) ' "$(log_of "$side")" || true
    grep -E '^(result|us) ' "$(log_of "$side")" || true
    stop "$side"
}

netpipe() {
    side=client-netpipe
    local status=0
    (cd "$work/data" && ranks=2 openmpi NPopenmpi -n "$(amount 20 200)" -u "$(amount 100000 4000000)" -o "$work/data/np.out") \
        >"$work/answers" 2>&1 || status=$?
    equal "NetPIPE" "$status" 0
    rode client-netpipe
}

microseconds() {
    side=client-figures
    "$1" "$work/bin/$1" allreduce "$2" "$3" 2>/dev/null | awk '/^us/ { print $2 }'
}

figures() {
    figure "Open MPI, allreduce of 8 B, 4 processes" us microseconds openmpi 8 30000
    figure "Open MPI, allreduce of 1 MiB, 4 processes" us microseconds openmpi 1048576 300
    # UCX spins without ever giving way: on two processors four processes show the scheduler only.
    local ranks=2
    figure "MPICH, allreduce of 8 B, 2 processes" us microseconds mpich 8 200000
    figure "MPICH, allreduce of 1 MiB, 2 processes" us microseconds mpich 1048576 2000
}

main "$@"
