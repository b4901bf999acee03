//! A program of socket cases that prints what each call did, and nothing that differs between two
//! correct runs. `run` plays the cases; the tests compare what it prints on kernel TCP and under the
//! preload library.
//!
//! * [`pattern`]: bytes known by position.
//! * [`stage`], [`end`], [`form`]: the script of a case, one end, its way of waiting.
//! * [`cases`]: the cases. [`runner`]: starts the ends and watches over them.
//! * [`stranger`]: a program without the library, to which cases pass their connections.
//! * [`replay`]: a random sequence, played both ways.

#![expect(
    clippy::print_stderr,
    reason = "a program that tells its caller what went wrong"
)]

mod cases;
mod end;
mod form;
mod pattern;
mod replay;
mod runner;
mod stage;
mod stranger;

use std::process::ExitCode;

use viaduct_tests::random::agent;
use viaduct_tests::sys;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.first().map(String::as_str) {
        Some("run") => runner::run(words.get(1..).unwrap_or_default()),
        Some("play") => runner::play(words.get(1..).unwrap_or_default()),
        Some("agent") => {
            agent::serve();
            Ok(())
        }
        Some("stranger") => stranger::serve(),
        Some("replay") => replay::replay(words.get(1..).unwrap_or_default()),
        _ => Err("usage: differential run [--topology processes|threads|single] [--warm] [--ring] \
                  [--swap] [--preload-a LIBRARY] [--preload-b LIBRARY] [--socket-b PATH] [--user-b UID] \
                  [--only TEXT|^START] \
                  [--evidence FILE]\n\
                  \x20      differential replay [before|during|never] [processes|single] OPERATIONS"
            .to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("differential: {line}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line at once, by one call.
fn print(line: &str) {
    let line = format!("{line}\n");
    // Standard output is a pipe to the test; if that is gone, so is whom it matters to.
    let _ = sys::write(1, line.as_bytes());
}
