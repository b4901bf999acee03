//! `viaduct bench raw`, which is the daemon's business.

use std::fs;

use crate::scene::{directory, finish, script, tool_at};

#[test]
fn raw_is_left_to_the_daemons_program() {
    let dir = directory();
    let built = env!("CARGO_BIN_EXE_viaduct");
    let tool = dir.path().join("viaduct-tool");
    fs::hard_link(built, &tool)
        .or_else(|_| fs::copy(built, &tool).map(drop))
        .unwrap();
    script(
        &dir.path().join("viaductd"),
        "#!/bin/sh\nprintf '<%s>' \"$@\"\nexit 7\n",
    );
    let words = ["bench", "raw", "--driver", "udp", "--json", "--help"];
    let found = finish(tool_at(&tool, dir.path(), &words));
    assert_eq!(found.stdout(), "<bench-raw><--driver><udp><--json><--help>");
    assert_eq!(found.code(), Some(7));
}
