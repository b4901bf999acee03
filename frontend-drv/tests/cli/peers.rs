//! `viaduct peers`.

use crate::scene::{directory, finish, viaduct};

#[test]
fn a_check_answers_by_exit_status_and_names_the_rule() {
    let dir = directory();
    let list = "!10.9.0.7,10.9.0.0/24";
    for (address, code, words) in [
        ("10.9.0.2:80", 0, "peer, by rule 1 (10.9.0.0/24)"),
        ("10.9.0.7", 1, "excluded by rule 0 (!10.9.0.7/32)"),
        ("[::1]:80", 1, "none of the 2 rules"),
    ] {
        let check = finish(viaduct(
            dir.path(),
            &["peers", "--peers", list, "--check", address],
        ));
        assert_eq!(check.code(), Some(code), "{address}");
        assert!(check.stdout().contains(words), "{}", check.stdout());
        assert_eq!(check.stderr(), "");
    }
}

#[test]
fn the_environment_is_the_list_unless_an_option_is() {
    let dir = directory();
    let mut command = viaduct(dir.path(), &["peers", "--check", "10.0.0.1"]);
    command.env("VIADUCT_PEERS", "10.0.0.0/8");
    assert!(finish(command).stdout().contains("VIADUCT_PEERS"));
    let mut command = viaduct(dir.path(), &["peers", "--peers", "::1"]);
    command.env("VIADUCT_PEERS", "not a list");
    assert!(finish(command).stdout().contains("[::1/128]"));
}

#[test]
fn without_a_list_this_host_is_its_own_peer() {
    let dir = directory();
    let list = finish(viaduct(dir.path(), &["peers"]));
    assert_eq!(list.code(), Some(0));
    assert!(list.stdout().contains("127.0.0.0/8"), "{}", list.stdout());
}

#[test]
fn bad_input_is_one_line_and_status_2() {
    let dir = directory();
    let peers = |arguments: &[&str]| {
        let all = [["peers"].as_slice(), arguments].concat();
        finish(viaduct(dir.path(), &all))
    };
    peers(&["--peers", "::1,localhost"]).assert_fails(2, &["--peers", "localhost", "[!]ADDRESS"]);
    peers(&["--check", "localhost:80"]).assert_fails(2, &["localhost:80", "ADDR[:PORT]"]);
    let ports = ["--peers", "10.0.0.0/8:80-90", "--check", "10.0.0.1"];
    peers(&ports).assert_fails(2, &["80-90", "10.0.0.1:80"]);
    let mut command = viaduct(dir.path(), &["peers"]);
    command.env("VIADUCT_PEERS", "10.0.0.0/99");
    finish(command).assert_fails(2, &["VIADUCT_PEERS", "10.0.0.0/99"]);
}
