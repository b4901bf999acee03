# shellcheck shell=bash
# The crate tokio: an edge-triggered runtime: split halves, cancellation, readiness. See compare.sh and crate.sh.
# shellcheck disable=SC2034,SC2154 # Between this file, crate.sh, compare.sh and pass.sh.

suite_about="an edge-triggered runtime: split halves, cancellation, readiness"
crate=tokio
version=1.54.1
cargo_options=(--features full)
units=(buffered io_async_fd io_async_read io_copy io_copy_bidirectional io_driver io_driver_drop
    io_join io_panic io_read io_read_to_end io_split io_write net_bind_resource net_lookup_host
    net_panic net_quickack net_unix_pipe no_rt process_issue_2174 process_issue_42 process_kill_on_drop
    process_smoke rt_basic rt_busy_tick rt_common rt_handle_block_on rt_shutdown_err rt_threaded
    tcp_accept tcp_accept_ready tcp_connect tcp_echo tcp_into_split tcp_into_std tcp_peek tcp_shutdown
    tcp_socket tcp_split tcp_stream udp uds_cred uds_datagram uds_socket uds_split uds_stream
    unix_shutdown)

# shellcheck source-path=SCRIPTDIR source=crate.sh
source "$root/tests/suites/crate.sh"
