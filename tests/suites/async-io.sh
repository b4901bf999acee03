# shellcheck shell=bash
# The crate async-io: a runtime on polling, with its helper thread. See compare.sh and crate.sh.
# shellcheck disable=SC2034,SC2154 # Between this file, crate.sh, compare.sh and pass.sh.

suite_about="a runtime on polling, with its helper thread"
# It connects by raw system calls: one end only is ever seen.
suite_expects=tcp
crate=async-io
version=2.6.0
cargo_options=()
units=(lib async block_on timer)

# shellcheck source-path=SCRIPTDIR source=crate.sh
source "$root/tests/suites/crate.sh"
