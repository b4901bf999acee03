# shellcheck shell=bash
# A newer libuv, which hands its epoll_ctl calls to io_uring where the kernel has that. See libuv.sh.
# shellcheck disable=SC2034,SC2154 # Between this file, compare.sh and pass.sh.

# shellcheck source-path=SCRIPTDIR source=crate.sh
source "$root/tests/suites/crate.sh"
# shellcheck source-path=SCRIPTDIR source=libuv.sh
source "$root/tests/suites/libuv.sh"

suite_about="a newer one, with io_uring for its epoll_ctl"
# A process that sets io_uring up keeps its connections on TCP.
suite_expects=tcp
crate=libuv-sys2
version=1.53.1

get_source() {
    fetch_crate "$cache/$name/crate" && mv "$cache/$name/crate/libuv" "$source"
}
