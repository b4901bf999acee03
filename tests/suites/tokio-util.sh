# shellcheck shell=bash
# The crate tokio-util: codecs, framing and adapters over tokio. See compare.sh and crate.sh.
# shellcheck disable=SC2034,SC2154 # Between this file, crate.sh, compare.sh and pass.sh.

suite_about="codecs, framing and adapters over tokio"
crate=tokio-util
version=0.7.20
# Its tests are made of streams in memory, and of UDP.
suite_expects=nothing
cargo_options=(--features full)
units=(codecs compat framed framed_read framed_stream framed_write io_inspect io_read_arc io_reader_stream
    io_simplex io_sink_writer io_stream_reader io_sync_bridge io_write_all_vectored length_delimited udp)

# shellcheck source-path=SCRIPTDIR source=crate.sh
source "$root/tests/suites/crate.sh"
