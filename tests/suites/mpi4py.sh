# shellcheck shell=bash
# mpi4py's own tests of MPI: messages of all kinds, collective and one-sided calls, communicators. Three
# processes of Open MPI, which connect to each other and wait in poll. See compare.sh for what a suite is.
# shellcheck disable=SC2034,SC2154 # Between this file, compare.sh and pass.sh.

suite_about="its own tests, on Open MPI over TCP with three processes"
suite_ends=one
# All processes of a job are started by one command: there is no end to leave out.
suite_passes=(plain both)
suite_seconds=3600
# Debian's, whose package has no tests; the source package of the same version on PyPI has.
version=3.1.4
source=$cache/mpi4py/mpi4py-$version

suite_install() {
    if ! have mpirun.openmpi || ! /usr/bin/python3 -c 'import mpi4py, numpy' 2>/dev/null; then
        packages openmpi-bin python3-mpi4py python3-numpy
    fi
    [[ -e $source/test/runtests.py ]] && return
    /usr/bin/python3 -m pip --version >/dev/null 2>&1 || packages python3-pip
    (
        cd "$cache/mpi4py" &&
            /usr/bin/python3 -m pip download --quiet --no-deps --no-binary :all: "mpi4py==$version" &&
            tar -xzf "mpi4py-$version.tar.gz"
    ) >"$cache/mpi4py/download.log" 2>&1 || not_here "PyPI gave no mpi4py $version"
}

suite_units() {
    printf 'test_%s\n' p2p_buf p2p_buf_matched p2p_obj p2p_obj_matched msgspec msgzero request \
        cco_buf cco_obj cco_vec cco_nb_buf cco_nb_vec cco_ngh_buf cco_ngh_obj cco_obj_inter \
        comm comm_inter comm_topo rma rma_nb win threads util_pkl5 grequest io
}

suite_run() {
    local unit
    cd "$source" || return 1
    mkdir -p "$out/logs"
    for unit in "$@"; do
        run_module "$unit"
    done
}

run_module() {
    local unit=$1 test
    local -a options=(--no-builddir --verbose --include "$unit\$")
    while read -r test; do
        options+=(--pattern "$test")
    done < <(tests_of "$unit")
    # Each process says what it found in a file of its own.
    # shellcheck disable=SC2016 # For the processes' shells.
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        under client timeout -k 10 300 mpirun.openmpi -n 3 --oversubscribe --mca btl tcp,self \
        --mca btl_tcp_if_include lo --mca oob_tcp_if_include lo --mca pml ob1 \
        --mca btl_tcp_disable_family 6 sh -c \
        'log=$1 && shift && exec /usr/bin/python3 test/runtests.py "$@" >"$log.$OMPI_COMM_WORLD_RANK" 2>&1' \
        sh "$out/logs/$unit" "${options[@]}" >"$out/logs/$unit.job" 2>&1
    # A test has passed if it has in each process.
    awk -v unit="$unit" 'BEGIN { OFS = "\t" }
        /^test[A-Za-z0-9_]+ \(.*\) \.\.\. / {
            test = $2
            gsub(/[()]/, "", test)
            result = / ok$/ ? "pass" : / skipped / ? "skip" : "fail"
            seen[test]++
            if (!(test in worst) || result == "fail" || worst[test] == "pass") worst[test] = result
        }
        END { for (test in worst) print seen[test] == 3 ? worst[test] : "fail", unit, test }' \
        "$out/logs/$unit".[0-9] >>"$out/results"
}
