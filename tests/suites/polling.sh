# shellcheck shell=bash
# The crate polling: libc's sockets, and epoll by raw system calls. See compare.sh and crate.sh.
# shellcheck disable=SC2034,SC2154 # Between this file, crate.sh, compare.sh and pass.sh.

suite_about="libc's sockets, and epoll by raw system calls"
# Its epoll is invisible, so no direction ever arms.
suite_expects=upgrades
crate=polling
version=3.11.0
cargo_options=()
units=(concurrent_modification io many_connections multiple_pollers notify other_modes precision timeout)

# shellcheck source-path=SCRIPTDIR source=crate.sh
source "$root/tests/suites/crate.sh"
