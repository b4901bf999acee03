//! The cases, by what they are about.

mod asynchronous;
mod closing;
mod confined;
mod connecting;
mod corners;
mod descriptors;
mod descriptors_forked;
mod descriptors_handed;
mod downgrade;
mod early;
mod echo;
mod ends;
mod epoll;
mod epoll_order;
mod epoll_registering;
mod epoll_sets;
mod epoll_waiting;
mod files;
mod flags;
mod idle;
mod killed;
mod leaving;
mod limits;
mod many;
mod masks;
mod messages;
mod options;
mod pointers;
mod pointers_cut;
mod pointers_messages;
mod pointers_options;
mod pointers_readiness;
mod rare;
mod readiness;
mod restarting;
mod signals;
mod splice;
mod splice_in;
mod splice_out;
mod splice_streams;
mod strangers;
mod stress;
mod tables;
mod threads;
mod uncommon;
mod unseen;
mod upper;

use std::str::FromStr;

use crate::end::End;
use crate::form::Form;
use crate::stage::Stage;

/// Where the two ends live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Topology {
    /// Two processes.
    Processes,
    /// Two threads of one process.
    Threads,
    /// One thread.
    Single,
}

impl Topology {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Processes => "processes",
            Self::Threads => "threads",
            Self::Single => "single",
        }
    }
}

impl FromStr for Topology {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Processes, Self::Threads, Self::Single];
        all.into_iter()
            .find(|topology| topology.name() == text)
            .ok_or_else(|| format!("no such topology: {text}"))
    }
}

/// What a case needs of its surroundings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Needs {
    /// Steps one after the other: runs everywhere.
    Steps,
    /// Steps that both ends take at once: two threads or processes.
    Both,
    /// Signals, forks or the whole descriptor table: two processes.
    Processes,
}

/// In which forms a case is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Forms {
    /// In all, whatever the run.
    All,
    /// In all if the run asks for every form, else blocking.
    Asked,
    /// Blocking.
    One,
}

/// One case.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    forms: Forms,
    needs: Needs,
    pub(crate) play: fn(&mut Stage),
}

impl Case {
    /// The forms that it is played in; `every`: the run asks for every form.
    pub(crate) const fn forms(&self, every: bool) -> &'static [Form] {
        match self.forms {
            Forms::All => Form::ALL,
            Forms::Asked if every => Form::ALL,
            Forms::Asked | Forms::One => Form::ONE,
        }
    }

    /// Whether the case can run in `topology`.
    pub(crate) const fn fits(&self, topology: Topology) -> bool {
        match (self.needs, topology) {
            (_, Topology::Processes) | (Needs::Steps, _) | (Needs::Both, Topology::Threads) => true,
            (Needs::Both | Needs::Processes, _) => false,
        }
    }
}

/// A case that all runs play in every form.
const fn in_all_forms(name: &'static str, needs: Needs, play: fn(&mut Stage)) -> Case {
    Case {
        name,
        forms: Forms::All,
        needs,
        play,
    }
}

/// A case about sleeping inside a call, or with another program that expects a blocking socket.
const fn blocking(name: &'static str, needs: Needs, play: fn(&mut Stage)) -> Case {
    Case {
        name,
        forms: Forms::One,
        needs,
        play,
    }
}

/// A case that is in every form where the run asks for that.
const fn case(name: &'static str, needs: Needs, play: fn(&mut Stage)) -> Case {
    Case {
        name,
        forms: Forms::Asked,
        needs,
        play,
    }
}

/// Rounds that one thread can play for both ends.
fn rounds(stage: &mut Stage, count: usize) {
    for _ in 0..count {
        stage.a("say", |a| a.say("hello"));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("hear", |a| a.hear(5));
    }
}

/// A ends its direction first, and B the other one after something more.
fn end_in_turn(stage: &mut Stage) {
    stage.a("shutdown", |a| a.shutdown(libc::SHUT_WR));
    stage.b("end", |b| b.hear(1));
    stage.b("say", |b| b.say("last"));
    stage.a("hear", |a| a.hear(4));
    stage.b("close", End::close);
    stage.a("end", |a| a.hear(1));
}

/// All cases.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        echo::CASES,
        flags::CASES,
        messages::CASES,
        idle::CASES,
        limits::CASES,
        options::CASES,
        upper::CASES,
        pointers::CASES,
        pointers_cut::CASES,
        pointers_messages::CASES,
        pointers_readiness::CASES,
        pointers_options::CASES,
        ends::CASES,
        readiness::CASES,
        epoll::CASES,
        epoll_registering::CASES,
        epoll_waiting::CASES,
        epoll_sets::CASES,
        epoll_order::CASES,
        signals::CASES,
        masks::CASES,
        restarting::CASES,
        asynchronous::CASES,
        closing::CASES,
        corners::CASES,
        killed::CASES,
        connecting::CASES,
        descriptors::CASES,
        descriptors_forked::CASES,
        descriptors_handed::CASES,
        strangers::CASES,
        early::CASES,
        leaving::CASES,
        uncommon::CASES,
        stress::CASES,
        tables::CASES,
        threads::CASES,
        files::CASES,
        downgrade::CASES,
        unseen::CASES,
        rare::CASES,
        confined::CASES,
        many::CASES,
        splice::CASES,
        splice_in::CASES,
        splice_out::CASES,
        splice_streams::CASES,
    ]
    .into_iter()
    .flatten()
}
