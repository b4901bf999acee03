//! Pointers that are none: what poll, select and epoll are given.

use libc::{EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, POLLIN};

use super::pointers::{NO_ROOM, NOTHING, each, give};
use super::{Case, Needs, case};
use crate::end::End;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, Memory};

pub(super) const CASES: &[Case] = &[
    case("pointers_of_polls", Needs::Steps, polls),
    case("pointers_of_selects", Needs::Steps, selects),
    case("pointers_of_sets", Needs::Steps, sets),
    case("pointers_of_events", Needs::Steps, events),
];

fn polls(stage: &mut Stage) {
    stage.connect();
    give(stage, "hello");
    let wish = |a: &End| libc::pollfd {
        fd: a.fd,
        events: POLLIN,
        revents: 0,
    };
    stage.a("poll", |a| {
        each(&NO_ROOM, |kind| {
            sys::poll_at(sys::memory(kind, &wish(a)), 1, -1)
        })
    });
    stage.a("second entry", |a| {
        show::ret(sys::poll_at(sys::cut(&[wish(a), wish(a)], 8), 2, -1))
    });
    stage.a("ppoll", |a| {
        each(&NO_ROOM, |kind| {
            sys::ppoll_at(sys::memory(kind, &wish(a)), 1, 0)
        })
    });
    stage.a("mask", |a| {
        each(&NOTHING, |kind| {
            let at = sys::memory(Memory::Good, &wish(a));
            sys::ppoll_at(at, 1, sys::memory(kind, &[0u64; 16]))
        })
    });
    stage.a("so many that they need memory", |a| {
        let many = [wish(a); 200];
        let good = sys::poll_at(sys::memory(Memory::Good, &many), 200, -1);
        let bad = sys::poll_at(sys::memory(Memory::ReadOnly, &many), 200, -1);
        format!("{} {}", show::ret(good), show::ret(bad))
    });
    stage.a("recv", |a| a.recv(20, 0));
}

fn selects(stage: &mut Stage) {
    stage.connect();
    give(stage, "hello");
    let set = |a: &End| {
        let mut words = [0u64; 16];
        let fd = usize::try_from(a.fd).unwrap_or(0);
        words[fd / 64] |= 1 << (fd % 64);
        words
    };
    stage.a("select", |a| {
        each(&NO_ROOM, |kind| {
            sys::select_at(a.fd + 1, sys::memory(kind, &set(a)), 0, 0)
        })
    });
    stage.a("another set", |a| {
        each(&NO_ROOM, |kind| {
            let good = sys::memory(Memory::Good, &set(a));
            sys::select_at(a.fd + 1, good, sys::memory(kind, &[0u64; 16]), 0)
        })
    });
    stage.a("recv", |a| a.recv(20, 0));
}

fn sets(stage: &mut Stage) {
    stage.connect();
    let wish = libc::epoll_event {
        events: EPOLLIN.cast_unsigned(),
        u64: 7,
    };
    stage.a("add", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        each(&NOTHING, |kind| {
            sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, a.fd, sys::memory(kind, &wish))
        })
    });
    stage.a("add, cut", |a| {
        let at = sys::cut(&wish, 5);
        show::ret(sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, a.fd, at))
    });
    stage.a("not there", |a| {
        let none = sys::epoll_ctl(a.epfd, EPOLL_CTL_MOD, a.fd, EPOLLIN, 7);
        let added = sys::epoll_ctl_at(
            a.epfd,
            EPOLL_CTL_ADD,
            a.fd,
            sys::memory(Memory::ReadOnly, &wish),
        );
        format!("{} {}", show::ret(none), show::ret(added))
    });
    stage.a("modify", |a| {
        each(&NOTHING, |kind| {
            sys::epoll_ctl_at(a.epfd, EPOLL_CTL_MOD, a.fd, sys::memory(kind, &wish))
        })
    });
    give(stage, "hello");
    stage.a("is there", |a| show::events(&sys::epoll_wait(a.epfd, 4, 0)));
    stage.a("a socket that is not connected", |a| {
        let fd = sys::fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        let said = each(&NOTHING, |kind| {
            sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, fd, sys::memory(kind, &wish))
        });
        let cut = sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, fd, sys::cut(&wish, 5));
        let good = sys::memory(Memory::ReadOnly, &wish);
        let added = sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, fd, good);
        let _ = sys::close(fd);
        format!("{said} {} {}", show::ret(cut), show::ret(added))
    });
}

fn events(stage: &mut Stage) {
    stage.connect();
    stage.set_aside();
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.b("say by the other", |b| {
        let other = b.more.first().copied().unwrap_or(-1);
        show::ret(sys::send(other, b"hello", 0))
    });
    stage.a("arrived", |a| a.arrived(5));
    stage.a("arrived at the other", |a| {
        let other = a.more.first().copied().unwrap_or(-1);
        crate::end::settle(other, POLLIN, POLLIN)
    });
    stage.a("add both", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        let other = a.more.first().copied().unwrap_or(-1);
        let one = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1);
        let two = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, other, EPOLLIN, 2);
        format!("{} {}", show::ret(one), show::ret(two))
    });
    stage.a("nothing", |a| {
        each(&NO_ROOM, |kind| {
            sys::epoll_wait_at(a.epfd, sys::memory(kind, &[0u64; 8]), 4, 1000)
        })
    });
    stage.a("room for a part of one", |a| {
        show::ret(sys::epoll_wait_at(a.epfd, sys::good_before(7), 4, 1000))
    });
    stage.a("room for one", |a| {
        let room = sys::good_before(size_of::<libc::epoll_event>());
        show::ret(sys::epoll_wait_at(a.epfd, room, 4, 1000))
    });
    stage.a("both are there", |a| {
        show::events(&sys::epoll_wait(a.epfd, 4, 0))
    });
    stage.a("mask", |a| {
        each(&NOTHING, |kind| {
            let room = sys::memory(Memory::Good, &[0u64; 8]);
            sys::epoll_pwait_at(a.epfd, room, 4, sys::memory(kind, &[0u64; 16]))
        })
    });
    stage.a("time", |a| {
        each(&NOTHING, |kind| {
            let room = sys::memory(Memory::Good, &[0u64; 8]);
            sys::epoll_pwait2_at(a.epfd, room, 4, sys::memory(kind, &[0u64; 2]))
        })
    });
    stage.a("recv", |a| a.recv(20, 0));
}
