# shellcheck shell=bash
# The crate async-std: streams, timeouts and copies on async-io. See compare.sh and crate.sh.
# shellcheck disable=SC2034,SC2154 # Between this file, crate.sh, compare.sh and pass.sh.

suite_about="streams, timeouts and copies on async-io"
# It stands on async-io, which connects by raw system calls.
suite_expects=tcp
crate=async-std
version=1.13.2
not_patched=yes
cargo_options=(--features attributes --features unstable)
units=(addr block_on buf_writer io_copy io_timeout tcp timeout udp uds verbose_errors)

# shellcheck source-path=SCRIPTDIR source=crate.sh
source "$root/tests/suites/crate.sh"
