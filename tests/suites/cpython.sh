# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # Between this file and compare.sh and pass.sh.
# CPython's own tests of everything that uses sockets. See compare.sh for what a suite is.

suite_about="CPython's socket, poll, TLS, protocol and process tests"
suite_ends=one
suite_seconds=7200
python=/usr/bin/python3.11

suite_install() {
    if [[ ! -e /usr/lib/python3.11/test/test_socket.py ]]; then
        packages python3.11 libpython3.11-testsuite
    fi
}

suite_units() {
    printf 'test_%s\n' socket select epoll selectors ssl
    [[ -z $quick ]] || return 0
    printf 'test_%s\n' poll asyncio asyncore asynchat httplib httpservers ftplib smtplib smtpd \
        poplib imaplib telnetlib xmlrpc docxmlrpc urllib2_localnet wsgiref logging socketserver \
        multiprocessing_fork multiprocessing_spawn multiprocessing_forkserver \
        multiprocessing_main_handling concurrent_futures subprocess os signal
}

suite_run() {
    local unit
    for unit in "$@"; do
        run_module "$unit"
    done
}

run_module() {
    local unit=$1 xml=$out/$1.xml test status=0
    local -a options=()
    while read -r test; do
        options+=(--match "$test")
    done < <(tests_of "$unit")
    # Without this resource it does nothing; it needs no network beyond lo.
    [[ $unit != test_socketserver ]] || options+=(-u network)
    # Virtual machine sockets lead out of this machine, or nowhere.
    options+=(--ignore '*VSOCK*')
    [[ -z $quick ]] || mapfile -t -O "${#options[@]}" options < <(quick_options "$unit")
    mkdir -p "$out/tmp"
    (
        cd "$out/tmp" &&
            under client timeout -k 10 960 "$python" -m test -v --timeout 900 \
                --tempdir "$out/tmp" --junit-xml "$xml" "${options[@]}" "$unit"
    ) >"$out/$unit.log" 2>&1 || status=$?
    if [[ -s $xml ]]; then
        from_xml "$unit" <"$xml" >>"$out/results"
    else
        from_log "$unit" <"$out/$unit.log" >>"$out/results"
    fi
    in_time "$unit" "$status"
}

# Tests that only wait, or have nothing to do with connections.
quick_options() {
    case $1 in
        test_ssl) printf -- '--match\n%s\n' '*Threaded*' '*SSLObject*' '*PostHandshake*' '*SimpleBackground*' ;;
        test_socket) printf -- '--ignore\n%s\n' '*RDS*' '*CAN*' '*ALG*' '*UDPLITE*' ;;
        test_selectors) printf -- '--ignore\n%s\n' '*test_above_fd_setsize' ;;
    esac
}

# The report is one line of `testcase` elements.
from_xml() {
    awk -v unit="$1" 'BEGIN { RS = "<testcase "; OFS = "\t" }
        NR > 1 && match($0, /name="[^"]*"/) {
            name = substr($0, RSTART + 6, RLENGTH - 7)
            result = "pass"
            if (/<skipped>/) result = "skip"
            if (/<failure[ >]|<error[ >]|UNEXPECTED_SUCCESS/) result = "fail"
            print result, unit, name
        }'
}

# A module that was ended leaves no report: what its log shows of tests that ended before.
from_log() {
    awk -v unit="$1" 'BEGIN { OFS = "\t" }
        /^test[A-Za-z0-9_]* \([A-Za-z0-9_.]+\)/ {
            name = $2; gsub(/[()]/, "", name)
        }
        name != "" && / \.\.\. (ok|skipped|FAIL|ERROR)|^(ok|FAIL|ERROR|skipped .*)$/ {
            result = "pass"
            if (/skipped/) result = "skip"
            if (/FAIL|ERROR/) result = "fail"
            print result, unit, name
            name = ""
        }'
}
