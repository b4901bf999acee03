# shellcheck shell=bash
# What the suites of Rust crates share: the source from the crate registry, its test programs built by
# cargo and then run without it. Sourced by those suites, never run. They set
#   crate, version   what to test
#   cargo_options    (array) further options for cargo test
#   units            (array) the test programs that are wanted; `lib` is the library's own tests
#   not_patched      not empty: dependencies use the registry's version of the crate
# shellcheck disable=SC2034,SC2154 # Between this file, the suites, compare.sh and pass.sh.

suite_ends=one
suite_seconds=1800

suite_install() {
    local source=$cache/$name/$crate-$version unit
    local -a targets=()
    for unit in "${units[@]}"; do
        if [[ $unit == lib ]]; then
            targets+=(--lib)
        else
            targets+=(--test "$unit")
        fi
    done
    if [[ ! -e $source/Cargo.toml ]]; then
        fetch_crate "$source" || not_here "the crate registry gave no $crate-$version"
    fi
    # One line for each program: unit, file.
    (
        cd "$source" &&
            cargo test --quiet --no-run --message-format json --target-dir "$cache/$name/target" \
                "${targets[@]}" "${cargo_options[@]}" >"$cache/$name/build.json"
    ) || return 1
    sed -nE '/"reason":"compiler-artifact"/ {
        /"test":true/ s/.*"kind":\["([a-z]+)"\].*"name":"([^"]+)","src_path".*"executable":"([^"]+)".*/\1\t\2\t\3/p
    }' "$cache/$name/build.json" |
        awk -F'\t' -v OFS='\t' '{ print $1 == "test" ? $2 : "lib", $3 }' >"$cache/$name/programs"
    [[ -s $cache/$name/programs ]]
}

# fetch_crate DIRECTORY: its source there, as a workspace of its own.
fetch_crate() {
    local fetch=$cache/$name/fetch registry
    mkdir -p "$fetch/src"
    : >"$fetch/src/lib.rs"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[dependencies]\n%s = "=%s"\n[workspace]\n' \
        "$crate" "$version" >"$fetch/Cargo.toml"
    (cd "$fetch" && cargo fetch --quiet) || return 1
    for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$crate-$version"; do
        cp -a "$registry" "$1.part" && mv "$1.part" "$1" || return 1
        # Crates that it is tested with are to use it too, not the registry's that the lock file names.
        rm -f "$1/Cargo.lock"
        printf '\n[workspace]\n' >>"$1/Cargo.toml"
        # Unless an optional dependency needs the crate itself, which cargo takes for a circle.
        [[ -n ${not_patched:-} ]] ||
            printf '[patch.crates-io]\n%s = { path = "." }\n' "$crate" >>"$1/Cargo.toml"
        return
    done
    return 1
}

suite_units() {
    printf '%s\n' "${units[@]}"
}

suite_run() {
    local unit
    cd "$cache/$name/$crate-$version" || return 1
    for unit in "$@"; do
        run_program "$unit"
    done
}

run_program() {
    local unit=$1 program status=0
    local -a only=()
    program=$(awk -F'\t' -v unit="$unit" '$1 == unit { print $2 }' "$cache/$name/programs")
    if [[ -z $program ]]; then
        echo "no test program $unit"
        return 1
    fi
    mapfile -t only < <(tests_of "$unit")
    [[ ${#only[@]} -eq 0 ]] || only+=(--exact)
    CARGO_MANIFEST_DIR=$PWD under client timeout -k 10 300 "$program" --test-threads 2 "${only[@]}" \
        >"$out/$unit.log" 2>&1 || status=$?
    from_libtest "$unit" <"$out/$unit.log" >>"$out/results"
    in_time "$unit" "$status"
}

# from_libtest UNIT: `test NAME ... ok`. What a test prints by itself may stand in between.
from_libtest() {
    awk -v unit="$1" 'BEGIN { OFS = "\t" }
        /^test .* \.\.\. / {
            test = $2
            result = /\.\.\. ignored/ ? "skip" : (/\.\.\. FAILED/ || /FAILED$/) ? "fail" : /ok$/ ? "pass" : ""
            if (result != "") print result, unit, test
        }'
}
