//! `replay`: a random sequence on kernel TCP and under the library, line by line beside each other.

use viaduct_tests::random::model::Topology;
use viaduct_tests::random::operation::from_text;
use viaduct_tests::random::play::{Mode, Script, Stage, accelerated, play};
use viaduct_tests::rig::daemon::Daemon;

/// Plays `words`: options, then operations. An error if the plays differ.
pub(crate) fn replay(words: &[String]) -> Result<(), String> {
    let (mut mode, mut topology) = (Mode::Before, Topology::Processes);
    let mut operations = Vec::new();
    for word in words {
        if let Ok(wish) = word.parse() {
            mode = wish;
        } else if let Ok(wish) = word.parse() {
            topology = wish;
        } else {
            operations.extend(from_text(word)?);
        }
    }
    let daemon = Daemon::start();
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut stage = Stage {
        program,
        topology,
        mode,
        library: None,
    };
    let plain = play(&stage, &operations);
    stage.library = Some(accelerated(&daemon));
    let other = play(&stage, &operations);
    show("plain", &plain);
    show("other", &other);
    plain
        .difference(&other)
        .map_or(Ok(()), |(_, shown)| Err(shown))
}

fn show(name: &str, script: &Script) {
    for line in &script.lines {
        crate::print(&format!("{name}: {line}"));
    }
    if let Some(why) = &script.failure {
        crate::print(&format!("{name}: {why}"));
    }
    if !script.restless.is_empty() {
        crate::print(&format!("{name}: not quiet before {:?}", script.restless));
    }
}
