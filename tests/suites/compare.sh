# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # What scripts/suites sets, and what pass.sh reads.
# Runs the passes of a suite and compares their results test by test. Sourced by scripts/suites, which
# sets quick, cache, passes, tests, keep_plain, no_plain and counts; never run.
#
# A suite is a file beside this one, NAME.sh, with
#   suite_about     one line
#   suite_ends      `one` if both ends of its connections live in programs of one kind, `two` if its
#                   servers can be started without the library and its clients with it
#   suite_seconds   how long a pass may take
#   suite_passes    (array) the passes, if not: plain both client server
#   suite_expects   what the library must have done with both ends: `rings` carried bytes, `upgrades`
#                   happened, all stayed on `tcp`, or there was `nothing` to do (and the suite says why)
#   suite_upgrade_after  VIADUCT_UPGRADE_AFTER, if not 0
#   suite_install   gets and builds what it needs; may use the network. What cannot be had skips the suite
#                   (`packages`, `not_here`)
#   suite_units     prints the units, the parts that can be run alone; fewer if $quick is set
#   suite_run       runs the units in its arguments in the pass of pass.sh; see there
#
# Results are lines `pass|fail|skip`, unit, test, separated by tabs.

# How often a difference is tried again.
tries=3

# What run_suite exits with where the suite was skipped.
skipped_status=77

# packages PACKAGE...: installs them, or skips the suite.
packages() {
    (apt_install "$@") || not_here "packages missing: $*"
}

# not_here WHY: skips the suite.
not_here() {
    say "skipped $name: $1"
    exit "$skipped_status"
}

run_suite() {
    local name=$1 pass results=$cache/results/$1${quick:+-quick}
    local -a suite_passes=(plain both client server)
    local suite_about='' suite_ends='' suite_seconds='' suite_expects=rings
    # shellcheck source=/dev/null
    source "$root/tests/suites/$name.sh"
    if [[ -n $quick ]]; then
        suite_passes=(both)
        # What hangs is to end while somebody still waits for the result.
        suite_seconds=240
    fi
    [[ ${#passes[@]} -eq 0 ]] || suite_passes=(plain "${passes[@]}")
    say "== $name: $suite_about"
    mkdir -p "$cache/$name" "$results"
    suite_install || return 1
    wanted >"$results/wanted"
    for pass in "${suite_passes[@]}"; do
        if [[ $pass == plain ]]; then
            [[ -z $no_plain && ! (-n $keep_plain && -s $results/plain/results) ]] || continue
        fi
        run_pass "$name" "$pass" "$results/$pass" "$results/wanted"
        [[ $pass == plain ]] || judge "$name" "$pass" "$results"
    done
}

# wanted: what to run, as lines `unit` or `unit<TAB>test`.
wanted() {
    if [[ ${#tests[@]} -eq 0 ]]; then
        suite_units
    else
        local test
        for test in "${tests[@]}"; do
            case $test in
                *:*) printf '%s\t%s\n' "${test%%:*}" "${test#*:}" ;;
                *) printf '%s\n' "$test" ;;
            esac
        done
    fi
}

# run_pass NAME PASS DIRECTORY WANTED: one pass, in namespaces of its own, so that nothing is left of
# it. Leaves results and totals in DIRECTORY.
run_pass() {
    local name=$1 pass=$2 out=$3 wanted=$4 status=0 began=$SECONDS
    rm -rf "$out"
    mkdir -p "$out"
    : >"$out/results"
    # unshare itself ignores the first signal.
    timeout -k 1 "$suite_seconds" \
        unshare --net --pid --fork --kill-child --mount-proc -- \
        bash "$root/tests/suites/pass.sh" outside "$name" "$pass" "$out" "$wanted" \
        >"$out/log" 2>&1 </dev/null &
    # Waited for, so that who ends this script ends the pass too.
    trap 'kill "$!" 2>/dev/null; exit 130' INT TERM
    wait "$!" || status=$?
    trap - INT TERM
    case $status in
        0) ;;
        124 | 137) say "   $pass: ended after $suite_seconds s; see $out/log" ;;
        *) say "   $pass: exit status $status; see $out/log" ;;
    esac
    say "   $pass: $(tally "$out"), $((SECONDS - began)) s"
}

# tally DIRECTORY: one line about a pass.
tally() {
    local passed failed skipped text
    read -r passed failed skipped < <(count "$1/results")
    text="$passed passed, $failed failed, $skipped skipped"
    if [[ -s $1/totals.json ]]; then
        text+="; $(total "$1" upgraded) connections upgraded"
        text+=", $(bytes "$(ring_bytes "$1")") by ring, $(bytes "$(tcp_bytes "$1")") by TCP"
    fi
    printf '%s\n' "$text"
}

count() {
    awk -F'\t' '{ n[$1]++ } END { print n["pass"] + 0, n["fail"] + 0, n["skip"] + 0 }' "$1"
}

# total DIRECTORY KEY: a counter of the pass, summed up over all programs by the daemon.
total() {
    # Not `print`, which rounds what is large.
    awk -v key="\"$2\":" '$1 == key { sub(/,$/, "", $2); sum += $2 } END { printf "%.0f\n", sum }' \
        "$1/totals.json" 2>/dev/null || echo 0
}

# Bytes are counted where they are sent.
ring_bytes() {
    total "$1" ring_tx_bytes
}

tcp_bytes() {
    total "$1" tcp_tx_bytes
}

bytes() {
    awk -v n="$1" 'BEGIN {
        split("B KiB MiB GiB", unit, " ")
        for (i = 1; n >= 1024 && i < 4; i++) n /= 1024
        printf i == 1 ? "%d %s\n" : "%.1f %s\n", n, unit[i]
    }'
}

# differences WANTED PLAIN OTHER: tests that pass in PLAIN and not in OTHER, as `unit<TAB>test`.
differences() {
    awk -F'\t' '
        FILENAME == ARGV[1] { wanted[$1] = 1; wanted[$0] = 1; whole[$1] = whole[$1] || $2 == ""; next }
        FILENAME == ARGV[2] {
            if ($2 in wanted && (whole[$2] || $2 "\t" $3 in wanted)) {
                if ($1 == "pass") good[$2 "\t" $3] = 1
                else bad[$2 "\t" $3] = 1
            }
            next
        }
        # A name may stand for several tests: all of them are to pass.
        { if ($1 == "pass") passed[$2 "\t" $3] = 1; else lost[$2 "\t" $3] = 1 }
        END {
            for (test in good)
                if (!(test in bad) && (!(test in passed) || test in lost)) print test
        }' "$1" "$2" "$3" | sort
}

# judge NAME PASS RESULTS: compares a pass with the plain one, tries again what differs, and counts.
judge() {
    local name=$1 pass=$2 results=$3 failures=0 out=$3/$2
    if [[ -n $quick || -n $no_plain ]]; then
        # What did not pass is what could differ.
        awk -F'\t' -v OFS='\t' '$1 == "fail" { print $2, $3 }' "$out/results" >"$out/different"
        # A unit without any result was cut off.
        awk -F'\t' 'NR == FNR { seen[$2] = 1; next } !($1 in seen)' \
            "$out/results" "$results/wanted" >>"$out/different"
    else
        differences "$results/wanted" "$results/plain/results" "$out/results" >"$out/different"
    fi
    : >"$out/regressions"
    : >"$out/unsteady"
    if [[ -s $out/different ]]; then
        try_again "$name" "$pass" "$out"
    fi
    failures=$(wc -l <"$out/regressions")
    if [[ $pass == both && ${#tests[@]} -eq 0 ]] && ! carried "$out"; then
        say "FAILED: $name: the library did not do there what it was tested for ($suite_expects)"
        failures=$((failures + 1))
    fi
    local passed failed skipped
    read -r passed failed skipped < <(count "$out/results")
    if [[ $passed -eq 0 ]]; then
        say "FAILED: $name: nothing passed; see $out/log"
        failures=$((failures + 1))
    fi
    # What fails plain too is no result of ours.
    echo "$passed $failures $((failed + skipped > failures ? failed + skipped - failures : 0))" >>"$counts"
}

# carried DIRECTORY: whether the accelerated pass did go through what is to be tested.
carried() {
    case $suite_expects in
        rings) [[ $(total "$1" upgraded) -gt 0 && $(ring_bytes "$1") -gt 0 ]] ;;
        upgrades) [[ $(total "$1" upgraded) -gt 0 ]] ;;
        tcp) [[ $(total "$1" declined) -gt 0 ]] ;;
        nothing) ;;
        *) die "suite_expects=$suite_expects: rings, upgrades, tcp or nothing" ;;
    esac
}

# try_again NAME PASS DIRECTORY: tells what fails by the library from what fails now and then.
try_again() {
    local name=$1 pass=$2 out=$3 i unit test plain other
    local again=$out/again
    say "   $pass: $(wc -l <"$out/different") differ from plain; trying them again"
    for ((i = 1; i <= tries; i++)); do
        surroundings=$pass run_pass "$name" plain "$again/plain-$i" "$out/different"
        run_pass "$name" "$pass" "$again/$pass-$i" "$out/different"
    done
    while IFS=$'\t' read -r unit test; do
        plain=$(failures_of "$unit" "$test" "$again"/plain-*/results)
        other=$(failures_of "$unit" "$test" "$again/$pass"-*/results)
        if [[ $plain -eq 0 && $other -gt 0 ]]; then
            say "FAILED: $name, $pass: $unit $test ($other of $tries again, plain 0)"
            say "    scripts/suites --pass $pass --test '$unit${test:+:$test}' $name"
            printf '%s\t%s\n' "$unit" "$test" >>"$out/regressions"
        elif [[ $plain -eq $tries ]]; then
            # Such as a test that wants to see a client's address, in the passes of one end.
            say "   $pass: $unit $test: fails plain too, in the surroundings of this pass"
        else
            say "unsteady: $name, $pass: $unit $test (failed once; again $other of $tries, plain $plain)"
            printf '%s\t%s\n' "$unit" "$test" >>"$out/unsteady"
        fi
    done <"$out/different"
}

# failures_of UNIT TEST FILE...: in how many files the test does not pass; without a test, in how many
# a test of the unit does not.
failures_of() {
    local unit=$1 test=$2 file n=0
    shift 2
    for file in "$@"; do
        awk -F'\t' -v unit="$unit" -v test="$test" '
            $2 == unit && (test == "" || $3 == test) { seen = 1; if ($1 == "fail") bad = 1; if ($1 == "skip" && test != "") bad = 1 }
            END { exit !(seen && !bad) }' "$file" || n=$((n + 1))
    done
    echo "$n"
}

# print_table NAME...: all passes of the suites, for people and for docs/compatibility.md.
print_table() {
    local name pass out passed failed skipped file=$cache/results/table${quick:+-quick}.md
    {
        echo "| suite | pass | passed | failed | skipped | regressions | unsteady | upgraded | by ring |"
        echo "|---|---|---:|---:|---:|---:|---:|---:|---:|"
        for name in "$@"; do
            for pass in plain both client server; do
                out=$cache/results/$name${quick:+-quick}/$pass
                [[ -s $out/results ]] || continue
                read -r passed failed skipped < <(count "$out/results")
                printf '| %s | %s | %d | %d | %d |' "$name" "$pass" "$passed" "$failed" "$skipped"
                if [[ $pass == plain ]]; then
                    printf ' | | | |\n'
                else
                    printf ' %d | %d | %d | %s |\n' "$(wc -l <"$out/regressions")" \
                        "$(wc -l <"$out/unsteady")" "$(total "$out" upgraded)" \
                        "$(bytes "$(ring_bytes "$out")")"
                fi
            done
        done
    } >"$file"
    say
    cat "$file" >&2
    say
}
